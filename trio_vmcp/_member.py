"""One backend as a session sees it: connecting, connected, or missing with a reason."""

from __future__ import annotations

import attrs
import trio

from trio_vmcp._listing import Listing
from trio_vmcp.client.interface import BackendClient
from trio_vmcp.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    MessageTooLarge,
)
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import Backend, BackendFailure, FailureReason

__all__ = ["Member"]

_REASONS: dict[type[BackendError], FailureReason] = {
    BackendUnavailable: FailureReason.UNREACHABLE,
    BackendTimeout: FailureReason.TIMEOUT,
    BackendUnauthorized: FailureReason.UNAUTHORIZED,
    BackendProtocolError: FailureReason.PROTOCOL,
    BackendRejected: FailureReason.REJECTED,
    MessageTooLarge: FailureReason.LIMIT,
}


@attrs.define(eq=False)
class Member:
    """A backend of one session.

    Attributes:
        stored: Its record in the metadata that the session was restored from.
        client: The live connection; None while it is missing.
        listing: What it offers, as last seen.
        failure: Why it is missing; None once it is connected.
        attempt: Cancelled to give its connecting up.
    """

    backend_id: str
    backend: Backend | None  # None: a stored member whose backend was not passed to restore_session
    stored: BackendRecord | None = None
    client: BackendClient | None = attrs.field(default=None, init=False)
    listing: Listing = attrs.field(factory=Listing, init=False)
    failure: BackendFailure | None = attrs.field(default=None, init=False)
    attempt: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    begun_at: float | None = attrs.field(default=None, init=False)

    @property
    def record(self) -> BackendRecord | None:
        """What the metadata keeps of it. A member never leaves it because it is missing."""
        return self.client.record if self.client is not None else self.stored

    @property
    def resume(self) -> BackendRecord | None:
        """What a connector may take up again: a backend session's id goes to nobody but the endpoint that gave it."""
        if self.backend is None or self.stored is None or self.stored.endpoint_digest != endpoint_digest(self.backend):
            return None
        return self.stored

    def joined(self, client: BackendClient, listing: Listing) -> None:
        self.client, self.listing, self.failure = client, listing, None

    def fail(self, reason: FailureReason, detail: str) -> BackendFailure:
        elapsed = 0.0 if self.begun_at is None else trio.current_time() - self.begun_at
        self.failure = BackendFailure(self.backend_id, reason, detail, elapsed)
        return self.failure

    def fail_with(self, error: BackendError) -> BackendFailure:
        return self.fail(_REASONS.get(type(error), FailureReason.PROTOCOL), error.detail)

    def live_client(self) -> BackendClient:
        """The connection.

        Raises:
            BackendUnavailable: The backend is missing; nothing was sent.
        """
        if self.client is not None:
            return self.client
        why = f": it {self.failure.detail}" if self.failure else ""
        raise BackendUnavailable(self.backend_id, f"is not connected{why}")
