"""Which backends the sessions of a manager have: a fixed list for all of them, or a source that is asked for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import attrs
import trio

from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend

__all__ = ["BackendSource", "Configuration", "Difference", "Given", "Passed", "difference"]

BackendSource: TypeAlias = Callable[[Identity | None], Awaitable[Iterable[Backend]]]

Given: TypeAlias = tuple[Backend, ...] | BackendSource


@attrs.frozen
class Passed:
    """The backends that one session is made or restored with.

    Attributes:
        generation: Counts `set_backends`: how often it had been called when these were asked for.
    """

    backends: tuple[Backend, ...]
    generation: int


@attrs.frozen
class Difference:
    """What `set_backends` changes in one session. A backend whose fields differ is in both.

    Attributes:
        removed: Ids of backends that go, of the old list.
        added: Backends that come, in the order of the new list.
    """

    removed: tuple[str, ...]
    added: tuple[Backend, ...]


def difference(before: Iterable[Backend], after: Iterable[Backend]) -> Difference:
    """From the list `before` to the list `after`. Two backends with the same fields are the same backend."""
    old, new = ({backend.id: backend for backend in backends} for backends in (before, after))
    return Difference(
        removed=tuple(backend_id for backend_id, backend in old.items() if new.get(backend_id) != backend),
        added=tuple(backend for backend_id, backend in new.items() if old.get(backend_id) != backend),
    )


@attrs.define(eq=False)
class Configuration:
    """What `set_backends` was called with last.

    Attributes:
        generation: Counts those calls.
    """

    _check: Callable[[Iterable[Backend]], tuple[Backend, ...]] = attrs.field(alias="check", repr=False)
    _given: Given = attrs.field(alias="given", repr=False)
    generation: int = attrs.field(default=0, init=False)

    def set(self, given: Given) -> None:
        """Sessions that open or wake from now on get these."""
        self._given = given
        self.generation += 1

    async def ask(self, identity: Identity | None) -> Passed:
        """The backends for a session of this identity.

        Raises:
            ValueError: The source has returned two of one id, or one without a connector.
        """
        generation = self.generation  # before the source is asked: it may be another one when it has answered
        return Passed(await self.ask_of(self._given, identity), generation)

    async def ask_of(self, given: Given, identity: Identity | None) -> tuple[Backend, ...]:
        if not callable(given):
            return given
        answered = await given(identity)
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._check(answered)
