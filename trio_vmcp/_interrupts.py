"""KeyboardInterrupt and SystemExit: they end the program, and come out as themselves.

A Ctrl-C is raised wherever Python is at that moment, except in protected frames: there Trio keeps it for the next
checkpoint of the main task (trio, `trio.lowlevel.enable_ki_protection`). Protected are:

- every task that the library starts (`_nursery.start`), with what it calls;
- every call, opening and close of a caller, by the decorator on the method that admits or owns, at no cost for a call;
- the context managers of the library (`protected_manager`), as those of Trio are.

Not protected are handlers and progress callbacks (`run_interruptible`), which may compute for long.

Other code of the user's (a connector, a storage, `auth`, a transport) may raise either of the two in a task of a
session. The factory then raises it in its own nursery: that cancels the body of the factory, and all sessions close in
order, as they do when the body is cancelled from outside.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Final, Generic, ParamSpec, Protocol, TypeVar

import trio

__all__ = [
    "EXITS",
    "closed_in_order",
    "exit_in",
    "forwarding_exits",
    "plain_exit",
    "protected_manager",
    "run_interruptible",
]

EXITS: Final = (KeyboardInterrupt, SystemExit)

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def exit_in(error: BaseException | None) -> BaseException | None:
    """What ends the program in this error or group: the first that is neither an Exception nor a cancellation."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(exit_in, error.exceptions)), None)
    return None if isinstance(error, Exception | trio.Cancelled | GeneratorExit) else error


@contextmanager
def forwarding_exits(raise_exit: Callable[[BaseException], object]) -> Iterator[None]:
    """Hand a KeyboardInterrupt or SystemExit from the block to `raise_exit`, and go on behind the block."""
    try:
        yield
    except* EXITS as group:
        raise_exit(_first(group))


def plain_exit(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for the group of a nursery: an exit itself, if the group holds no error beside it."""
    found = exit_in(group)
    return group if found is None or group.subgroup(Exception) is not None else found


def _is_cancellation(error: BaseException) -> bool:
    """Nothing but Cancelled."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancellation, error.exceptions))
    return isinstance(error, trio.Cancelled)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found = exit_in(group)
    assert found is not None
    return found


@trio.lowlevel.disable_ki_protection
async def run_interruptible(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run code of the user's that owns nothing of ours: a Ctrl-C ends it at once, also while it computes."""
    return await function(*args, **kwargs)


class Closable(Protocol):
    """Owns tasks in a nursery, and ends them in an order of its own."""

    async def close(self, *, is_exit: bool) -> None:
        """
        Args:
            is_exit: The program ends.
        """
        ...


ClosableT = TypeVar("ClosableT", bound=Closable)


@asynccontextmanager
async def closed_in_order(make: Callable[[trio.Nursery], ClosableT]) -> AsyncIterator[ClosableT]:
    """Make an object that owns tasks in a nursery, and close both in this order, however the block ends.

    The error of the block comes out as itself; an exit wins over it, wherever it struck. A task of the object that
    crashes cancels the block: what comes out then is the crash, and not that cancellation.
    """
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            made = make(nursery)
            try:
                yield made
            except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised below: the nursery would group it
                body_error = exc
            await made.close(is_exit=exit_in(body_error) is not None)
            nursery.cancel_scope.cancel(reason=f"{type(made).__name__} is closed")
    except BaseExceptionGroup as group:
        # Either wins over what the body ended with, which may be the Cancelled that it has caused.
        found = exit_in(group)
        if found is None and (body_error is None or (_is_cancellation(body_error) and not _is_cancellation(group))):
            body_error = None
            raise
        body_error = found or body_error
    finally:
        if body_error is not None:
            raise body_error  # it wins over a cancel that came while the object closed


class _ProtectedManager(AbstractAsyncContextManager[T_co], Generic[T_co]):
    def __init__(self, manager: AbstractAsyncContextManager[T_co]) -> None:
        self._manager = manager

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> T_co:
        return await self._manager.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  # the manager bounds its waits


def protected_manager(
    make: Callable[P, AbstractAsyncContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Protect the entering and leaving of what a function decorated with `asynccontextmanager` makes. The block between
    is the caller's, and is not protected.
    """

    @functools.wraps(make)
    def make_protected(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _ProtectedManager(make(*args, **kwargs))

    return make_protected
