"""The storage as a session sees it: every operation is bounded, answers are checked, and StorageError is the one kind
of failure.

An operation runs in a task of its own. A storage that works in a thread, or shields its unwinding, cannot be cancelled:
the session goes on after `storage_timeout`, and the task ends when the storage lets it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar

import attrs
import trio

from trio_vmcp._interrupts import EXITS
from trio_vmcp.errors import MetadataConflict, SessionExists, SessionNotFound, StorageError, VmcpError
from trio_vmcp.metadata import SCHEMA_VERSION, SessionMetadata, UnreadableMetadata
from trio_vmcp.storage import Storage

__all__ = ["RowStorage"]

T = TypeVar("T")

# What an operation may answer beside StorageError. Anything else would be taken for what it says elsewhere: callers
# take SessionNotFound out of `create`, say, for the end of a session.
_FENCED = (MetadataConflict, SessionNotFound)
_ANSWERS: dict[str, tuple[type[VmcpError], ...]] = {
    "store": (SessionExists,),
    "load": (SessionNotFound,),
    "update": _FENCED,
    "touch": _FENCED,
    "delete": _FENCED,
}

MOST_CAUSES = 10  # one behind the other; they may be a ring
# Steps of the loop, within which a storage that can be cancelled unwinds: no task of its own outlives the session.
MOST_UNWINDING = 30


@attrs.define(eq=False)
class _Operation(Generic[T]):
    """One operation of the storage, in a task of its own, which the caller of `run` may leave behind. What ends the
    program comes out of `run`, or goes to `_take_late_exit` if the caller has left.
    """

    _start: Callable[[], Awaitable[T]]
    _take_late_exit: Callable[[BaseException], None]
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _done: trio.Event = attrs.field(factory=trio.Event, init=False)
    _results: list[T] = attrs.field(factory=list, init=False)
    _error: BaseException | None = attrs.field(default=None, init=False)
    _was_left: bool = attrs.field(default=False, init=False)

    async def run(self, timeout: float) -> T:
        """Raises TooSlowError where there was no answer in time."""
        # A system task, since the nursery of a session or factory would wait for a storage that cannot be cancelled.
        trio.lowlevel.spawn_system_task(self._serve, context=Context())
        try:
            with trio.move_on_after(timeout):
                await self._done.wait()
        finally:
            if not self._done.is_set():
                self._scope.cancel(reason="storage_timeout, or the session gave up")
                await self._unwind()  # noqa: ASYNC102  # shielded, and bounded in steps
                self._was_left = not self._done.is_set()
            if isinstance(self._error, EXITS):
                raise self._error  # also where the caller is cancelled
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # else: a reference cycle
        if not self._results:
            raise trio.TooSlowError
        return self._results[0]

    async def _unwind(self) -> None:
        """Wait for a task that was cancelled, for no time at all by the clock."""
        with trio.CancelScope(shield=True):
            for _ in range(MOST_UNWINDING):
                if self._done.is_set():
                    return
                await trio.lowlevel.checkpoint()

    async def _serve(self) -> None:
        try:
            with self._scope:
                self._results.append(await self._start())
        except BaseException as exc:  # noqa: ASYNC103  # raised by `run`, in the task that asked
            if isinstance(exc, trio.Cancelled):
                raise  # the run of Trio ends
            if self._was_left and isinstance(exc, EXITS):
                self._take_late_exit(exc)
            self._error = exc
        finally:
            self._done.set()


def _ignore(operation: str, error: StorageError) -> None: ...


def _takes_version(method: Callable[..., Any]) -> bool:
    """Whether a storage's `touch` or `delete` has the keyword; storages written before there was one have not."""
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):  # no Python function
        return True
    kinds = {parameter.kind for parameter in parameters.values()}
    return "expected_version" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _unreadable_behind(error: BaseException) -> UnreadableMetadata | None:
    """What made a storage raise its own error for a row that cannot be read, if the storage says so with `from`. From
    the error alone it cannot be told that the storage is not away, and then the session must not be lost.
    """
    for _ in range(MOST_CAUSES):
        if error.__cause__ is None:
            return None
        error = error.__cause__
        if isinstance(error, UnreadableMetadata):
            return error
    return None


@attrs.define(eq=False)
class RowStorage:
    """A storage behind its bounds.

    Every method raises StorageError where the storage is away, gives no answer in time, or answers what was not asked.
    """

    _storage: Storage = attrs.field(alias="storage", repr=False)
    _timeout: float = attrs.field(alias="timeout")
    # Gets the operation and the error.
    _on_failure: Callable[[str, StorageError], None] = attrs.field(default=_ignore, alias="on_failure", repr=False)
    # Came out of an operation that its caller had left behind; the next operation raises it.
    _late_exit: BaseException | None = attrs.field(default=None, init=False, repr=False)

    @property
    def ttl(self) -> float:
        return self._storage.ttl

    async def create(self, row: SessionMetadata, *, within: float) -> None:
        """Send no later than now, and give up after `within` s."""
        await self._do("store", lambda: self._storage.create(row), min(within, self._timeout))

    async def load(self, session_id: str) -> SessionMetadata:
        return await self._do("load", lambda: self._load_checked(session_id))

    async def _load_checked(self, session_id: str) -> SessionMetadata:
        row = await self._storage.load(session_id)
        if not isinstance(row, SessionMetadata):
            raise StorageError("the storage answered what is no SessionMetadata, when it was asked for a session")
        if row.session_id != session_id:
            raise StorageError("the storage answered with the metadata of another session than it was asked for")
        if row.schema_version != SCHEMA_VERSION:
            raise UnreadableMetadata(
                f"the storage answered with metadata of schema_version={row.schema_version!r}, not {SCHEMA_VERSION}"
            )
        return row

    async def replace(self, row: SessionMetadata, *, expected_version: int) -> None:
        await self._do("update", lambda: self._storage.replace(row, expected_version=expected_version))

    async def touch(self, session_id: str, *, expected_version: int | None) -> None:
        if expected_version is None:
            await self._do("touch", lambda: self._storage.touch(session_id))
        else:
            await self._fenced("touch", self._storage.touch, session_id, expected_version)

    async def delete(self, session_id: str, *, expected_version: int) -> None:
        await self._fenced("delete", self._storage.delete, session_id, expected_version)

    async def _fenced(
        self, step: str, method: Callable[..., Awaitable[None]], session_id: str, expected_version: int
    ) -> None:
        if _takes_version(method):
            await self._do(step, partial(method, session_id, expected_version=expected_version))
            return
        try:  # the next best: a writer in between goes unnoticed
            stored = await self.load(session_id)
        except SessionNotFound:
            pass  # it is for the method to say
        else:
            if stored.version != expected_version:
                raise MetadataConflict(session_id)
        await self._do(step, partial(method, session_id))

    async def _do(self, step: str, start: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        if self._late_exit is not None:
            late, self._late_exit = self._late_exit, None
            raise late
        try:
            return await self._translated(step, _Operation(start, self._note_late_exit), timeout)
        except MetadataConflict:
            raise
        except StorageError as error:
            self._on_failure(step, error)
            raise

    async def _translated(self, step: str, operation: _Operation[T], timeout: float | None) -> T:
        try:
            return await operation.run(self._timeout if timeout is None else timeout)
        except trio.TooSlowError as exc:
            failure = f"the storage did not {step} the session within {self._timeout} s (storage_timeout)"
            raise StorageError(failure) from exc
        except Exception as exc:
            if isinstance(exc, (UnreadableMetadata, *_ANSWERS[step])):
                raise
            unreadable = _unreadable_behind(exc)
            if unreadable is not None:
                raise UnreadableMetadata(unreadable.detail) from exc
            if isinstance(exc, StorageError) and not isinstance(exc, MetadataConflict):
                raise
            raise StorageError(f"the storage failed to {step} the session: {type(exc).__name__}") from exc

    def _note_late_exit(self, error: BaseException) -> None:
        self._late_exit = error
