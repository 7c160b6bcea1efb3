"""A storage that records each operation and runs what a test wants before or after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from trio_vmcp import LocalStorage, SessionMetadata, SessionNotFound, Storage


@attrs.define(eq=False)
class ScriptedStorage:
    """A `Storage` that records each operation, and runs a hook before or after it.

    Attributes:
        before, after: By operation; may sleep, or raise in the storage's place.
        calls: How often each operation was called.
        ids: Of all sessions that were created through it.
    """

    inner: Storage = attrs.field(factory=LocalStorage)
    before: dict[str, Callable[[], Awaitable[object]]] = attrs.field(factory=dict)
    after: dict[str, Callable[[], Awaitable[object]]] = attrs.field(factory=dict)
    calls: Counter[str] = attrs.field(factory=Counter)
    ids: set[str] = attrs.field(factory=set)

    @property
    def ttl(self) -> float:
        return self.inner.ttl

    async def create(self, metadata: SessionMetadata) -> None:
        self.ids.add(metadata.session_id)
        await self._do("create", lambda: self.inner.create(metadata))

    async def load(self, session_id: str) -> SessionMetadata:
        row: SessionMetadata = await self._do("load", lambda: self.inner.load(session_id))
        return row

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        await self._do("replace", lambda: self.inner.replace(metadata, expected_version=expected_version))

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._do("touch", lambda: self.inner.touch(session_id, expected_version=expected_version))

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._do("delete", lambda: self.inner.delete(session_id, expected_version=expected_version))

    async def aclose(self) -> None:
        await self._do("aclose", self.inner.aclose)

    async def rows(self) -> list[SessionMetadata]:
        """All rows."""
        found: list[SessionMetadata] = []
        for session_id in sorted(self.ids):
            try:
                found.append(await self.inner.load(session_id))
            except SessionNotFound:
                continue
        return found

    async def _do(self, operation: str, obey: Callable[[], Awaitable[Any]]) -> Any:
        self.calls[operation] += 1
        if operation in self.before:
            await self.before[operation]()
        result = await obey()
        if operation in self.after:
            await self.after[operation]()
        return result
