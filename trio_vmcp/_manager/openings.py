"""Openings that are under way: each with a place, given up when the manager is left, and waited for by any number of
callers.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from trio_vmcp._manager.known import Asleep, Known, Live, Opening
from trio_vmcp._manager.registry import Registry
from trio_vmcp._nursery import start_clean
from trio_vmcp.errors import SessionClosed, SessionNotFound, VmcpError

__all__ = ["Openings", "outcome"]


@attrs.define(eq=False)
class Openings:
    """What is under way in a manager.

    Attributes:
        count: Sessions that are being made, restored or woken.
    """

    _registry: Registry = attrs.field(alias="registry")
    _nursery: trio.Nursery = attrs.field(alias="nursery")
    count: int = attrs.field(default=0, init=False)
    _scopes: set[trio.CancelScope] = attrs.field(factory=set, init=False, repr=False)
    _is_closing: bool = attrs.field(default=False, init=False)
    _none_left: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)  # set once: while closing

    @contextmanager
    def placed(self, known: Known) -> Iterator[None]:
        """Around the opening of a session. It takes a place under the caps, and keeps the place if it gets live.

        Raises:
            SessionLimitReached: There is no place.
            SessionClosed: The manager was left meanwhile.
        """
        places = self._registry.places
        places.take(known.principal, self._registry.draining)
        self.count += 1
        try:
            with self.given_up():
                yield
        finally:
            self.count -= 1
            if not isinstance(known.state, Live):
                places.give_back(known.principal)

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Around what ends with SessionClosed when the manager is left."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                self._check_left()
        if scope.cancelled_caught:
            raise SessionClosed("the session manager was closed meanwhile")

    def start(self, known: Known, open_it: Callable[[], Awaitable[object]]) -> Opening:
        """Open a session in a task of its own: no caller that waits for it takes the opening along when it leaves."""
        before, opening = known.state, Opening()
        known.state = opening
        self._registry.add(known)
        start_clean(self._nursery, self._open, known, opening, open_it, before if isinstance(before, Asleep) else None)
        return opening

    async def _open(
        self, known: Known, opening: Opening, open_it: Callable[[], Awaitable[object]], before: Asleep | None
    ) -> None:
        try:
            # Shielded until the manager closes: if the code around a server is cancelled, requests that wait for this
            # are answered first.
            with trio.CancelScope(shield=True), self.placed(known):
                await open_it()
        except Exception as error:  # noqa: BLE001  # for those that wait
            opening.error = error
        finally:
            if known.state is opening:
                opening.error = opening.error or SessionClosed("the session manager was closed meanwhile")
                self._registry.fall_back(known, None if isinstance(opening.error, SessionNotFound) else before)
            opening.done.set()

    def give_up(self) -> None:
        """The manager is left."""
        self._is_closing = True
        for scope in self._scopes:
            scope.cancel(reason="the session manager closes")
        self._check_left()

    async def wait_given_up(self) -> None:
        await self._none_left.wait()

    def _check_left(self) -> None:
        if self._is_closing and not self._scopes:
            self._none_left.set()


async def outcome(opening: Opening) -> None:
    """Wait until the session is live.

    Raises:
        Exception: It was not opened.
    """
    await opening.done.wait()
    if isinstance(opening.error, VmcpError):
        raise copy.copy(opening.error) from opening.error.__cause__  # several tasks raise it
    if opening.error is not None:
        raise opening.error
