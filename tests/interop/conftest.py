"""The servers, and a front over each, run once for all tests, started by the first test that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import TypeAlias

import pytest
from interop.fleet import BOTH, Server, running
from support.served import SERVE, write_servers

UrlOf: TypeAlias = Callable[[Server], str]
FrontOver: TypeAlias = Callable[[Server], str]


@pytest.fixture(scope="session")
def url_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UrlOf]:
    logs = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:

        @cache
        def started(server: Server) -> str:
            return stack.enter_context(running(server, logs / f"{server.name}.log")).url

        yield started


@pytest.fixture(scope="session")
def front_over(url_of: UrlOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontOver]:
    """The url of a front over one server, whose names it leaves as they are."""
    with ExitStack() as stack:

        @cache
        def started(server: Server) -> str:
            place = tmp_path_factory.mktemp("front")
            entry = {"url": url_of(server), "type": "sse" if server.transport == "sse" else "http"}
            options = ("--config", write_servers(place, {"server": entry}), "--port", "{port}", "--naming", "bare")
            front = Server(name=f"front-{server.name}", home="", command=(*SERVE, *options), eras=BOTH, stops_in=BOTH)
            return stack.enter_context(running(front, place / "serve.log")).url

        yield started
