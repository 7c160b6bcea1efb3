"""Keeps what a backend lists up to date while it is connected.

"The first at once, then at most one a second": a backend that cries for every change has one refetch at a time, of all
the lists that it cried about meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from trio_vmcp._listing import Listing, list_backend
from trio_vmcp._nursery import start_clean
from trio_vmcp.client.interface import BackendClient
from trio_vmcp.errors import BackendError
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend
from trio_vmcp.settings import FactorySettings

if TYPE_CHECKING:  # who has refreshers, and hears of them
    from trio_vmcp._member import Member
    from trio_vmcp._membership import Observer

__all__ = ["Refresher"]

logger = logging.getLogger("trio_vmcp.session")

REFETCH_INTERVAL = 1.0  # s between the beginnings of two refetches of one backend
MOST_TRIES = 3  # of a refetch that fails; whatever it is about, the next notification tries again

Kind = Literal["tools", "resources", "prompts"]
_KINDS: dict[str, Kind] = {
    "notifications/tools/list_changed": "tools",
    "notifications/resources/list_changed": "resources",
    "notifications/prompts/list_changed": "prompts",
}


@attrs.define(eq=False)
class Refresher:
    """Of one connection. Its task runs only while there is something to fetch.

    Attributes:
        client: The connection, once it is one.
    """

    _member: Member
    _backend: Backend
    _identity: Identity | None
    _settings: FactorySettings
    _nursery: trio.Nursery
    _observer: Observer
    client: BackendClient | None = attrs.field(default=None, init=False)
    _stale: dict[Kind, None] = attrs.field(factory=dict, init=False)  # an ordered set
    _to_subscribe: tuple[str, ...] = attrs.field(default=(), init=False)
    _running: bool = attrs.field(default=False, init=False)

    def note(self, method: str) -> None:
        """A notification came; only those about lists matter here."""
        if method in _KINDS:
            self._want(_KINDS[method])

    def everything_is_stale(self) -> None:
        """The connection is new: what is known is what was seen through the one before."""
        self._to_subscribe = tuple(sorted(self._member.subscriptions))
        self._want(*_KINDS.values())

    def _want(self, *kinds: Kind) -> None:
        self._stale |= dict.fromkeys(kinds)
        if not self._running:
            self._running = True
            start_clean(self._nursery, self._refresh)

    async def _refresh(self) -> None:
        await self._subscribe_again()
        tries = 0
        while self._stale:
            kinds = tuple(self._stale)
            begun_at = trio.current_time()
            # A client that is still being made, or listed for the first time, has nothing to be fetched again.
            if self.client is not None and self._member.client is self.client:
                self._stale.clear()
                if await self._fetch(kinds):
                    tries = 0
                else:
                    tries += 1
                    if tries < MOST_TRIES:
                        self._stale = dict.fromkeys(kinds) | self._stale
            await trio.sleep_until(begun_at + REFETCH_INTERVAL)
        self._running = False

    async def _subscribe_again(self) -> None:
        """Subscriptions were of the connection before. Once for each connection; later ones are its own."""
        uris, self._to_subscribe = self._to_subscribe, ()
        for uri in uris:
            assert self.client is not None
            try:
                await self.client.request(
                    "resources/subscribe",
                    {"uri": uri},
                    identity=self._identity,
                    timeout=self._settings.backend_init_timeout,
                    on_progress=None,
                )
            except BackendError as error:
                logger.warning("%s, when it was to be subscribed to again", error)

    async def _fetch(self, kinds: Sequence[Kind]) -> bool:
        assert self.client is not None
        known = self._member.listing or Listing()
        try:
            with trio.move_on_after(self._settings.backend_init_timeout):
                listing = await list_backend(
                    self._backend,
                    self.client,
                    identity=self._identity,
                    settings=self._settings,
                    kinds=kinds,
                    known=known,
                )
                self._member.listing = listing
                self._observer.member_changed(self._member, kinds)
                return True
            why = f"did not answer within {self._settings.backend_init_timeout} s (backend_init_timeout)"
        except BackendError as error:
            why = error.detail
        logger.warning("backend %r: its new %s could not be listed: it %s", self._backend.id, ", ".join(kinds), why)
        return False
