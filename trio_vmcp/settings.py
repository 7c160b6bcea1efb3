"""Every limit of a factory and its sessions, in one frozen object; and of a manager, in another."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import attrs

from trio_vmcp.routing import ConflictResolution, NamesFor, Prefix

__all__ = ["FactorySettings", "ManagerSettings"]

MIB = 1024 * 1024
SHORTEST_NAME_LIMIT = 16  # room for the digest of a shortened name, and for a readable beginning


def require(fits: bool, name: str, value: object, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name}={value!r} is not {wanted}")


def _keys(keys: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(keys)


@attrs.frozen(kw_only=True)
class FactorySettings:
    """The limits of a factory and its sessions. Durations are seconds, sizes bytes; `math.inf` means no limit of ours.

    Attributes:
        max_backend_init_concurrency: Backends of one session that connect at the same time, in its opening and when
            they are tried again; places are given in the order of the backends passed. `add_backend`, and a connection
            that calls wait for, take no place (`Backend.stop_after`).
        backend_init_timeout: s, per backend, from the moment it holds a place: probe, handshake and lists.
            `Backend.init_timeout` wins. Over it, a backend over HTTP has the failure TIMEOUT, and is tried again. A
            stdio program that is alive gives its place back, has the failure PENDING, and goes on starting until it
            answers, exits or the session closes; at most ten of these times, then it has the failure TIMEOUT.
        session_init_timeout: s, for the whole opening. A backend that is still connecting then has the failure PENDING,
            and joins the open session when it is ready.
        min_backends: If fewer have connected when the opening ends, it fails with NoBackends.
        max_connections_per_backend: Connections of one session to one backend at the same time; further calls wait.
            Four of them are kept for notifications, answers to the backend's own requests and the DELETE of its
            session, which must not wait for the calls that they are about. A limit below 16 is for calls alone, and
            those four are added. One more is added for the stream of `Backend.listen`.
        request_timeout: s, the whole exchange of one call, the wait for a connection included.
            `Backend.request_timeout` wins over it, and a call's `timeout=` over both.
        progress_timeout: s without a progress notification, after which a call is given up, the wait for a connection
            included; time in which `on_progress` runs, or handlers answer a question of the backend on the call, does
            not count. Progress never extends `request_timeout`. `Backend.progress_timeout` wins. A finite one asks for
            progress with every call; a backend that reports none has that long for its answer.
        drain_timeout: s that closing waits for calls in flight; `math.inf` waits for ever. If the code around a session
            is cancelled, the wait is at most 10 s.
        teardown_timeout: s, for everything after the drain together: the ends of all backend sessions and processes,
            in parallel, and the delete of the metadata.
        idle_timeout: s without a call, after which a session terminates itself.
        storage_timeout: s, every storage operation; then StorageError.
        reconnect_delay, reconnect_max_delay: s between attempts to connect a backend that failed or went away, doubled
            from the first to the second, ±20 %; 0.05 at least. The attempts of all sessions of a factory at one
            endpoint run one at a time, and after a success the next one may begin at once. With
            `reconnect_delay=math.inf` there are no attempts in the background; a backend session that calls find lost
            is still replaced once, for those calls.
        on_exit: What leaving or cancelling the factory does to open sessions: "terminate" or "suspend".
        identity_keys: Secrets of the digests that bind sessions to identities: the first makes them, all verify them.
            Empty: one random key per process, so that only this process can restore a session with an identity.
        max_message_bytes: Size of one message of a backend; one that is larger is MessageTooLarge.
        names_for: The characters of an advertised name: "models": A-Z, a-z, 0-9, "_" and "-", which every model's API
            takes; "mcp": "." as well. A name that has others, or is too long, keeps as much of the tool's own name as
            there is room for, and ends in "_" and a digest of the whole.
        max_name_length: Characters of an advertised name; None: 64 for "models", 128 for "mcp".
        max_pages, max_items_per_backend: Pages and entries of one list of one backend; over them, its failure is LIMIT.
        max_json_depth: Nesting of one message of a backend.
        max_json_values: Members of objects and elements of arrays in one message of a backend, those inside strings not
            counted; a message with more is MessageTooLarge. To parse 1 000 values takes about 0.4 ms of the loop; other
            tasks wait for at most 512 KiB of a message at a time.
        conflict_resolution: How advertised names are made: `Prefix`, `Bare`, `Priority` or `Manual`.

    Raises:
        ValueError: Names the setting and the value.
    """

    max_backend_init_concurrency: int = 10
    backend_init_timeout: float = 30.0
    session_init_timeout: float = 35.0
    min_backends: int = 0
    max_connections_per_backend: int = 100
    request_timeout: float = 120.0
    progress_timeout: float = math.inf
    drain_timeout: float = 10.0
    teardown_timeout: float = 2.0
    idle_timeout: float = 1800.0
    storage_timeout: float = 5.0
    reconnect_delay: float = 0.5
    reconnect_max_delay: float = 60.0
    on_exit: str = attrs.field(default="terminate", validator=attrs.validators.in_(("terminate", "suspend")))
    identity_keys: tuple[bytes, ...] = attrs.field(default=(), converter=_keys, repr=False)
    max_message_bytes: int = 16 * MIB
    names_for: NamesFor = attrs.field(default="models", validator=attrs.validators.in_(("models", "mcp")))
    max_name_length: int | None = None
    max_pages: int = 1000
    max_items_per_backend: int = 10_000
    max_json_depth: int = 128
    max_json_values: int = 100_000
    conflict_resolution: ConflictResolution = attrs.field(factory=Prefix)

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(FactorySettings):
            value = getattr(self, field.name)
            if field.name.endswith(("_timeout", "_delay")):
                require(not isinstance(value, bool) and value >= 0, field.name, value, "0 s or more")
            elif field.name.startswith("max_"):
                least = SHORTEST_NAME_LIMIT if field.name == "max_name_length" else 1
                # 5.0 is refused here: trio.CapacityLimiter takes int or math.inf, and raises TypeError much later.
                fits = value == math.inf or (type(value) is int and value >= least) or field.default is value is None
                require(fits, field.name, value, f"a whole number, {least} or more")
        require(self.min_backends >= 0, "min_backends", self.min_backends, "0 or more")
        if not all(isinstance(key, bytes) and key for key in self.identity_keys):
            raise ValueError("identity_keys holds something that is not non-empty bytes")


_INSTANCE = re.compile(r"[A-Za-z0-9_-]{0,32}")


@attrs.frozen(kw_only=True)
class ManagerSettings:
    """The limits of a session manager. Durations are seconds; `math.inf` means no limit.

    Attributes:
        max_sessions: Sessions that are live here, those that open included; one more is SessionLimitReached. Up to as
            many may drain beside them, so that a client which ends its session can open another one at once.
        max_sessions_per_identity: Of these, for one identity. Anonymous sessions are limited by `max_sessions` alone.
        max_lifetime: s since `created_at`, after which a session ends, in use or not; its calls drain.
        hibernate_after: s without a call, a resource subscription, a reader of `changes()` or a handler at work, after
            which a session hibernates: its connections are closed; its row and the backends' sessions stay.
        instance: Session ids are then "<instance>.<random>", so that a load balancer can send a session's requests to
            this instance without keeping any state. 1-32 of A-Z, a-z, 0-9, "_" and "-"; empty: ids have no such part.
        storage_check_interval: s after which a live session has noticed, at the latest, that it was terminated on
            another instance.

    Raises:
        ValueError: Names the setting and the value.
    """

    max_sessions: int = 1000
    max_sessions_per_identity: int = 100
    max_lifetime: float = 86_400.0
    hibernate_after: float = math.inf
    instance: str = ""
    storage_check_interval: float = 5.0

    def __attrs_post_init__(self) -> None:
        for name in ("max_sessions", "max_sessions_per_identity"):
            value = getattr(self, name)
            require(value == math.inf or (type(value) is int and value >= 1), name, value, "a whole number, 1 or more")
        for name in ("max_lifetime", "hibernate_after", "storage_check_interval"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            require(is_number and value > 0, name, value, "more than 0 s")
        fits = isinstance(self.instance, str) and _INSTANCE.fullmatch(self.instance) is not None
        require(fits, "instance", self.instance, "empty or 1-32 characters of A-Za-z0-9_-")
