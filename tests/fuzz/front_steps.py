"""What clients may do to a front: each step is plain data, so that a script of them can be printed, replayed and cut
down.

Steps name things that exist only while a script runs (sessions, questions, open requests) by a number, which is taken
modulo how many there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import attrs

from trio_vmcp import JSON

__all__ = [
    "CANARY",
    "PRINCIPALS",
    "STATE",
    "BodyChange",
    "Change",
    "Delete",
    "Get",
    "Happen",
    "HeaderChange",
    "Initialize",
    "Leave",
    "Legacy",
    "Modern",
    "Pause",
    "Raw",
    "Reply",
    "Step",
    "changed",
    "written",
]

PRINCIPALS = ("alice", "bob", "stranger")  # the stranger has no credentials
# In a message: stands for a text that names the principal and this request, and occurs nowhere else.
CANARY = "$CANARY"
# In the params of a request of the stateless era: what the front has last handed out to this principal.
STATE = "$STATE"


@attrs.frozen
class Change:
    """One mutation of a JSON object: of the member that `at` chooses among all its members, nested ones included."""

    at: int
    kind: Literal["replace", "remove", "add"]
    value: Any = None


@attrs.frozen
class BodyChange:
    """A mutation of the bytes of a body."""

    kind: Literal["none", "cut", "batch", "twice", "deep", "nan", "utf-8", "empty", "bom", "gone", "many"] = "none"
    at: int = 0


# A name, and its value; None leaves the header out, several values repeat it.
HeaderChange: TypeAlias = tuple[str, str | tuple[str, ...] | None]


@attrs.frozen(kw_only=True)
class _Request:
    """
    Attributes:
        as_principal: An index of `PRINCIPALS`; None: the owner of the session, or the first one.
        session: A number of a session, of any principal; a text: this id; None: no id.
        leaves_after: s after which the client closes its connection; None: it waits for the response.
        reads_after: s for which the client reads nothing.
    """

    as_principal: int | None = None
    session: int | str | None = 0
    headers: tuple[HeaderChange, ...] = ()
    leaves_after: float | None = None
    reads_after: float = 0.0


@attrs.frozen(kw_only=True)
class _Posted(_Request):
    changes: tuple[Change, ...] = ()
    body: BodyChange = BodyChange()


@attrs.frozen(kw_only=True)
class Initialize(_Posted):
    capabilities: Any = attrs.field(factory=dict)
    version: str = "2025-11-25"


@attrs.frozen(kw_only=True)
class Legacy(_Posted):
    """A request of the handshake era; without an id, a notification."""

    method: str
    params: Any
    request_id: Any = None


@attrs.frozen(kw_only=True)
class Reply(_Posted):
    """The answer to a question that some client was asked."""

    question: int | str
    result: Any
    error: Any = None


@attrs.frozen(kw_only=True)
class Modern(_Posted):
    method: str
    params: Any
    request_id: Any = 1
    capabilities: Any = attrs.field(factory=dict)
    log_level: Any = None
    token: Any = None


@attrs.frozen(kw_only=True)
class Get(_Request):
    """
    Attributes:
        last_event_id: A number of an event that was received, by any client; a text: this id, or
            "~N": number N of the last stream; None: no such header.
    """

    last_event_id: int | str | None = None


@attrs.frozen(kw_only=True)
class Delete(_Request):
    pass


@attrs.frozen(kw_only=True)
class Raw(_Request):
    verb: str
    path: str
    data: bytes


@attrs.frozen
class Leave:
    """The client of an open request closes its connection."""

    request: int


@attrs.frozen
class Pause:
    seconds: float


@attrs.frozen
class Happen:
    """Something at the backends."""

    what: Literal["tools changed", "resource updated", "crash"]


Step: TypeAlias = Initialize | Legacy | Reply | Modern | Get | Delete | Raw | Leave | Pause | Happen


def changed(message: JSON, changes: tuple[Change, ...]) -> JSON:
    """A copy of the message with these mutations."""
    copy: JSON = json.loads(json.dumps(message))
    for change in changes:
        places = list(_members(copy))
        container, key = places[change.at % len(places)] if places else (copy, "jsonrpc")
        if change.kind == "replace":
            container[key] = change.value
        elif change.kind == "remove":
            del container[key]
        else:
            container[f"{key}x"] = change.value
    return copy


def _members(node: Any) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            yield node, key
            yield from _members(value)


_NESTED = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":' + b"[" * 2000 + b"]" * 2000 + b"}}"
_WRITERS: dict[str, Callable[[bytes, int], bytes]] = {
    "none": lambda data, at: data,
    "gone": lambda data, at: data[: at % (len(data) + 1)],
    "cut": lambda data, at: data[: at % (len(data) + 1)],
    "batch": lambda data, at: b"[" + b",".join([data] * (at % 3 + 1)) + b"]",
    "twice": lambda data, at: data + data,
    "deep": lambda data, at: _NESTED,
    "nan": lambda data, at: data.replace(b'"2.0"', b'"2.0","x":NaN', 1),
    "utf-8": lambda data, at: data.replace(b'"2.0"', b'"2.0","x":"\xff"', 1),
    "many": lambda data, at: data.replace(b'"2.0"', b'"2.0","x":[' + b"0," * 300_000 + b"0]", 1),
    "empty": lambda data, at: b"",
    "bom": lambda data, at: b"\xef\xbb\xbf" + data,
}


def written(message: JSON, change: BodyChange) -> bytes:
    """The bytes of a body. Of one that is "gone", the client sends so much and closes its connection."""
    return _WRITERS[change.kind](json.dumps(message).encode(), change.at)
