"""Starting tasks: protected from a Ctrl-C (`_interrupts.py` says why), and most of them in a clean context. And
describing a crash without the texts of its errors.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import TypeVarTuple

import trio

from trio_vmcp.errors import BackendError

__all__ = ["crash_of_client", "describe_crash", "require_trio", "start_clean", "start_if_open", "start_task"]

Args = TypeVarTuple("Args")


def require_trio() -> None:
    """
    Raises:
        RuntimeError: No task of Trio is running: this is asyncio, or no event loop at all.
    """
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        pass
    else:
        return
    raise RuntimeError(
        "trio_vmcp runs on Trio, and this is no task of Trio (under asyncio?): start the program with "
        "trio.run(main), or with anyio.run(main, backend='trio')"
    )


def start_task(nursery: trio.Nursery, function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
    """`nursery.start_soon` for every task of the library: a Ctrl-C does not strike this task, but the main one."""
    nursery.start_soon(_run_protected, function, args, name=_task_name(function))


def _task_name(function: Callable[..., object]) -> str:
    """What Trio would call the task, as one text for all tasks of the function: there are thousands."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return sys.intern(f"{function.__module__}.{name}" if name else repr(function))


@trio.lowlevel.enable_ki_protection
async def _run_protected(function: Callable[[*Args], Awaitable[object]], args: tuple[*Args]) -> None:
    running = function(*args)
    del function, args  # not kept for as long as the task runs
    await running


def start_clean(nursery: trio.Nursery, function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
    """`start_task` in an empty context: a task that outlives a request must not carry its identity or trace."""
    Context().run(lambda: start_task(nursery, function, *args))


def start_if_open(nursery: trio.Nursery, function: Callable[[*Args], Awaitable[object]], *args: *Args) -> bool:
    """`start_clean` from outside of the nursery, which may have ended by now; then nothing is started.

    Returns:
        Whether the task was started.
    """
    try:
        start_clean(nursery, function, *args)
    except RuntimeError:  # "Nursery is closed to new arrivals": there is no other public sign of it
        return False
    return True


def describe_crash(crash: BaseException) -> str:
    """The types of the errors in a crash. Their texts are left out, since they may quote bytes of a backend."""
    if isinstance(crash, BaseExceptionGroup):
        kinds = dict.fromkeys(describe_crash(exc) for exc in crash.exceptions)
        return ", ".join(kinds)
    return type(crash).__name__


def crash_of_client(backend_id: str, method: str, crash: Exception, *, may_have_executed: bool = False) -> BackendError:
    """The failure of a request that a client of the user's own has answered with an error which is no BackendError."""
    detail = f"could not be asked {method!r}: its client raised {describe_crash(crash)}"
    return BackendError(backend_id, detail, may_have_executed=may_have_executed)
