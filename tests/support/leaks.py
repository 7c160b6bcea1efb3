"""A pytest plugin: a test that leaves something behind is an error, even if it passes.

Looked for: tasks in Trio's system nursery, async generators that were neither exhausted nor closed, tokens of a
capacity limiter, file descriptors, and warnings at garbage collection (a coroutine that was never awaited, a socket
that was never closed). Trio itself lets no other task outlive its run.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from functools import partial, update_wrapper
from typing import Any, TypeAlias

import attrs
import pytest
import trio

from trio_vmcp._client.http.connection_limit import Slots

Limiter: TypeAlias = trio.CapacityLimiter | Slots

_FDS = "/proc/self/fd"


@attrs.define(eq=False)
class LeakWatch:
    """Watches `trio.run` and limiters between `begin` and `end`.

    Attributes:
        found: The leaks so far; the report of a test empties it.
    """

    found: list[str] = attrs.field(factory=list, init=False)
    _limiters: list[tuple[Limiter, str]] = attrs.field(factory=list, init=False)
    _undo: list[Callable[[], None]] = attrs.field(factory=list, init=False)

    def begin(self) -> None:
        for owner, name, replacement in (
            (trio, "run", self._watched_run(trio.run)),
            (trio.CapacityLimiter, "__init__", self._watched_init(trio.CapacityLimiter.__init__)),
            (Slots, "__init__", self._watched_init(Slots.__init__)),
        ):
            self._undo.append(partial(setattr, owner, name, getattr(owner, name)))
            setattr(owner, name, replacement)

    def end(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _watched_run(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(async_fn: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
            async def main(*args: Any) -> Any:
                before = set(_living_tasks())
                generators = _watch_generators()
                try:
                    return await async_fn(*args)
                finally:  # before Trio itself cancels system tasks and closes generators
                    await _abandoned_threads_end()  # noqa: ASYNC102  # shielded and bounded
                    self.found += [f"task {task.name}" for task in _living_tasks() if task not in before]
                    self.found += [f"async generator {name}" for name in _unfinished(generators)]

            outer, self._limiters = self._limiters, []  # a run inside a run has limiters of its own
            try:
                return run(update_wrapper(main, getattr(async_fn, "func", async_fn)), *args, **options)
            finally:
                self.found += _borrowed(self._limiters)
                self._limiters = outer

        return watched

    def _watched_init(self, init: Callable[..., None]) -> Callable[..., None]:
        def watched(limiter: Limiter, total_tokens: float) -> None:
            init(limiter, total_tokens)
            made = sys._getframe(1)
            # Strong references: a limiter that was collected with its tokens could not be examined.
            self._limiters.append((limiter, f"{made.f_code.co_filename}:{made.f_lineno}"))

        return watched


async def _abandoned_threads_end() -> None:
    """Trio gives up on a thread that looks a name up for a cancelled task; it ends by itself, and keeps its token until
    then. Looked at by the real clock, since threads know no other.
    """
    limiter = trio.to_thread.current_default_thread_limiter()
    with trio.CancelScope(shield=True):
        for _ in range(100):
            if not limiter.borrowed_tokens:
                break
            time.sleep(0.01)  # noqa: TID251, ASYNC251  # a thread ends by no virtual clock
            await trio.lowlevel.checkpoint()


def _living_tasks() -> Iterator[trio.lowlevel.Task]:
    """Every task of this run, the calling one included."""
    root = trio.lowlevel.current_root_task()
    tasks = [] if root is None else [root]
    while tasks:
        task = tasks.pop()
        yield task
        for nursery in task.child_nurseries:
            tasks += nursery.child_tasks


def _watch_generators() -> weakref.WeakSet[AsyncGenerator[Any, Any]]:
    """Collects the async generators that begin in this run from now on. Trio resets the hooks when the run ends."""
    begun: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
    firstiter = sys.get_asyncgen_hooks().firstiter

    def note(generator: AsyncGenerator[Any, Any]) -> None:
        begun.add(generator)
        if firstiter is not None:
            firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=note)
    return begun


def _unfinished(generators: weakref.WeakSet[AsyncGenerator[Any, Any]]) -> list[str]:
    return [str(generator.__qualname__) for generator in generators if generator.ag_frame is not None]  # type: ignore[attr-defined]


def _borrowed(limiters: list[tuple[Limiter, str]]) -> Iterator[str]:
    for limiter, made in limiters:
        if limiter.borrowed_tokens:
            borrowers = limiter.statistics().borrowers if isinstance(limiter, trio.CapacityLimiter) else "requests"
            yield f"{limiter.borrowed_tokens} tokens of the limiter made at {made}, by {borrowers!r}"


def open_descriptors() -> dict[int, str]:
    """The target of each file descriptor of this process; empty on systems that do not tell."""
    found: dict[int, str] = {}
    if os.path.isdir(_FDS):
        for fd in os.listdir(_FDS):
            try:
                found[int(fd)] = os.readlink(f"{_FDS}/{fd}")
            except FileNotFoundError:  # the descriptor that listdir used
                continue
    return found


def left_open(before: dict[int, str]) -> list[str]:
    """Descriptors that are open now, and were closed or open for something else before."""
    return [f"file descriptor {fd}: {what}" for fd, what in open_descriptors().items() if before.get(fd) != what]


def complaints_of_garbage() -> list[str]:
    """Collect garbage, and return the warnings of finalizers, which a test cannot catch.

    Objects that survive are not examined again until the end of the run: with the whole suite in memory a collection
    would take as long as a test.
    """
    heard: list[str] = []

    def listen(unraisable: sys.UnraisableHookArgs, /) -> None:
        heard.append(f"{unraisable.object!r}: {unraisable.exc_type.__name__}: {unraisable.exc_value}")

    outer, sys.unraisablehook = sys.unraisablehook, listen
    try:
        gc.collect()
        gc.freeze()
    finally:
        sys.unraisablehook = outer
    return heard


WATCH = pytest.StashKey[LeakWatch]()
_BEFORE = pytest.StashKey[dict[int, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[WATCH] = LeakWatch()
    config.stash[WATCH].begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[WATCH].end()
    gc.unfreeze()  # pytest collects once more, and reports


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_BEFORE] = open_descriptors()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """After the teardown of all fixtures, nothing may be left."""
    outcome = yield
    watch = item.config.stash[WATCH]
    complaints = complaints_of_garbage()  # first: finalizers close their descriptors
    leaks = watch.found + complaints + left_open(item.stash[_BEFORE])
    watch.found = []
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
    return outcome
