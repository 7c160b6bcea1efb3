"""Which connector makes the client of a backend: by `Backend.transport`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs
import trio

from trio_vmcp.connector import BackendClient, BackendConnector, ClientHandlers, EventSink, PreferredEra
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import BackendRecord
from trio_vmcp.models import BUILT_IN_TRANSPORTS, Backend

__all__ = ["Connectors", "ForSession"]


def _checked(connectors: Mapping[str, BackendConnector] | None) -> Mapping[str, BackendConnector]:
    found = dict(connectors or {})
    for name, connector in found.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"connectors: {name!r} is no name of a transport")
        if name in BUILT_IN_TRANSPORTS:
            raise ValueError(f"connectors: {name!r} is built in; `connector` replaces the connector of all transports")
        if not callable(connector):
            raise ValueError(f"connectors[{name!r}] is {type(connector).__name__}, not a BackendConnector")
    return found


class ForSession(Protocol):
    """Gives the connector of one session."""

    def __call__(
        self, session_id: str, handlers: ClientHandlers | None = None, prefer_era: PreferredEra | None = None, /
    ) -> BackendConnector:
        """
        Args:
            handlers: In place of the factory's; None: the factory's.
            prefer_era: What the probe of an `era="auto"` backend tries first; None: as the handlers need it.
        """
        ...


@attrs.frozen
class Connectors:
    """The connectors of a factory.

    Attributes:
        by_transport: Those for more transports, by name.
        default_for: Gives the connector of all other transports.
        takes_any: That one is the application's, and goes by names of its own.
    """

    by_transport: Mapping[str, BackendConnector] = attrs.field(converter=_checked, repr=False)
    default_for: ForSession = attrs.field(repr=False)
    takes_any: bool

    def check(self, backend: Backend) -> None:
        """
        Raises:
            ValueError: There is no connector for the backend's transport.
        """
        if self.takes_any or backend.transport in BUILT_IN_TRANSPORTS or backend.transport in self.by_transport:
            return
        known = ", ".join(map(repr, (*BUILT_IN_TRANSPORTS, *self.by_transport)))
        raise ValueError(f"backend {backend.id!r}: unknown transport {backend.transport!r}; it is none of {known}")

    def for_session(
        self, session_id: str, handlers: ClientHandlers | None = None, prefer_era: PreferredEra | None = None
    ) -> BackendConnector:
        """The connector for all backends of a session: a `ForSession`."""
        default = self.default_for(session_id, handlers, prefer_era)
        return _ByTransport(self.by_transport, default) if self.by_transport else default


@attrs.frozen
class _ByTransport:
    by_transport: Mapping[str, BackendConnector] = attrs.field(repr=False)
    default: BackendConnector = attrs.field(repr=False)

    async def __call__(
        self,
        backend: Backend,
        *,
        identity: Identity | None,
        resume: BackendRecord | None,
        nursery: trio.Nursery,
        events: EventSink,
    ) -> BackendClient:
        connector = self.by_transport.get(backend.transport, self.default)
        return await connector(backend, identity=identity, resume=resume, nursery=nursery, events=events)
