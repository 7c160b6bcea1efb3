"""Sessions that are opened and restored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from simulation.ground import Ground, Life, names_of
from simulation.history import Open, Restore
from simulation.identities import ALICE
from simulation.trace import Began, Opened, Outcome
from trio_vmcp import Backend, Identity, Session

__all__ = ["Openings"]


@attrs.define(eq=False)
class Openings:
    ground: Ground

    async def make(self, step: Open, doing: list[Began]) -> Outcome:
        identity = ALICE if step.bound else None
        factory = self.ground.factories[step.instance]
        with self._being_opened(step.session):
            session = await factory.make_session(
                self._members(step.backends, doing[-1].op),
                identity=identity,
                session_id=self.ground.session_id(step.session),
                prefer_era=step.prefer,
            )
            self._opened(doing[-1].op, step, identity, session)
        return Outcome(kind="ok")

    async def hold(self, step: Open, doing: list[Began]) -> Outcome:
        identity = ALICE if step.bound else None
        factory = self.ground.factories[step.instance]
        opening = factory.open_session(
            self._members(step.backends, doing[-1].op),
            identity=identity,
            session_id=self.ground.session_id(step.session),
            prefer_era=step.prefer,
        )
        with self._being_opened(step.session):
            session = await opening.__aenter__()
            life = self._opened(doing[-1].op, step, identity, session)
        self.ground.end(doing.pop().op, Outcome(kind="ok"))
        doing.append(self.ground.begin("hold", life=life.op))
        try:
            await self.ground.over.wait()
        finally:
            self.ground.ask_to_close(doing[-1].op, life, terminate=True)
            await opening.__aexit__(*sys.exc_info())  # noqa: ASYNC102  # bounded by the library: that is the test
        return Outcome(kind="ok")

    async def restore(self, step: Restore, doing: list[Began]) -> Outcome:
        opened = (each for each in self.ground.history.steps if isinstance(each, Open) and each.session == step.session)
        identity = ALICE if any(each.bound for each in opened) else None
        with self._being_opened(step.session):
            session = await self.ground.factories[step.instance].restore_session(
                self.ground.session_id(step.session),
                self._members(step.backends, doing[-1].op),
                identity=identity,
                prefer_era=step.prefer,
            )
            self._opened(doing[-1].op, step, identity, session)
        return Outcome(kind="ok")

    @contextmanager
    def _being_opened(self, number: int) -> Iterator[None]:
        self.ground.opening.append(number)
        try:
            yield
        finally:
            self.ground.opening.remove(number)

    def _members(self, backends: tuple[int, ...], op: int) -> list[Backend]:
        return [self.ground.pass_on(index, op) for index in backends]

    def _opened(self, op: int, step: Open | Restore, identity: Identity | None, session: Session) -> Life:
        life = Life(op, step.session, step.instance, identity, session)
        self.ground.every_life.append(life)
        missing = {failure.backend_id for failure in session.failures}
        connected = (self.ground.history.backends[index].id for index in step.backends)
        self.ground.note(
            Opened(
                at=trio.current_time(),
                op=op,
                session=step.session,
                row=self.ground.storage.row_number(session.id, session.created_at),
                connected=tuple(backend_id for backend_id in connected if backend_id not in missing),
                tools=names_of(session),
            )
        )
        return life

    def begin_restore(self, step: Restore) -> Began:
        its = (life for life in reversed(self.ground.every_life) if life.number == step.session)
        life = next((life for life in its if life.instance == step.instance), None)
        return self.ground.begin("restore", step=step, state="" if life is None else life.session.state.name)
