"""The settings of the front: what no request could cure is refused when they are made."""

from __future__ import annotations

from typing import Any

import pytest
from support.front import front_world

from trio_vmcp.serve import ServeSettings
from trio_vmcp.serve._edges import host_problem, origin_problem
from trio_vmcp.serve.settings import OPERATOR_PATHS


@pytest.mark.parametrize(
    "wrong",
    [
        *({"path": path} for path in OPERATOR_PATHS),
        *({"path": path} for path in ("mcp", "", "/mcp/", "//", "/a b", "/a?b", "/a#b", "/%6dcp", "/\u00e9", "/a\n")),
        *({"allowed_hosts": (host,)} for host in ("", "*", "http://a.test", "a.test/", "u@a.test", "a:b", 1)),
        *({"allowed_origins": (origin,)} for origin in ("", "*", "a.test", "https://a.test/", "https://", None)),
        {"max_body_bytes": 0},
        {"stream_buffer": 1.5},
        {"keep_alive_interval": 0},
        {"abandoned_after": -1.0},
        {"shutdown_timeout": "10"},
    ],
    ids=str,
)
def test_a_wrong_setting(wrong: dict[str, Any]) -> None:
    """ValueError names it. At an operator's path, the endpoint would be served without the authenticator."""
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        ServeSettings(**wrong)


def test_what_is_allowed() -> None:
    """The root, a deeper path, hosts with a port, and origins of browser extensions."""
    for path in ("/", "/mcp", "/a/b-c.d~e"):
        assert path == ServeSettings(path=path).path
    hosts = ("A.test:8443", "[::1]:80", "127.0.0.1", "[fe80::1%eth0]")
    assert hosts == ServeSettings(allowed_hosts=hosts).allowed_hosts
    for host in ("a.test", "a.TEST:1", "[::1]", "127.0.0.1:5"):
        assert None is host_problem(host, hosts)
    origins = ("https://App.test:8443", "vscode-webview://1a2b", "null")
    assert origins == ServeSettings(allowed_origins=origins).allowed_origins
    for origin in ("https://app.test:8443", "vscode-webview://1a2b", "null"):
        assert None is origin_problem(origin, "a.test", origins)


async def test_the_paths_of_operators() -> None:
    """All that there are."""
    async with front_world() as world:
        assert {*OPERATOR_PATHS, "/mcp", "/mcp/"} == set(world.app._paths)
