"""What callers hold can be pickled and copied: between processes, by task queues, by a debugger."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

import trio_vmcp
from trio_vmcp import (
    Backend,
    BackendFailure,
    BackendRecord,
    BackendState,
    BackendStatus,
    CompletionResult,
    FactorySettings,
    FailureReason,
    Identity,
    Latency,
    Manual,
    NameConflict,
    Priority,
    Prompt,
    PromptResult,
    Resource,
    ResourceResult,
    ResourceTemplate,
    RoutingTable,
    SessionChange,
    SessionMetadata,
    Target,
    Tool,
    ToolOverride,
    ToolResult,
    VmcpError,
)
from trio_vmcp.routing import Bindings, Offer, Prefix, build_routing

NOW = datetime(2026, 7, 28, tzinfo=UTC)
FAILURE = BackendFailure("a", FailureReason.TIMEOUT, "was slow", 1.0)

RECORDS = (
    Backend(id="a", url="http://a.test", headers={"X-Key": "1"}, allow_tools=["x"]),
    Backend("o", "http://o.test", overrides={"x": ToolOverride(name="y", annotations={"readOnlyHint": True})}),
    ToolOverride(title="X"),
    Backend(id="b", transport="stdio", command="c", args=["z"], env={"A": "1"}, request_timeout=1.0),
    FactorySettings(identity_keys=[b"k"], conflict_resolution=Manual({"now": ("time", "now")})),
    FactorySettings(conflict_resolution=Priority("a", "b")),
    Manual({"now": ("time", "now")}),
    Identity(issuer="i", subject="s", token="t"),
    Tool("a_x", "a", "x", {"name": "x"}),
    Resource("memo://1", "a", {"uri": "memo://1"}),
    ResourceTemplate("memo://{x}", "a", {"uriTemplate": "memo://{x}"}),
    Prompt("a_p", "a", "p", {"name": "p"}),
    ToolResult({"content": [{"type": "text", "text": "x"}]}, "a"),
    ResourceResult({"contents": []}, "a"),
    PromptResult({"messages": []}, "a"),
    ToolResult({"resultType": "input_required", "inputRequests": {}, "requestState": "s"}, "a"),
    CompletionResult({"completion": {"values": ["x"]}}, "a"),
    FAILURE,
    BackendStatus("a", BackendState.READY, NOW, "modern", "2026-07-28", FAILURE, 1, 2, 0, Latency(0.1, 0.2, 0.3)),
    NameConflict("tool", "x", ("a", "b"), None),
    SessionChange("tools", "a"),
    SessionMetadata(
        schema_version=1,
        session_id="s",
        created_at=NOW,
        updated_at=NOW,
        version=1,
        identity_binding=None,
        backends=[BackendRecord("a", "id", "legacy", "2025-11-25", {"tools": {}}, "0")],
        bindings={"tools": {"a_x": "a"}},
        used_at=NOW,
        attributes={"tenant": "x"},
    ),
    RoutingTable({"a_x": Target("a", "x")}, {}, {}, (Target("a", "memo://{x}"),)),
    build_routing([Offer("a", tools=("x",), templates=("memo://{x}",))], Prefix()).table,
    Bindings({"a_x": "a"}),
)

ERRORS: dict[str, dict[str, Any]] = {
    "InvalidSessionId": {"detail": "too long"},
    "SessionClosed": {"detail": "closed", "may_have_executed": True},
    "SessionLimitReached": {"retry_after": 2.5},
    "NoBackends": {"failures": (FAILURE,), "connected": 1, "wanted": 2},
    "StorageError": {"detail": "the disk is full"},
    "NilCaller": {},
    "NotAuthorized": {},
    "UnauthorizedCaller": {},
    "VmcpError": {},
    **{name: {"session_id": "s"} for name in ("SessionNotFound", "SessionExists", "MetadataConflict")},
    **{
        name: {"name": "x", "closest": ("y",)}
        for name in ("CapabilityNotFound", "ToolNotFound", "ResourceNotFound", "PromptNotFound")
    },
    **{
        name: {"backend_id": "a", "detail": "broke", "may_have_executed": True}
        for name in (
            "BackendError",
            "BackendProtocolError",
            "BackendTimeout",
            "BackendUnauthorized",
            "BackendUnavailable",
            "MessageTooLarge",
        )
    },
    "BackendRejected": {
        "backend_id": "a",
        "detail": "said no",
        "code": -32000,
        "message": "no",
        "data": {"x": [1]},
        "may_have_executed": True,
    },
}


def _pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def _pickled_as_text(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing, 0))


EVERY_WAY = pytest.mark.parametrize(
    "make",
    [_pickled, _pickled_as_text, copy.copy, copy.deepcopy],
    ids=["pickle", "pickle as text", "copy", "deepcopy"],
)


PUBLIC = [getattr(trio_vmcp, name) for name in trio_vmcp.__all__]
KINDS = [kind for kind in PUBLIC if isinstance(kind, type) and issubclass(kind, VmcpError)]


@EVERY_WAY
@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_pickled_and_copied(kind: type[VmcpError], make: Callable[[Any], Any]) -> None:
    """Type, fields, text and notes are the same afterwards: a worker pool shows the error, and not a TypeError."""
    fields = ERRORS[kind.__name__]
    error = kind(**fields)
    error.add_note("seen by a worker")
    other = make(error)
    assert type(error) is type(other)
    assert fields == {name: getattr(other, name) for name in fields}
    assert (str(error), repr(error), error.__notes__) == (str(other), repr(other), other.__notes__)


@EVERY_WAY
def test_an_error_of_a_users_own_class_can_be_pickled_and_copied(make: Callable[[Any], Any]) -> None:
    """A subclass with a constructor of its own keeps what that constructor has set."""
    error = make(DiskFull("/var", free=3))
    assert ("/var is full", "/var", 3) == (str(error), error.path, error.free)


class DiskFull(trio_vmcp.StorageError):
    def __init__(self, path: str, *, free: int) -> None:
        super().__init__(f"{path} is full")
        self.path, self.free = path, free


@EVERY_WAY
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_can_be_pickled_and_copied(record: Any, make: Callable[[Any], Any]) -> None:
    """The other one is equal, shows the same, and its mappings are as read-only."""
    other = make(record)
    assert record == other
    assert repr(record) == repr(other)
    for field in attrs.fields(type(record)):
        assert type(getattr(record, field.name)) is type(getattr(other, field.name))


def test_a_copied_table_finds_what_the_first_one_does() -> None:
    """Templates match in a copy, too."""
    table = RoutingTable({}, {}, {}, (Target("a", "memo://{x}"),))
    assert Target("a", "memo://1") == copy.deepcopy(table).find_resource("memo://1")


def test_a_copied_identity_has_its_token() -> None:
    """The token is no part of `==`, and is copied all the same."""
    assert "t" == copy.deepcopy(Identity(issuer="i", subject="s", token="t")).token
