"""The interface of a manager: many sessions by id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

import attrs

from trio_vmcp._manager.configuration import BackendSource
from trio_vmcp.connector import ClientHandlers, PreferredEra
from trio_vmcp.identity import Identity
from trio_vmcp.models import Backend
from trio_vmcp.observe import Observer
from trio_vmcp.session import Session

__all__ = ["BackendSource", "HandlersFor", "ManagerStatistics", "SessionManager"]

HandlersFor: TypeAlias = Callable[[Mapping[str, str]], ClientHandlers]
"""Makes the handlers of a session of its attributes. It must not block."""


@attrs.frozen(kw_only=True)
class ManagerStatistics:
    """Counts of sessions.

    Attributes:
        live: Open here; those that drain are not counted.
        hibernated: Of which only the row is left, and which the next `get` wakes.
        opening: Being made, restored or woken.
        in_flight: Calls, in all sessions here.
        created: Since the manager was opened, as all that follow: made by `create` or `shared`.
        restored: Restored from the storage, or woken.
        terminated: Ended by `SessionManager.terminate` or `Session.aclose`.
        expired: Ended since they were not used for `idle_timeout`, or too old (`max_lifetime`).
        refused: How often a cap refused to open, restore or wake one.
    """

    live: int
    hibernated: int
    opening: int
    in_flight: int
    created: int
    restored: int
    terminated: int
    expired: int
    refused: int


class SessionManager(Protocol):
    """Many sessions by id, for servers: each request names its session and its caller.

    Every method may raise, besides what it says:

    Raises:
        SessionClosed: The manager is closing or closed.
        StorageError: The storage is away, for what is not live here. Nothing is lost; the request may be repeated.
        Exception: A source of backends has raised it, where a session is made, restored or woken.
    """

    async def create(
        self,
        *,
        identity: Identity | None = None,
        attributes: Mapping[str, str] | None = None,
        handlers: ClientHandlers | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        """Open a session of a new id, bound to `identity`, and give it with `caller` filled in (`Session.as_caller`).

        Args:
            attributes, handlers, prefer_era: As in `SessionFactory.make_session`.

        Raises:
            SessionLimitReached: A cap is reached; no backend was contacted, and nothing was stored.
            NoBackends, StorageError, ValueError: As in `SessionFactory.make_session`.
        """
        ...

    async def get(
        self,
        session_id: str,
        *,
        caller: Identity | None = None,
        handlers: ClientHandlers | HandlersFor | None = None,
        prefer_era: PreferredEra | None = None,
    ) -> Session:
        """Find a session for its owner, and give it with `caller` filled in: at once if it is live here. Otherwise it
        is restored from its metadata, or woken; once, however many ask for it at the same time. The session counts as
        used now. What it does by itself (handshakes, lists, streams, goodbyes) carries the newest token that its
        principal has come with.

        Args:
            handlers, prefer_era: Where this restores or wakes the session, as in `SessionFactory.restore_session`;
                None, where it wakes: those that it had. `handlers` may be a function that makes them of the session's
                attributes, which are known only then.

        Raises:
            InvalidSessionId: No session has an id of this form.
            SessionNotFound: Unknown, expired, terminated, or bound to another identity than `caller`: one answer, at
                the same cost.
            SessionLimitReached: To restore or wake it is over a cap; the session stays as it is.
            NoBackends, StorageError, ValueError: As in `SessionFactory.restore_session`; it stays as it is.
            UnreadableMetadata: The StorageError of a row that this release cannot read. A client should hear what
                clients of unknown sessions hear: to repeat the request would not help.
        """
        ...

    async def shared(self, identity: Identity | None = None, *, handlers: ClientHandlers | None = None) -> Session:
        """The one session that all stateless requests of a principal share on this instance; made when there is none.
        Its probes try `server/discover` first.

        Args:
            handlers: Where this makes the session, as in `SessionFactory.make_session`.

        Raises:
            SessionLimitReached, NoBackends, StorageError, ValueError: As in `create` and `get`.
        """
        ...

    async def terminate(self, session_id: str, *, caller: Identity | None = None, wait: bool = True) -> None:
        """End a session for good, live here or not, as `Session.aclose` does. It needs no place under a cap.

        Args:
            wait: False: return as soon as the session admits no more calls. What runs drains in the background.

        If the storage does not take the end, that is remembered and tried again; the id is not served here any more.

        Raises:
            InvalidSessionId, SessionNotFound: As in `get`.
        """
        ...

    async def set_backends(self, backends: Iterable[Backend] | BackendSource) -> None:
        """Change the backends of all sessions. A backend whose fields differ is exchanged: removed and added.

        Returns when every live session has what is new, or has it in `Session.failures`; calls of removed backends may
        still drain. A source is asked again for every live session. Sessions that hibernate change when they wake.
        Other instances are told nothing.

        Raises:
            ValueError: Two backends have one id, or there is no connector for one; nothing has changed.
            Exception: A source has raised it; nothing has changed.
        """
        ...

    def start_task(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that may outlive the request it belongs to, such as a stream of events. It runs in a clean
        context and is cancelled when the manager has ended its sessions. If it crashes, the types of its errors are
        logged.

        Raises:
            SessionClosed: The manager has ended.
        """
        ...

    def derive_keys(self, purpose: str) -> tuple[bytes, ...]:
        """Secrets for a purpose of the server's own, one for each of `FactorySettings.identity_keys`, in their order:
        the same on every instance that has these keys. Empty: there are none.
        """
        ...

    @property
    def live_sessions(self) -> tuple[Session, ...]:
        """The sessions that are live here: for showing what state they are in. Calls need their caller, as ever."""
        ...

    @property
    def shared_sessions(self) -> tuple[Session, ...]:
        """Those of `live_sessions` that `shared` gives."""
        ...

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Those of the factory, in the order in which they were passed."""
        ...

    @property
    def statistics(self) -> ManagerStatistics:
        """Counts, as of now."""
        ...
