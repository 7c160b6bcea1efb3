"""The storage of a simulated world: one `LocalStorage` for all instances, each instance's way to it, and faults."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import TypeVar

import attrs
import trio

from simulation.history import FailStorage, HealStorage, Operation
from simulation.trace import Event, StorageFailed, Stored
from trio_vmcp import LocalStorage, SessionMetadata, SessionNotFound

__all__ = ["SET_BY", "SharedStorage", "StorageWay"]

T = TypeVar("T")

SET_BY = "set by"  # the attribute that names the operation
LIE = 999  # at the end of a session's id: no history has as many


@attrs.define(eq=False)
class SharedStorage:
    """What all instances share, and a record of everything that is done.

    Attributes:
        number_of: A session's number, from its id.
        busy_until: Operations that no cancel stops last until this time.
    """

    ttl: float
    note: Callable[[Event], None]
    number_of: Callable[[str], int]
    busy_until: float = attrs.field(default=0.0, init=False)
    inner: LocalStorage = attrs.field(init=False)
    faults: list[FailStorage] = attrs.field(factory=list, init=False)
    # The latest row of each id that was stored, and when it ends; deleted ones are not here.
    _rows: dict[str, tuple[SessionMetadata, float]] = attrs.field(factory=dict, init=False)
    _numbers: dict[tuple[str, datetime], int] = attrs.field(factory=dict, init=False)
    _next: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    def __attrs_post_init__(self) -> None:
        self.inner = LocalStorage(self.ttl)

    def fail(self, fault: FailStorage) -> None:
        self.faults.append(fault)

    def heal(self, step: HealStorage) -> None:
        self.faults = [fault for fault in self.faults if step.instance not in (None, fault.instance)]

    def strike(self, operation: Operation, instance: int) -> FailStorage | None:
        """The fault that strikes this operation, if there is one."""
        for index, fault in enumerate(self.faults):
            if fault.operation in (operation, None) and fault.instance in (instance, None):
                rest = [attrs.evolve(fault, times=fault.times - 1)] if fault.times > 1 else []
                self.faults[index : index + 1] = rest
                return fault
        return None

    async def row(self, session_id: str) -> SessionMetadata | None:
        """The stored row, past all faults."""
        try:
            return await self.inner.load(session_id)
        except SessionNotFound:
            return None

    async def rows(self) -> list[SessionMetadata]:
        found = [await self.row(session_id) for session_id in sorted(self._rows)]
        return [row for row in found if row is not None]

    def row_number(self, session_id: str, created_at: datetime) -> int:
        return self._number(session_id, created_at)

    def note_stored(self, operation: Operation, instance: int, row: SessionMetadata) -> None:
        if operation != "load":
            self._rows[row.session_id] = row, trio.current_time() + self.ttl
        self.note(
            Stored(
                at=trio.current_time(),
                instance=instance,
                operation=operation,
                session=self.number_of(row.session_id),
                row=self._number(row.session_id, row.created_at),
                version=row.version,
                mark=self._number(row.session_id, row.used_at),
                records=tuple((record.backend_id, record.session_id) for record in row.backends),
                tools=tuple(sorted(row.bindings["tools"].items())),
                attributes=int(row.attributes.get(SET_BY, "0")),
            )
        )

    def note_touched(self, instance: int, session_id: str) -> None:
        row, _ = self._rows[session_id]
        self.note_stored("touch", instance, row)

    def note_deleted(self, instance: int, session_id: str) -> None:
        row, ends_at = self._rows.pop(session_id, (None, 0.0))
        if row is not None and trio.current_time() < ends_at:
            self.note_stored("delete", instance, row)
            del self._rows[session_id]
            return
        session = self.number_of(session_id)
        self.note(Stored(at=trio.current_time(), instance=instance, operation="delete", session=session, row=None))

    def _number(self, session_id: str, moment: datetime) -> int:
        """Of a wall-clock time, which is another one in each run."""
        if (session_id, moment) not in self._numbers:
            self._numbers[session_id, moment] = next(self._next)
        return self._numbers[session_id, moment]


@attrs.define(eq=False)
class StorageWay:
    """The `Storage` of one instance.

    Attributes:
        is_cut: The instance is gone: nothing reaches the storage any more.
    """

    shared: SharedStorage
    instance: int
    is_cut: bool = attrs.field(default=False, init=False)

    @property
    def ttl(self) -> float:
        return self.shared.ttl

    async def create(self, metadata: SessionMetadata) -> None:
        async def create() -> None:
            await self.shared.inner.create(metadata)
            self.shared.note_stored("create", self.instance, metadata)

        await self._do_or_fail("create", metadata.session_id, create)

    async def load(self, session_id: str) -> SessionMetadata:
        async def load() -> SessionMetadata:
            row = await self.shared.inner.load(session_id)
            self.shared.note_stored("load", self.instance, row)
            return row

        fault = self.shared.strike("load", self.instance)
        row = await self._do("load", session_id, load, fault)
        return attrs.evolve(row, session_id=f"{session_id}{LIE}") if fault and fault.how == "lie" else row

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        async def replace() -> None:
            await self.shared.inner.replace(metadata, expected_version=expected_version)
            self.shared.note_stored("replace", self.instance, metadata)

        await self._do_or_fail("replace", metadata.session_id, replace)

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        async def touch() -> None:
            await self.shared.inner.touch(session_id, expected_version=expected_version)
            self.shared.note_touched(self.instance, session_id)

        await self._do_or_fail("touch", session_id, touch)

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        async def delete() -> None:
            await self.shared.inner.delete(session_id, expected_version=expected_version)
            self.shared.note_deleted(self.instance, session_id)

        await self._do_or_fail("delete", session_id, delete)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _do_or_fail(self, operation: Operation, session_id: str, obey: Callable[[], Awaitable[None]]) -> None:
        await self._do(operation, session_id, obey, self.shared.strike(operation, self.instance))

    async def _do(
        self, operation: Operation, session_id: str, obey: Callable[[], Awaitable[T]], fault: FailStorage | None
    ) -> T:
        if fault is None:
            return await self._obey(obey)
        session = self.shared.number_of(session_id)
        self.shared.note(
            StorageFailed(at=trio.current_time(), operation=operation, session=session, instance=self.instance)
        )
        if fault.how == "late":
            self.shared.busy_until = max(self.shared.busy_until, trio.current_time() + fault.seconds)
        if fault.how in ("slow", "late"):
            with trio.CancelScope(shield=fault.how == "late"):
                await trio.sleep(fault.seconds)
                return await self._obey(obey)
        if fault.how == "fail":
            raise ConnectionError(f"the storage is away, and was asked to {operation}")
        result = await self._obey(obey)
        if fault.how == "silent":
            await trio.sleep_forever()
        if fault.how == "lose":
            raise ConnectionError(f"the storage went away after it was asked to {operation}")
        return result

    async def _obey(self, obey: Callable[[], Awaitable[T]]) -> T:
        if self.is_cut:
            raise ConnectionError("the instance is gone")
        return await obey()
