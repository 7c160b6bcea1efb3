"""What sessions and backends say of themselves, between the steps and when all is quiet."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from simulation.ground import Ground, Life, names_of
from simulation.trace import Audit, Inspected, Settled
from trio_vmcp import BackendState, SessionState

__all__ = ["Inspections"]


@attrs.define(eq=False)
class Inspections:
    ground: Ground

    def look(self) -> None:
        for backend in self.ground.backends.values():
            backend.note_health()
        for life in self.open_lives():
            members = tuple(self._members_of(life))
            self.ground.note(
                Inspected(at=trio.current_time(), life=life.op, members=members, tools=names_of(life.session))
            )

    @staticmethod
    def _members_of(life: Life) -> Iterator[tuple[str, str, bool]]:
        missing = {failure.backend_id for failure in life.session.failures}
        for backend_id, status in life.session.backends.items():
            yield backend_id, status.state.name, backend_id in missing

    def open_lives(self) -> list[Life]:
        """Of instances that go on."""
        going = (life for life in self.ground.every_life if life.instance not in self.ground.dead.tasks.stopped)
        return [life for life in going if life.session.state is SessionState.OPEN]

    async def look_closely(self) -> None:
        await wait_all_tasks_blocked()
        self.look()
        for life in self.open_lives():
            row = await self.ground.storage.row(life.session.id)
            said = life.session.backend_sessions
            live = [b for b, state, missing in self._members_of(life) if state == "READY" and not missing]
            stored = {} if row is None else {record.backend_id: record.session_id for record in row.backends}
            bound = {} if row is None else row.bindings["tools"]
            self.ground.note(
                Settled(
                    at=trio.current_time(),
                    life=life.op,
                    in_flight=life.session.in_flight,
                    row=tuple((backend_id, stored.get(backend_id)) for backend_id in live),
                    said=tuple((backend_id, said.get(backend_id)) for backend_id in live),
                    health=tuple(
                        (backend_id, status.calls, status.errors, status.in_flight)
                        for backend_id, status in life.session.backends.items()
                        if status.state is not BackendState.REMOVED
                    ),
                    unbound=tuple(name for name, owner, _ in names_of(life.session) if bound.get(name) != owner),
                    is_written=row == life.session.metadata,
                )
            )

    async def look_around(self) -> None:
        """Record what is in use, if no session is open."""
        if self._is_quiet():
            await wait_all_tasks_blocked()
            if self._is_quiet():
                self.ground.note(self.audit())

    def _is_quiet(self) -> bool:
        is_open = (
            self.ground.opening or self.ground.shielded or not all(life.is_over for life in self.ground.every_life)
        )
        return not is_open and not self.ground.dead.instances  # what is gone holds on to what it had

    def audit(self) -> Audit:
        return Audit(
            at=trio.current_time(),
            tasks=tuple(sorted(task.name for owner in self.ground.owners.values() for task in owner.child_tasks)),
            processes=self.ground.processes.alive,
            responses=sum(seam.busy_connections for seam in self.ground.seams),
            tokens=sum(limiter.borrowed_tokens for limiter in self.ground.limiters),
        )
