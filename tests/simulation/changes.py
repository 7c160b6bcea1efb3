"""What callers change of an open session: its backends, attributes, level of log messages and subscriptions."""

from __future__ import annotations

import attrs
import trio

from simulation.ground import UNKNOWN_NAME, Ground, Life, state_of
from simulation.history import AddBackend, RemoveBackend, SetLogLevel, Subscribe, WatchChanges
from simulation.identities import identity_of_calls
from simulation.storage import SET_BY
from simulation.trace import Began, Outcome, Removing, What
from trio_vmcp import SessionState

__all__ = ["Changes"]


@attrs.define(eq=False)
class Changes:
    ground: Ground

    def begin_member(self, what: What, step: AddBackend | RemoveBackend, life: Life) -> Began:
        found = state_of(life.session, self.ground.history.backends[step.backend].id)
        return self.ground.begin(what, step=step, life=life.op, state=life.session.state.name, found=found)

    def begin_subscribe(self, step: Subscribe, life: Life) -> Began:
        offered = life.session.routing_table.resources
        name = sorted(offered)[step.pick % len(offered)] if offered else UNKNOWN_NAME
        target = offered.get(name)
        return self.ground.begin(
            "subscribe",
            step=step,
            life=life.op,
            state=life.session.state.name,
            name=name,
            target=None if target is None else (target.backend_id, target.name),
            found="" if target is None else state_of(life.session, target.backend_id),
        )

    async def add(self, step: AddBackend, life: Life, doing: list[Began]) -> Outcome:
        await life.session.add_backend(self.ground.pass_on(step.backend, doing[-1].op))
        return Outcome(kind="ok")

    async def remove(self, step: RemoveBackend, life: Life, doing: list[Began]) -> Outcome:
        backend_id = self.ground.history.backends[step.backend].id
        if doing[-1].found and life.session.state is SessionState.OPEN:
            limit = self.ground.history.settings.drain_timeout if step.drain_timeout is None else step.drain_timeout
            self.ground.note(
                Removing(
                    at=trio.current_time(),
                    op=doing[-1].op,
                    life=life.op,
                    backend_id=backend_id,
                    drain_timeout=limit,
                    session_id=life.session.backend_sessions.get(backend_id),
                )
            )
        await life.session.remove_backend(backend_id, drain_timeout=step.drain_timeout)
        return Outcome(kind="ok")

    async def set_attributes(self, life: Life, doing: list[Began]) -> Outcome:
        await life.session.set_attributes({SET_BY: str(doing[-1].op)})
        return Outcome(kind="ok")

    async def set_level(self, step: SetLogLevel, life: Life, doing: list[Began]) -> Outcome:
        await life.session.set_log_level(step.level, caller=identity_of_calls(life.identity))
        return Outcome(kind="ok")

    async def subscribe(self, step: Subscribe, life: Life, doing: list[Began]) -> Outcome:
        ask = life.session.subscribe_resource if step.wanted else life.session.unsubscribe_resource
        await ask(doing[-1].name, caller=identity_of_calls(life.identity))
        return Outcome(kind="ok")

    async def watch(self, step: WatchChanges, life: Life, doing: list[Began]) -> Outcome:
        with trio.move_on_after(step.seconds):
            async with life.session.changes() as changes:
                async for _ in changes:
                    pass
        return Outcome(kind="ok")
