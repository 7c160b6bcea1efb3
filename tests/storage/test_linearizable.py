"""Two clients at once, some of whose answers are lost: every storage behaves as one register with compare-and-set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Literal

import attrs
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.sqlite_storage import open_sqlite_storage
from support.stored import METADATA, open_local_storage
from trio.testing import MockClock

from trio_vmcp import MetadataConflict, SessionExists, SessionMetadata, SessionNotFound, Storage, VmcpError
from trio_vmcp.testing._linearizability import LOST, Event, Operation, Outcome, is_linearizable

OpenStorage = Callable[[float], AbstractAsyncContextManager[Storage]]


@attrs.frozen
class Ask:
    """An operation of a client; lost: the request does not arrive, or its answer does not."""

    operation: Operation
    version: int
    lost: Literal["request", "answer"] | None = None


def row(version: int, writer: str) -> SessionMetadata:
    return attrs.evolve(METADATA, version=version, attributes={"writer": writer})


async def answer(storage: Storage, ask: Ask, writer: str) -> Outcome:
    try:
        if ask.operation == "create":
            await storage.create(row(ask.version, writer))
        elif ask.operation == "load":
            found = await storage.load(METADATA.session_id)
            return found.version, found.attributes["writer"]
        elif ask.operation == "replace":
            await storage.replace(row(ask.version + 1, writer), expected_version=ask.version)
        elif ask.operation == "touch":
            await storage.touch(METADATA.session_id, expected_version=ask.version)
        else:
            await storage.delete(METADATA.session_id, expected_version=ask.version)
    except VmcpError as exc:
        return type(exc)
    return None


async def history_of(open_storage: OpenStorage, scripts: list[list[Ask]]) -> list[Event]:
    """Both scripts side by side, then a load."""
    ticks, events = itertools.count(), list[Event]()

    async def run(name: str, script: list[Ask]) -> None:
        for place, ask in enumerate(script):
            started, ended, writer = next(ticks), math.inf, f"{name}{place}"
            outcome: Outcome | Literal["lost"] = LOST
            if ask.lost != "request":
                answered = await answer(storage, ask, writer)
                if ask.lost is None:
                    outcome, ended = answered, next(ticks)
            version = None if ask.operation == "load" else ask.version
            events.append(Event(ask.operation, version, writer, started, ended, outcome))

    async with open_storage(60.0) as storage:
        async with trio.open_nursery() as nursery:
            for name, script in zip("ab", scripts, strict=True):
                nursery.start_soon(run, name, script)
        await run("z", [Ask("load", 0)])
    return events


asks = st.builds(
    Ask,
    st.sampled_from(["create", "load", "replace", "touch", "delete"]),
    st.integers(0, 2),
    st.sampled_from([None, None, "request", "answer"]),
)
REPLACED_TWICE = [
    [Ask("create", 0), Ask("replace", 0), Ask("load", 0)],
    [Ask("load", 0), Ask("replace", 0), Ask("replace", 1)],
]


@pytest.mark.parametrize("open_storage", [open_local_storage, open_sqlite_storage], ids=["local", "sqlite"])
@settings(max_examples=20)
@given(scripts=st.lists(st.lists(asks, max_size=5), min_size=2, max_size=2))
@example(scripts=REPLACED_TWICE)
def test_every_history_has_an_order(open_storage: OpenStorage, scripts: list[list[Ask]]) -> None:
    """There is an order of the operations that explains every answer and the final row."""
    run = partial(history_of, open_storage, scripts)
    history = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert is_linearizable(history), history


IMPOSSIBLE = {
    "both created": [Event("create", 0, "a", 0, 2, None), Event("create", 0, "b", 1, 3, None)],
    "both replaced": [
        Event("create", 0, "a", 0, 1, None),
        Event("replace", 0, "b", 2, 4, None),
        Event("replace", 0, "c", 3, 5, None),
    ],
    "stale": [
        Event("create", 0, "a", 0, 1, None),
        Event("replace", 0, "b", 2, 3, None),
        Event("load", None, "c", 4, 5, (0, "a")),
    ],
    "back from the dead": [
        Event("create", 0, "a", 0, 1, None),
        Event("delete", None, "b", 2, 3, None),
        Event("create", 0, "c", 4, 5, None),
    ],
    "undone": [
        Event("create", 0, "a", 0, math.inf, LOST),
        Event("load", None, "b", 1, 2, (0, "a")),
        Event("load", None, "c", 3, 4, SessionNotFound),
    ],
    "fence passed": [Event("create", 0, "a", 0, 1, None), Event("touch", 1, "b", 2, 3, None)],
    "tombstone lost": [Event("delete", 1, "a", 0, 1, None), Event("create", 0, "b", 2, 3, None)],
    "answer from the future": [Event("load", None, "a", 0, 1, (0, "b")), Event("create", 0, "b", 2, 3, None)],
}
POSSIBLE = {
    "nothing": [],
    "lost and done": [Event("create", 0, "a", 0, math.inf, LOST), Event("load", None, "b", 1, 2, (0, "a"))],
    "lost and not done": [Event("create", 0, "a", 0, math.inf, LOST), Event("load", None, "b", 1, 2, SessionNotFound)],
    "lost and done later": [
        Event("create", 0, "a", 0, math.inf, LOST),
        Event("load", None, "b", 1, 2, SessionNotFound),
        Event("load", None, "c", 3, 4, (0, "a")),
    ],
    "one of two": [
        Event("create", 0, "a", 0, 1, None),
        Event("replace", 0, "b", 2, 4, MetadataConflict),
        Event("replace", 0, "c", 3, 5, None),
        Event("create", 0, "d", 6, 7, SessionExists),
    ],
}


@pytest.mark.parametrize("history", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_the_checker_finds_what_cannot_be(history: list[Event]) -> None:
    """A history without an order is refused, whatever the order in which its events are listed."""
    assert not is_linearizable(history)
    assert not is_linearizable(history[::-1])


@pytest.mark.parametrize("history", POSSIBLE.values(), ids=POSSIBLE)
def test_the_checker_accepts_what_can_be(history: list[Event]) -> None:
    """A lost operation may have had its effect, may have it later, or never."""
    assert is_linearizable(history)
    assert is_linearizable(history[::-1])
