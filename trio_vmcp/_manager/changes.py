"""`set_backends`: give every live session its new backends, all sessions and backends side by side."""

from __future__ import annotations

import logging
from contextlib import suppress

import attrs
import trio

from trio_vmcp._interrupts import plain_exit
from trio_vmcp._manager.configuration import Configuration, Given, difference
from trio_vmcp._manager.known import Known
from trio_vmcp._manager.registry import Registry
from trio_vmcp._nursery import describe_crash, start_task
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp.errors import SessionClosed, session_tag
from trio_vmcp.models import Backend

__all__ = ["Changes"]

logger = logging.getLogger("trio_vmcp.manager")


@attrs.define(eq=False)
class Changes:
    """Changes of the configuration, one after another."""

    _registry: Registry = attrs.field(alias="registry")
    _configuration: Configuration = attrs.field(alias="configuration")
    _one: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)

    async def make(self, given: Given) -> None:
        """Take over these backends.

        Raises:
            Exception: The source has raised it; nothing has changed.
        """
        async with self._one:
            asked = await self._ask_each(given)
            self._configuration.set(given)
            async with trio.open_nursery() as changes:
                for known, owner in self._registry.live():
                    start_task(changes, self.take_over, known, owner, asked.get(known))

    async def _ask_each(self, given: Given) -> dict[Known, tuple[Backend, ...]]:
        """The backends of each live session, before anything changes."""
        found: dict[Known, tuple[Backend, ...]] = {}
        errors: list[Exception] = []

        async def ask(known: Known) -> None:
            try:
                found[known] = await self._configuration.ask_of(given, known.identity)
            except Exception as error:  # noqa: BLE001  # raised below
                errors.append(error)

        try:
            async with trio.open_nursery() as asking:
                for known, _ in self._registry.live():
                    start_task(asking, ask, known)
        except BaseExceptionGroup as group:
            raise plain_exit(group) from None
        if errors:
            raise errors[0]
        return found

    async def take_over(self, known: Known, owner: SessionOwner, backends: tuple[Backend, ...] | None = None) -> None:
        """Give a live session its new backends; None: ask for them, since it got live meanwhile."""
        generation = self._configuration.generation
        if backends is None:
            try:
                passed = await self._configuration.ask(known.identity)
            except Exception as crash:  # noqa: BLE001  # of the user's source; the session keeps what it has
                logger.warning("%s keeps its backends: %s", session_tag(known.session_id), describe_crash(crash))
                return
            backends, generation = passed.backends, passed.generation
        if owner.life.is_closing or known.generation >= generation:
            return
        change = difference(known.backends, backends)
        known.backends, known.generation = backends, generation
        for backend_id in change.removed:
            with suppress(ValueError):  # the session was made to let go of it before
                owner.retire_backend(backend_id)
        async with trio.open_nursery() as joining:
            for backend in change.added:
                start_task(joining, _join, known, owner, backend)
        await owner.wait_advertised()


async def _join(known: Known, owner: SessionOwner, backend: Backend) -> None:
    try:
        await owner.add_backend(backend, None)
    except SessionClosed:
        pass
    except ValueError as error:  # the session was given one of this id on its own
        logger.warning("%s did not take over a backend: %s", session_tag(known.session_id), error)
