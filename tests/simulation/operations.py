"""The task of each step that has an outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from simulation.ground import Ground
from simulation.history import CancelCaller
from simulation.trace import Began, CallerCancelled, Operated, Outcome, SecretLeaked
from simulation.watchers import SECRET
from trio_vmcp import VmcpError

__all__ = ["Operations"]


@attrs.define(eq=False)
class Operations:
    """
    Attributes:
        scopes: Of the tasks of each instance.
    """

    ground: Ground
    scopes: dict[int, set[trio.CancelScope]] = attrs.field(factory=dict, init=False)

    def start(
        self,
        nursery: trio.Nursery,
        step: Operated,
        instance: int,
        begin: Callable[[], Began],
        work: Callable[[list[Began]], Awaitable[Outcome]],
    ) -> None:
        nursery.start_soon(self.operate, step, instance, begin, work, nursery)

    async def operate(
        self,
        step: Operated,
        instance: int,
        begin: Callable[[], Began],
        work: Callable[[list[Began]], Awaitable[Outcome]],
        step_nursery: trio.Nursery,
    ) -> None:
        """The task of a step. `begin` runs in its first turn, so that earlier events do not count as during it."""
        self.ground.dead.tasks.join(instance)
        if instance in self.ground.dead.tasks.stopped:
            await trio.lowlevel.checkpoint()  # until the instance goes on
        if instance in self.ground.dead.instances:
            return
        doing = [begin()]
        outcome = Outcome(kind="cancelled")
        try:
            with trio.CancelScope() as scope, self.being_under_way(instance, scope):
                if step.cancel is not None:
                    step_nursery.start_soon(self._give_up, scope, step.cancel, doing)
                outcome = await self.outcome_of(work, doing)
        finally:
            self.ground.end(doing.pop().op, outcome)

    async def outcome_of(self, work: Callable[[list[Began]], Awaitable[Outcome]], doing: list[Began]) -> Outcome:
        try:
            return await work(doing)
        except BaseException as exc:  # noqa: ASYNC103  # groups, too: the checks decide which errors are right
            if _is_cancel(exc):
                raise
            self._look_for_secrets(exc)
            return Outcome(  # noqa: ASYNC104  # a cancel was raised again above
                kind="error",
                error=type(exc).__name__,
                is_ours=isinstance(exc, VmcpError),
                may_have_executed=getattr(exc, "may_have_executed", None),
                backend_id=getattr(exc, "backend_id", None),
                text=str(exc),
            )

    def _look_for_secrets(self, exc: BaseException) -> None:
        seen: BaseException | None = exc
        while seen is not None:
            for text in (str(seen), repr(seen)):
                if SECRET.search(text):
                    self.ground.note(
                        SecretLeaked(at=trio.current_time(), where=f"text of {type(seen).__name__}", text=text)
                    )
            seen = seen.__cause__ or seen.__context__

    async def _give_up(self, scope: trio.CancelScope, cancel: CancelCaller, doing: list[Began]) -> None:
        await trio.sleep(cancel.after)
        for _ in range(cancel.checkpoints):
            await trio.lowlevel.checkpoint()
        if doing:
            self.ground.note(CallerCancelled(at=trio.current_time(), op=doing[-1].op))
            scope.cancel()

    @contextmanager
    def being_under_way(self, instance: int, scope: trio.CancelScope) -> Iterator[None]:
        self.scopes[instance].add(scope)
        try:
            yield
        finally:
            self.scopes[instance].discard(scope)


def _is_cancel(exc: BaseException) -> bool:
    """Cancelled, or a group of only that: nurseries of the simulation bundle cancels."""
    return isinstance(exc, trio.Cancelled) or (
        isinstance(exc, BaseExceptionGroup) and all(_is_cancel(inner) for inner in exc.exceptions)
    )
