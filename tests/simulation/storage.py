"""The storage of a simulated world: a `LocalStorage` behind the faults of `FailStorage` steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from simulation.history import FailStorage, Operation
from trio_vmcp import LocalStorage, SessionMetadata, SessionNotFound

__all__ = ["FaultyStorage"]

T = TypeVar("T")


@attrs.define(eq=False)
class FaultyStorage:
    """A `Storage`.

    Attributes:
        on_failure: Called for every fault that strikes, with the operation and the session's id.
    """

    on_failure: Callable[[str, str], None]
    _inner: LocalStorage = attrs.field(factory=LocalStorage, init=False)
    _faults: list[FailStorage] = attrs.field(factory=list, init=False)
    _ids: set[str] = attrs.field(factory=set, init=False)

    @property
    def ttl(self) -> float:
        return self._inner.ttl

    def fail(self, fault: FailStorage) -> None:
        """Add a fault; of several for one operation, the oldest strikes."""
        self._faults.append(fault)

    async def create(self, metadata: SessionMetadata) -> None:
        self._ids.add(metadata.session_id)
        await self._do("create", metadata.session_id, lambda: self._inner.create(metadata))

    async def load(self, session_id: str) -> SessionMetadata:
        return await self._do("load", session_id, lambda: self._inner.load(session_id))

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        await self._do(
            "replace", metadata.session_id, lambda: self._inner.replace(metadata, expected_version=expected_version)
        )

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._inner.touch(session_id, expected_version=expected_version)  # no history lasts until a touch is due

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._do("delete", session_id, lambda: self._inner.delete(session_id, expected_version=expected_version))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def row(self, session_id: str) -> SessionMetadata | None:
        """The stored row, past all faults."""
        try:
            return await self._inner.load(session_id)
        except SessionNotFound:
            return None

    async def rows(self) -> list[SessionMetadata]:
        found = [await self.row(session_id) for session_id in sorted(self._ids)]
        return [row for row in found if row is not None]

    async def _do(self, operation: Operation, session_id: str, obey: Callable[[], Awaitable[T]]) -> T:
        fault = next((fault for fault in self._faults if fault.operation == operation), None)
        if fault is None:
            return await obey()
        index = self._faults.index(fault)
        self._faults[index : index + 1] = [attrs.evolve(fault, times=fault.times - 1)] if fault.times > 1 else []
        self.on_failure(operation, session_id)
        if fault.how == "slow":
            await trio.sleep(fault.seconds)
        if fault.how == "fail":
            raise ConnectionError(f"the storage is away, and was asked to {operation}")
        result = await obey()
        if fault.how == "lose":
            raise ConnectionError(f"the storage went away after it was asked to {operation}")
        return result
