"""Configuration, results and errors: checked at construction, with texts that name the fault and show no secret."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trio_vmcp
from trio_vmcp import (
    Backend,
    BackendError,
    BackendFailure,
    BackendRejected,
    CompletionResult,
    FactorySettings,
    FailureReason,
    MetadataConflict,
    NilCaller,
    NoBackends,
    Prompt,
    PromptResult,
    Resource,
    ResourceResult,
    ResourceTemplate,
    SessionClosed,
    SessionExists,
    SessionLimitReached,
    SessionNotFound,
    StorageError,
    Tool,
    ToolNotFound,
    ToolOverride,
    ToolResult,
    UnauthorizedCaller,
    VmcpError,
)

# Backend


def wrong_override(**fields: Any) -> ToolOverride:
    """With fields of types that the annotations do not allow."""
    return ToolOverride(**fields)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True))
def test_a_backend_id_may_be(backend_id: str) -> None:
    """1-64 of A-Za-z0-9_.- starting with a letter or digit."""
    assert backend_id == Backend(id=backend_id, url="http://a.test").id


@pytest.mark.parametrize("backend_id", ["", "-a", ".a", "_a", "a" * 65, "a b", "é", "a\n", 7, None])
def test_a_bad_backend_id_is_named(backend_id: Any) -> None:
    """A bad id is a ValueError at construction that shows the id."""
    with pytest.raises(ValueError, match=r"is not 1-64 of A-Za-z0-9_\.-") as bad:
        Backend(id=backend_id, url="http://a.test")
    assert repr(backend_id) in str(bad.value)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({}, "backend 'a': transport 'streamable-http' needs a url"),
        ({"transport": "sse"}, "backend 'a': transport 'sse' needs a url"),
        ({"transport": "stdio"}, "backend 'a': transport 'stdio' needs a command"),
        ({"transport": ""}, "backend 'a': transport '' is no name of a transport"),
        ({"transport": "carrier-pigeon", "url": 5}, "backend 'a': url is int, not str"),
        ({"url": "http://a.test", "era": "bronze"}, "backend 'a': unknown era 'bronze'"),
        ({"url": "http://a.test", "request_timeout": -1}, "backend 'a': request_timeout -1 is not 0 s or more"),
        ({"url": "http://a.test", "request_timeout": math.nan}, "backend 'a': request_timeout nan is not 0 s or more"),
        ({"url": "ftp://a.test"}, "backend 'a': url 'ftp://a.test' is not http:// or https:// with a host"),
        ({"url": "http://"}, "is not http:// or https:// with a host"),
        ({"url": "http://a.test:port"}, "is not http:// or https:// with a host"),
        ({"url": "http://[::1"}, "backend 'a': url '<unreadable url>' is not http://"),
        ({"url": "http://a.test", "allow_tools": "wipe"}, "'wipe' is one str where several are wanted"),
        ({"url": "http://a.test", "deny_tools": "wipe"}, "'wipe' is one str where several are wanted"),
        ({"transport": "stdio", "command": "x", "args": "--all"}, "args is one str where several are wanted"),
        ({"url": 5}, "url is int, not str"),
        ({"url": b"http://a.test"}, "url is bytes, not str"),
        ({"url": "http://a.test/\n"}, "url holds a control character"),
        ({"url": " http://a.test"}, "url holds a control character, or a blank where a url has none"),
        ({"url": "http://a b.test"}, "url holds a control character, or a blank where a url has none"),
        ({"url": "http://b\x7f.test/"}, "url holds a control character"),
        ({"url": "http://a.test", "headers": 5}, "headers is int, not a mapping"),
        ({"url": "http://a.test", "headers": {5: "x"}}, "header 5 has a name that is not an RFC 9110 token"),
        ({"url": "http://a.test", "headers": {"X": 5}}, "header 'X' has a value that is int, not str"),
        ({"url": "http://a.test", "headers": {"X": None}}, "header 'X' has a value that is NoneType, not str"),
        ({"url": "http://a.test", "headers": {"X": b"x"}}, "header 'X' has a value that is bytes, not str"),
        (
            {"url": "http://a.test", "headers": {"X": "\ud800"}},
            "header 'X' has a value with a character beyond Latin-1",
        ),
        ({"url": "http://a.test", "headers": {"X": "x\n"}}, "header 'X' has a value with a control character"),
        ({"url": "http://a.test", "headers": {"X": " x"}}, "header 'X' has a value with a blank at its edge"),
        ({"url": "http://a.test", "headers": {"X:": "x"}}, "header 'X:' has a name that is not an RFC 9110 token"),
        ({"url": "http://a.test", "headers": {"X": "1", "x": "2"}}, "header 'x' is there twice"),
        ({"url": "http://a.test", "headers": {"Host": "x"}}, "header 'Host' is the protocol's own"),
        ({"url": "http://a.test", "headers": {"Mcp-Session-Id": "x"}}, "header 'Mcp-Session-Id' is the protocol's own"),
        ({"url": "http://a.test", "headers": {"Mcp-Param-A": "x"}}, "header 'Mcp-Param-A' is the protocol's own"),
        ({"url": "http://a.test", "headers": {"TE": "x"}}, "header 'TE' belongs to the connection, not to a request"),
        ({"url": "http://a.test", "allow_tools": 5}, "allow_tools is int, not several str"),
        ({"url": "http://a.test", "deny_tools": None}, "deny_tools is NoneType, not several str"),
        ({"url": "http://a.test", "deny_tools": ["wipe", 5]}, "deny_tools holds 5, which is int, not str"),
        ({"url": "http://a.test", "deny_tools": [["wipe"]]}, "deny_tools holds ['wipe'], which is list, not str"),
        ({"url": "http://a.test", "allow_tools": [""]}, "backend 'a': allow_tools: '' is empty"),
        ({"url": "http://a.test", "deny_tools": ["@readonly"]}, "deny_tools: '@readonly' is none of @readOnly, @destr"),
        ({"url": "http://a.test", "allow_tools": ["@"]}, "allow_tools: '@' is none of @readOnly"),
        ({"url": "http://a.test", "overrides": 5}, "overrides is int, not a mapping"),
        ({"url": "http://a.test", "overrides": {"": ToolOverride()}}, "overrides has the key '', which is no name"),
        ({"url": "http://a.test", "overrides": {5: ToolOverride()}}, "overrides has the key 5, which is no name"),
        ({"url": "http://a.test", "overrides": {"x": {"name": "y"}}}, "overrides['x'] is dict, not ToolOverride"),
        ({"url": "http://a.test", "overrides": {"x": None}}, "overrides['x'] is NoneType, not ToolOverride"),
        ({"url": "http://a.test", "overrides": {"x": ToolOverride(name="")}}, "overrides['x'].name is empty"),
        ({"url": "http://a.test", "overrides": {"x": wrong_override(name=5)}}, "overrides['x'].name is int, not str"),
        ({"url": "http://a.test", "overrides": {"x": wrong_override(title=b"t")}}, "overrides['x'].title is bytes"),
        ({"url": "http://a.test", "overrides": {"x": wrong_override(description=1)}}, "overrides['x'].description is"),
        (
            {"url": "http://a.test", "overrides": {"x": ToolOverride(title="\ud800")}},
            "overrides['x'].title holds half a surrogate pair",
        ),
        (
            {"url": "http://a.test", "overrides": {"x": wrong_override(annotations=5)}},
            "overrides['x'].annotations is int, not a mapping",
        ),
        (
            {"url": "http://a.test", "overrides": {"x": wrong_override(annotations={5: 1})}},
            "overrides['x'].annotations has the key 5",
        ),
        (
            {"url": "http://a.test", "overrides": {"x": ToolOverride(annotations={"k": math.nan})}},
            "overrides['x'].annotations['k'] is no JSON",
        ),
        (
            {"url": "http://a.test", "overrides": {"x": ToolOverride(annotations={"k": {1}})}},
            "overrides['x'].annotations['k'] is no JSON",
        ),
        (
            {"url": "http://a.test", "overrides": {"x": ToolOverride(name="z"), "y": ToolOverride(name="z")}},
            "overrides['x'] and overrides['y'] both give the name 'z'",
        ),
        (
            {"url": "http://a.test", "overrides": {"x": ToolOverride(name="y"), "y": ToolOverride(title="Y")}},
            "overrides['x'] and overrides['y'] both give the name 'y'",
        ),
        ({"url": "http://a.test", "request_timeout": "5"}, "request_timeout is str, not a number of s"),
        ({"url": "http://a.test", "init_timeout": "5"}, "init_timeout is str, not a number of s"),
        ({"url": "http://a.test", "progress_timeout": "5"}, "progress_timeout is str, not a number of s"),
        ({"url": "http://a.test", "stop_after": "5"}, "stop_after is str, not a number of s"),
        ({"url": "http://a.test", "stop_after": -1}, "stop_after -1 is not 0 s or more"),
        ({"url": "http://a.test", "progress_timeout": -1}, "progress_timeout -1 is not 0 s or more"),
        ({"url": "http://a.test", "init_timeout": -1}, "init_timeout -1 is not 0 s or more"),
        ({"url": "http://a.test", "request_timeout": True}, "request_timeout is bool, not a number of s"),
        ({"url": "http://a.test", "listen": "no"}, "listen is str, not bool"),
        ({"url": "http://a.test", "transport": ["sse"]}, "transport ['sse'] is no name of a transport"),
        ({"url": "http://a.test", "era": None}, "unknown era None"),
        ({"transport": "stdio", "command": ["x", "y"]}, "command is list, not str"),
        ({"transport": "stdio", "command": "x\0"}, "command holds NUL, which no process can be given"),
        ({"transport": "stdio", "command": "x", "cwd": 5}, "cwd is int, not str"),
        ({"transport": "stdio", "command": "x", "cwd": "\0"}, "cwd holds NUL, which no process can be given"),
        ({"transport": "stdio", "command": "x", "args": None}, "args is NoneType, not several str"),
        ({"transport": "stdio", "command": "x", "args": ["y", 8080]}, "args[1] is int, not str"),
        ({"transport": "stdio", "command": "x", "args": ["\0"]}, "args[0] holds NUL, which no process can be given"),
        ({"transport": "stdio", "command": "x", "env": ["A=1"]}, "env is list, not a mapping"),
        ({"transport": "stdio", "command": "x", "env": {"A": 1}}, "env 'A' is int, not str"),
        ({"transport": "stdio", "command": "x", "env": {"A": None}}, "env 'A' is NoneType, not str"),
        (
            {"transport": "stdio", "command": "x", "env": {"A": "\0"}},
            "env 'A' holds NUL, which no process can be given",
        ),
        ({"transport": "stdio", "command": "x", "env": {1: "A"}}, "env: 1 is no name of an environment variable"),
        (
            {"transport": "stdio", "command": "x", "env": {"A=B": ""}},
            "env: 'A=B' is no name of an environment variable",
        ),
        ({"transport": "stdio", "command": "x", "env": {"": "x"}}, "env: '' is no name of an environment variable"),
        ({"transport": "stdio", "command": "x", "inherit_env": "A"}, "inherit_env is one str where several are wanted"),
        ({"transport": "stdio", "command": "x", "inherit_env": None}, "inherit_env is NoneType, not several str"),
        *(
            (
                {"transport": "stdio", "command": "x", "inherit_env": ["A", name]},
                f"inherit_env: {name!r} is no name of an environment variable, and no glob for some",
            )
            for name in (1, None, "", "A=B", "\0")
        ),
    ],
)
def test_a_bad_backend_is_a_value_error_that_names_the_entry(entry: dict[str, Any], text: str) -> None:
    """The error comes at construction, not at the first use, and names the backend and the key."""
    with pytest.raises(ValueError) as bad:  # noqa: PT011  # the text is compared below, whole
        Backend(id="a", **entry)
    assert str(bad.value).startswith("backend 'a': ")
    assert text in str(bad.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"url": "http://user:CANARY@a.test/\n?CANARY"},
        {"url": "http://a.test", "headers": {"X": "CANARY\n"}},
        {"url": "http://a.test", "headers": {"Host": "CANARY"}},
        {"transport": "stdio", "command": "x", "args": "--token=CANARY"},
        {"transport": "stdio", "command": "x", "args": ["--token=CANARY\0"]},
        {"transport": "stdio", "command": "x", "env": {"TOKEN": "CANARY\0"}},
        {"transport": "stdio", "command": "x", "env": {"TOKEN": "CANARY\ud800"}},
        {"transport": "stdio", "command": ["x", "CANARY"]},
    ],
)
def test_a_bad_backend_is_named_without_its_secrets(entry: dict[str, Any]) -> None:
    """Neither the error nor its context shows a value of a header, an argument, the environment or a url."""
    with pytest.raises(ValueError, match="backend 'a': ") as bad:
        Backend(id="a", **entry)
    assert "CANARY" not in repr(bad.value)
    assert bad.value.__context__ is None


def test_a_bad_url_is_shown_without_its_secrets() -> None:
    """The error shows neither userinfo nor query nor fragment, which may be credentials."""
    with pytest.raises(ValueError, match="is not http://") as bad:
        Backend(id="a", url="ftp://user:CANARY@a.test/x?token=CANARY#CANARY")
    assert "CANARY" not in str(bad.value)
    assert "ftp://a.test/x" in str(bad.value)


def test_a_backends_mappings_are_its_own() -> None:
    """Mappings are copied and read-only; lists become tuples and sets."""
    headers = {"X-Key": "1"}
    backend = Backend(id="a", url="http://a.test", headers=headers, allow_tools=["x"], deny_tools=["y", "y"])
    headers["X-Key"] = "2"
    assert {"X-Key": "1"} == backend.headers
    with pytest.raises(TypeError):
        backend.headers["X-Key"] = "3"  # type: ignore[index]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        backend.id = "b"  # type: ignore[misc]
    assert frozenset("x") == backend.allow_tools
    assert frozenset("y") == backend.deny_tools
    assert ("z",) == Backend(id="b", transport="stdio", command="c", args=["z"]).args
    assert hash(backend) == hash(copy.copy(backend))


def test_a_backends_repr_shows_names_and_no_values() -> None:
    """The repr has header and environment names and the url without userinfo and query, and no value or argument."""
    backend = Backend(
        id="a",
        url="https://user:CANARY@a.test:8443/mcp?key=CANARY#CANARY",
        headers={"Authorization": "Bearer CANARY", "X-Api-Key": "CANARY"},
        env={"TOKEN": "CANARY"},
        command="server",
        args=("--token=CANARY",),
    )
    for text in (repr(backend), str(backend), f"{[backend]}"):
        assert "CANARY" not in text
        for shown in ("'a'", "https://a.test:8443/mcp", "'Authorization': …", "'X-Api-Key': …", "'TOKEN': …"):
            assert shown in text


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_backend_init_concurrency", 0),
        ("max_backend_init_concurrency", 1.5),
        ("backend_init_timeout", -0.1),
        ("session_init_timeout", math.nan),
        ("request_timeout", True),
        ("min_backends", -1),
        ("max_name_length", 15),
        ("max_pages", 0),
        ("reconnect_delay", -1),
    ],
)
def test_a_bad_setting_is_named(name: str, value: Any) -> None:
    """The error shows the setting and its value."""
    with pytest.raises(ValueError, match=f"^{name}={value!r} is not "):
        FactorySettings(**{name: value})


def test_other_bad_settings() -> None:
    """`on_exit` is one of two words; identity keys are bytes, and never shown."""
    with pytest.raises(ValueError, match="on_exit"):
        FactorySettings(on_exit="explode")
    for keys in ((b"",), ("CANARY",), b"CANARY"):
        with pytest.raises(ValueError, match="identity_keys holds something that is not non-empty bytes") as bad:
            FactorySettings(identity_keys=keys)  # type: ignore[arg-type]
        assert "CANARY" not in str(bad.value)
    assert "CANARY" not in repr(FactorySettings(identity_keys=[b"CANARY"]))


def test_the_defaults_are_those_that_are_documented() -> None:
    """The defaults are part of the public interface."""
    defaults = {
        "max_backend_init_concurrency": 10,
        "backend_init_timeout": 30.0,
        "session_init_timeout": 35.0,
        "min_backends": 0,
        "max_connections_per_backend": 100,
        "request_timeout": 120.0,
        "progress_timeout": math.inf,
        "drain_timeout": 10.0,
        "teardown_timeout": 2.0,
        "idle_timeout": 1800.0,
        "storage_timeout": 5.0,
        "reconnect_delay": 0.5,
        "reconnect_max_delay": 60.0,
        "on_exit": "terminate",
        "identity_keys": (),
        "max_message_bytes": 16 * 1024 * 1024,
        "names_for": "models",
        "max_name_length": None,
        "max_pages": 1000,
        "max_items_per_backend": 10_000,
        "max_json_depth": 128,
        "max_json_values": 100_000,
        "conflict_resolution": trio_vmcp.Prefix("{backend}_"),
    }
    assert defaults == attrs.asdict(FactorySettings(), recurse=False)


# Views


def test_views_name_the_parts_and_keep_the_rest() -> None:
    """Capabilities and results read their JSON; `raw` also has the fields without a property."""
    tool = Tool(
        "a_x", "a", "x", {"title": "X", "description": "d", "inputSchema": {"type": "object"}, "outputSchema": {}}
    )
    assert ("X", "d", {"type": "object"}, {}, {}) == (
        tool.title,
        tool.description,
        tool.input_schema,
        tool.output_schema,
        tool.annotations,
    )
    resource = Resource("memo://1", "a", {"name": "n", "mimeType": "text/plain", "size": 3, "annotations": {"x": 1}})
    assert ("n", "text/plain", 3, {"x": 1}) == (
        resource.name,
        resource.mime_type,
        resource.size,
        resource.annotations,
    )
    template = ResourceTemplate("memo://{x}", "a", {"name": "n", "mimeType": "text/plain"})
    assert ("n", "text/plain", {}) == (template.name, template.mime_type, template.annotations)
    prompt = Prompt("a_p", "a", "p", {"arguments": [{"name": "who"}]})
    assert ({"name": "who"},) == prompt.arguments
    assert ({"k": 1}, ({"uri": "memo://1"},)) == (
        ResourceResult({"_meta": {"k": 1}, "contents": [{"uri": "memo://1"}]}, "a").meta,
        ResourceResult({"contents": [{"uri": "memo://1"}]}, "a").contents,
    )
    filled = PromptResult({"messages": [{}], "description": "d"}, "a")
    assert (({},), "d") == (filled.messages, filled.description)
    completion = CompletionResult({"completion": {"values": ["x"], "total": 7, "hasMore": True}}, "a")
    assert (("x",), 7, True) == (completion.values, completion.total, completion.has_more)


def test_views_of_nothing_are_empty() -> None:
    """Every field that MCP makes optional may be missing or null."""
    for raw in ({}, dict.fromkeys(("content", "contents", "messages", "completion", "_meta", "annotations"))):
        assert ((), None, False, {}) == (
            ToolResult(raw, "a").content,
            ToolResult(raw, "a").structured_content,
            ToolResult(raw, "a").is_error,
            ToolResult(raw, "a").meta,
        )
        assert ((), (), (), None, False) == (
            ResourceResult(raw, "a").contents,
            PromptResult(raw, "a").messages,
            CompletionResult(raw, "a").values,
            CompletionResult(raw, "a").total,
            CompletionResult(raw, "a").has_more,
        )
        assert ("", None, {}) == (
            Resource("u", "a", raw).name,
            Resource("u", "a", raw).size,
            Tool("t", "a", "t", raw).annotations,
        )
        assert ("", ()) == (ResourceTemplate("u", "a", raw).name, Prompt("p", "a", "p", raw).arguments)


# Errors


def test_the_error_tree() -> None:
    """The base classes of each error are those of the documented tree."""
    tree = {
        "VmcpError": "SessionClosed SessionNotFound SessionExists InvalidSessionId SessionLimitReached NoBackends "
        "CapabilityNotFound NotAuthorized StorageError BackendError",
        "CapabilityNotFound": "ToolNotFound ResourceNotFound PromptNotFound",
        "NotAuthorized": "NilCaller UnauthorizedCaller",
        "StorageError": "MetadataConflict",
        "BackendError": "BackendUnavailable BackendTimeout BackendProtocolError BackendRejected BackendUnauthorized "
        "MessageTooLarge",
    }
    for base, names in tree.items():
        known = getattr(trio_vmcp, base).__subclasses__()
        children = {child.__name__ for child in known if child.__module__ == "trio_vmcp.errors"}
        assert set(names.split()) == children


SIMPLE_BACKEND_ERRORS = (
    trio_vmcp.BackendError,
    trio_vmcp.BackendUnavailable,
    trio_vmcp.BackendTimeout,
    trio_vmcp.BackendProtocolError,
    trio_vmcp.BackendUnauthorized,
    trio_vmcp.MessageTooLarge,
)


@pytest.mark.parametrize("kind", SIMPLE_BACKEND_ERRORS)
def test_backend_errors_are_built_alike(kind: type[BackendError]) -> None:
    """`(backend_id, detail, *, may_have_executed=False)`; the text is a sentence about the backend."""
    error = kind("a", "is away")
    assert ("a", "is away", False) == (error.backend_id, error.detail, error.may_have_executed)
    assert "backend 'a' is away" == str(error)
    assert kind("a", "is away", may_have_executed=True).may_have_executed
    with pytest.raises(TypeError):
        kind("a", "is away", True)  # type: ignore[call-arg]


def test_a_rejection_has_code_message_and_data() -> None:
    """A BackendRejected has three fields more than every backend error."""
    error = BackendRejected("a", "said no", code=-32000, message="no", data={"x": 1}, may_have_executed=True)
    assert (-32000, "no", {"x": 1}, True, "backend 'a' said no") == (
        error.code,
        error.message,
        error.data,
        error.may_have_executed,
        str(error),
    )
    assert BackendRejected("a", "said no", code=1, message="no").data is None


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (partial(SessionClosed, "it is closed"), "it is closed"),
        (partial(StorageError, "the disk is full"), "the disk is full"),
        (partial(SessionLimitReached, 2.5), "no room for another session; try again in 2.5 s"),
        (partial(ToolNotFound, "x"), "no tool 'x' in this session"),
        (
            partial(ToolNotFound, "x", ("x1", "x2", "x3", "x4", "x5", "x6")),
            "no tool 'x' in this session; closest: 'x1', 'x2', 'x3', 'x4', 'x5'",
        ),
        (partial(trio_vmcp.ResourceNotFound, "memo://1"), "no resource 'memo://1' in this session"),
        (partial(trio_vmcp.PromptNotFound, "p"), "no prompt 'p' in this session"),
        (partial(trio_vmcp.InvalidSessionId, "too long"), "too long"),
        (NilCaller, "this session is bound to an identity; pass caller= or use as_caller()"),
        (UnauthorizedCaller, "this caller is not the one that the session is bound to"),
        (partial(NoBackends, ()), "0 backends connected, 1 wanted (min_backends): none configured"),
        (
            partial(NoBackends, (BackendFailure("a", FailureReason.TIMEOUT, "was slow", 1.0),), 1, 2),
            "1 backends connected, 2 wanted (min_backends): 'a': TIMEOUT, was slow",
        ),
    ],
)
def test_texts(build: Callable[[], VmcpError], text: str) -> None:
    """The text of each error is one line that names the backend or session, the fault, and the setting if any."""
    error = build()
    assert text == str(error)
    assert isinstance(error, VmcpError)
    assert text in f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", [SessionNotFound, SessionExists, MetadataConflict])
def test_session_ids_are_fields_and_never_text(kind: Callable[[str], VmcpError]) -> None:
    """A session id is a bearer token: it is a field of the error, and the text shows a tag."""
    error = kind("CANARY")
    assert "CANARY" == error.session_id  # type: ignore[attr-defined]
    for text in (str(error), repr(error), str(error.args) if kind is MetadataConflict else ""):
        assert "CANARY" not in text
    assert "session #" in str(error)
    assert str(error) == str(kind("CANARY"))
    assert str(error) != str(kind("canary"))


def test_closed_says_whether_the_call_may_have_run() -> None:
    """`SessionClosed(detail, *, may_have_executed=False)`."""
    assert [False, True] == [
        SessionClosed("x").may_have_executed,
        SessionClosed("x", may_have_executed=True).may_have_executed,
    ]


def test_errors_are_told_apart_by_identity() -> None:
    """Two errors with equal fields are not equal, so that exception groups keep both."""
    assert BackendError("a", "x") != BackendError("a", "x")
    assert 2 == len({BackendError("a", "x"), BackendError("a", "x")})


@pytest.mark.parametrize("name", ["max_backend_init_concurrency", "max_pages", "max_connections_per_backend"])
def test_settings_that_count_take_no_float(name: str) -> None:
    """A float such as 5.0 is a ValueError in `FactorySettings`; later it would be a TypeError in the middle of an
    opening.
    """
    with pytest.raises(ValueError, match=f"{name}=5.0 is not a whole number, 1 or more"):
        FactorySettings(**{name: 5.0})  # type: ignore[arg-type]
