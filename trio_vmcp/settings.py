"""Every limit of a factory and its sessions, in one frozen object."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from trio_vmcp.routing import ConflictResolution, Prefix

__all__ = ["FactorySettings"]

MIB = 1024 * 1024
SHORTEST_NAME_LIMIT = 16  # room for a digest that tells shortened names apart, and for something to read


def _keys(keys: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(keys)


@attrs.frozen(kw_only=True)
class FactorySettings:
    """The limits of a factory and its sessions. Durations are seconds, sizes bytes; `math.inf` means no limit of ours.

    Attributes:
        max_backend_init_concurrency: Backends of one session that connect at the same time, in its opening and when
            they are tried again. `add_backend`, and a connection that calls wait for, need no turn.
        backend_init_timeout: s, per backend, from the moment it holds a slot: probe, handshake and lists.
        session_init_timeout: s, for the whole opening; who is still connecting then joins the open session when ready.
        min_backends: Fewer connected than this when the opening ends: NoBackends.
        max_connections_per_backend: Connections of one session to one backend at the same time; more calls wait. Four
            of them are for notifications, answers to the backend's own requests and the end of its session, which must
            not wait for the calls that they are about; a limit below 16 is for calls alone, and those come on top. On
            top comes also one for what the backend tells on its own (`Backend.listen`).
        request_timeout: s, the whole exchange of one call. `Backend.request_timeout` and a call's `timeout=` win.
        drain_timeout: s, how long closing waits for calls in flight.
        teardown_timeout: s, for everything after the drain, in parallel.
        idle_timeout: s without a call, after which a session terminates itself.
        storage_timeout: s, every storage operation; then StorageError.
        reconnect_delay, reconnect_max_delay: s until a backend that failed or went away is tried again, doubled from
            one to the other, ±20 %; 0.05 at least. With `reconnect_delay=math.inf` nobody is tried again in the
            background; what calls find out to be lost is still replaced once, for those calls.
        on_exit: What leaving or cancelling the factory does to open sessions.
        identity_keys: The first makes binding digests, all verify; empty: one random key per process.
        max_message_bytes: One message of a backend.
        max_name_length: Characters of an advertised name; longer ones are shortened with a digest at the end.
        max_pages, max_items_per_backend: One listing of one backend.
        max_json_depth: Nesting of one message of a backend.
        conflict_resolution: How names are advertised.

    Raises:
        ValueError: Names the setting and the value.
    """

    max_backend_init_concurrency: int = 10
    backend_init_timeout: float = 30.0
    session_init_timeout: float = 35.0
    min_backends: int = 0
    max_connections_per_backend: int = 100
    request_timeout: float = 120.0
    drain_timeout: float = 10.0
    teardown_timeout: float = 2.0
    idle_timeout: float = 1800.0
    storage_timeout: float = 5.0
    reconnect_delay: float = 0.5
    reconnect_max_delay: float = 60.0
    on_exit: str = attrs.field(default="terminate", validator=attrs.validators.in_(("terminate", "suspend")))
    identity_keys: tuple[bytes, ...] = attrs.field(default=(), converter=_keys, repr=False)
    max_message_bytes: int = 16 * MIB
    max_name_length: int = 128
    max_pages: int = 1000
    max_items_per_backend: int = 10_000
    max_json_depth: int = 128
    conflict_resolution: ConflictResolution = attrs.field(factory=Prefix)

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(FactorySettings):
            value = getattr(self, field.name)
            if field.name.endswith(("_timeout", "_delay")):
                self._require(not isinstance(value, bool) and value >= 0, field.name, value, "0 s or more")
            elif field.name.startswith("max_"):
                least = SHORTEST_NAME_LIMIT if field.name == "max_name_length" else 1
                # Not 5.0: what counts with it takes whole numbers only.
                fits = value == math.inf or (type(value) is int and value >= least)
                self._require(fits, field.name, value, f"a whole number, {least} or more")
        self._require(self.min_backends >= 0, "min_backends", self.min_backends, "0 or more")
        if not all(isinstance(key, bytes) and key for key in self.identity_keys):
            raise ValueError("identity_keys holds something that is not non-empty bytes")

    @staticmethod
    def _require(fits: bool, name: str, value: object, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name}={value!r} is not {wanted}")
