"""The suite that every `Storage` must pass."""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager

import attrs
import trio
from trio.testing import assert_checkpoints

from trio_vmcp.errors import MetadataConflict, SessionNotFound, StorageError
from trio_vmcp.storage import Storage
from trio_vmcp.testing._linearizability import LOST, Event, Operation, Outcome, is_linearizable
from trio_vmcp.testing._storage_lives import broken, make_row, new_id, play_lives, play_moments

__all__ = ["storage_contract"]

OpenStorage = Callable[[float], AbstractAsyncContextManager[Storage]]

# s: the time to live in which the lives are played; a longer one where the storage is too slow for the shorter.
_TTLS = (0.2, 0.4, 1.0, 5.0)
_LONG = 60.0  # s: longer than any other check takes
_HISTORIES = 20
_OPERATIONS_PER_CLIENT = 4
_MIX: tuple[Operation, ...] = ("create", "load", "load", "replace", "replace", "replace", "replace", "touch", "delete")
# Steps of the loop after which an operation may be cancelled: from before its request is sent to after its answer.
_STEPS_TO_CANCEL = 24


async def storage_contract(open_storage: OpenStorage) -> None:
    """Check that a storage keeps every promise of `Storage`.

    ```python
    async def test_my_storage() -> None:
        await storage_contract(lambda ttl: open_my_storage("/tmp/sessions.db", ttl=ttl))
    ```

    Time is that of the run: a `MockClock` fits only where the storage counts its time to live on Trio's clock. In real
    time the suite takes about a second, and longer with a slow storage. Ids are random, so the storage may hold other
    rows, and may be used by others.

    Args:
        open_storage: Opens a storage with a time to live, in s. Called several times.

    Raises:
        AssertionError: Names the rule that was broken.
    """
    await _check_ttl(open_storage)
    async with open_storage(_LONG) as storage:
        await play_moments(storage)
        await _check_ids(storage)
        await _check_large_row(storage)
        await _check_checkpoints(storage)
        for seed in range(_HISTORIES):
            await _check_history(storage, random.Random(seed))
    await _check_lives(open_storage)
    await _check_closed(open_storage)


async def _check_ttl(open_storage: OpenStorage) -> None:
    rule = "ttl: the one that the storage was opened with"
    async with open_storage(_LONG) as storage:
        if storage.ttl != _LONG:
            raise broken(rule, f"it is {storage.ttl!r}, not {_LONG!r}")
    for ttl in (0.0, -1.0, math.nan):
        try:
            async with open_storage(ttl):
                pass
        except ValueError:
            continue
        raise broken("ttl: ValueError where it is not over 0 s", f"{ttl!r} was accepted")


async def _check_lives(open_storage: OpenStorage) -> None:
    for ttl in _TTLS:
        async with open_storage(ttl) as storage:
            await _settle(storage)
            if await play_lives(storage):
                return
    raise broken("every operation ends soon", f"the storage is too slow to be judged with a ttl of {_TTLS[-1]} s")


async def _settle(storage: Storage) -> None:
    """Let the storage connect before time counts."""
    try:
        await storage.load(new_id())
    except SessionNotFound:
        return
    except Exception as exc:
        raise broken("load: SessionNotFound where there is no row", f"it raised {exc!r}") from exc
    raise broken("load: SessionNotFound where there is no row", "it raised nothing")


async def _check_ids(storage: Storage) -> None:
    """Ids that a careless storage mixes up."""
    rule = "every id has a row of its own"
    characters = "".join(map(chr, range(0x21, 0x7F)))
    suffixes = (
        *("", "a", "A", "b", ".", "*", "?", "%", "_", ":", "/", "\\", "'", '"', "{a}", "{b}", "--", characters),
        *(string.ascii_lowercase.ljust(256 - len(new_id()), end) for end in "xy"),
    )
    prefix = new_id()
    rows = [make_row(prefix + suffix, version) for version, suffix in enumerate(suffixes)]
    try:
        for row in rows:
            await storage.create(row)
        for row in rows[1::2]:
            await storage.delete(row.session_id, expected_version=row.version)
        for row in rows[::2]:
            await storage.touch(row.session_id, expected_version=row.version)
        found = [await storage.load(row.session_id) for row in rows[::2]]
    except Exception as exc:
        raise broken(rule, f"with ids of 22 to 256 characters of 0x21-0x7E there was {exc!r}") from exc
    for row, other in zip(rows[::2], found, strict=True):
        if row != other:
            raise broken(rule, f"load of {row.session_id!r} gave {other!r}")


async def _check_large_row(storage: Storage) -> None:
    names = {f"files_{number}": "files" for number in range(10_000)}
    row = attrs.evolve(make_row(new_id(), 1), bindings={"tools": names, "prompts": {}})
    try:
        await storage.create(row)
        await storage.replace(attrs.evolve(row, version=2), expected_version=1)
        found = await storage.load(row.session_id)
    except Exception as exc:
        raise broken("rows may be large", f"with 10 000 names: {exc!r}") from exc
    if found != attrs.evolve(row, version=2):
        raise broken("rows may be large", "a row with 10 000 names came back as another one")


def _operations(session_id: str) -> Mapping[str, Callable[[Storage], Awaitable[object]]]:
    """One operation of each kind, in an order in which all are done."""
    return {
        "create": lambda storage: storage.create(make_row(session_id, 1)),
        "load": lambda storage: storage.load(session_id),
        "replace": lambda storage: storage.replace(make_row(session_id, 2), expected_version=1),
        "touch": lambda storage: storage.touch(session_id),
        "delete": lambda storage: storage.delete(session_id),
    }


async def _check_checkpoints(storage: Storage) -> None:
    for name, operate in _operations(new_id()).items():
        try:
            with assert_checkpoints():
                await operate(storage)
        except Exception as exc:
            raise broken("every operation is a checkpoint", f"{name} raised {exc!r}") from exc


async def _check_closed(open_storage: OpenStorage) -> None:
    session_id = new_id()
    async with open_storage(_LONG) as storage:
        await storage.create(make_row(session_id, 1))
        for time in ("once", "twice"):
            try:
                await storage.aclose()
            except Exception as exc:
                raise broken("aclose may come twice", f"called {time}, it raised {exc!r}") from exc
        for ids in (session_id, new_id()):
            for name, operate in _operations(ids).items():
                await _expect_closed(storage, name, operate)


async def _expect_closed(storage: Storage, name: str, operate: Callable[[Storage], Awaitable[object]]) -> None:
    rule = "after aclose every operation is a StorageError"
    try:
        await operate(storage)
    except StorageError as exc:
        if not isinstance(exc, MetadataConflict):
            return
        raise broken(rule, f"{name} raised {exc!r}") from exc
    except Exception as exc:
        raise broken(rule, f"{name} raised {exc!r}") from exc
    raise broken(rule, f"{name} raised nothing")


@attrs.define(eq=False)
class _Client:
    """One of several clients that use the same row at once."""

    name: str
    storage: Storage
    session_id: str
    ticks: Iterator[int]  # shared by the clients of a history
    choices: random.Random
    events: list[Event] = attrs.field(factory=list)
    _seen: int = 0  # the version that this client knows of

    async def run(self) -> None:
        await self.operate("create")
        for _ in range(_OPERATIONS_PER_CLIENT):
            operation = self.choices.choice(_MIX)
            steps = self.choices.choice((None, None, self.choices.randrange(_STEPS_TO_CANCEL)))
            await self.operate(operation, steps)

    async def operate(self, operation: Operation, cancel_after: int | None = None) -> None:
        """One operation, cancelled after so many steps of the loop if it takes that many: then its answer is lost."""
        version = self._version_for(operation)
        writer = f"{self.name}{len(self.events)}"
        started = next(self.ticks)
        answers: list[Outcome] = []
        async with trio.open_nursery() as nursery:
            if cancel_after is not None:
                nursery.start_soon(_cancel_after, nursery.cancel_scope, cancel_after)
            try:
                answers.append(await self._send(operation, version, writer))
            except Exception as exc:  # noqa: BLE001  # an error that no storage may raise fits no order of the history
                if isinstance(exc, MetadataConflict) or not isinstance(exc, StorageError):
                    answers.append(type(exc))  # any other StorageError counts as a lost answer
            nursery.cancel_scope.cancel()
        if answers:
            self.events.append(Event(operation, version, writer, started, next(self.ticks), answers[0]))
        else:
            self.events.append(Event(operation, version, writer, started, math.inf, LOST))

    def _version_for(self, operation: Operation) -> int | None:
        if operation in ("create", "load"):
            return 0 if operation == "create" else None
        return self._seen if operation == "replace" or self.choices.random() < 0.7 else None

    async def _send(self, operation: Operation, version: int | None, writer: str) -> Outcome:
        if operation == "create":
            await self.storage.create(make_row(self.session_id, 0, writer))
        elif operation == "load":
            found = await self.storage.load(self.session_id)
            self._seen = found.version
            return found.version, found.attributes["writer"]
        elif operation == "replace":
            assert version is not None
            await self.storage.replace(make_row(self.session_id, version + 1, writer), expected_version=version)
            self._seen = version + 1
        else:
            change = self.storage.touch if operation == "touch" else self.storage.delete
            await change(self.session_id, **({} if version is None else {"expected_version": version}))
        return None


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def _check_history(storage: Storage, choices: random.Random) -> None:
    """Several clients at once, some of whose operations are cancelled; then one looks what there is."""
    session_id, ticks = new_id(), itertools.count()
    clients = [_Client(name, storage, session_id, ticks, random.Random(choices.random())) for name in "abc"]
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(client.run)
    await clients[0].operate("load")
    await clients[0].operate("create")
    history = sorted((event for client in clients for event in client.events), key=lambda event: event.started)
    if not is_linearizable(history):
        told = "; ".join(map(_told, history))
        raise broken("operations are atomic, each one step, also where one is cancelled", f"no order explains {told}")


def _told(event: Event) -> str:
    outcome = event.outcome.__name__ if isinstance(event.outcome, type) else event.outcome
    version = "" if event.version is None else f" at {event.version}"
    return f"{event.writer} {event.operation}{version} → {outcome} [{event.started}, {event.ended}]"
