"""Every limit of a factory and its sessions, in one frozen object."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from trio_vmcp.routing import ConflictResolution, NamesFor, Prefix

__all__ = ["FactorySettings"]

MIB = 1024 * 1024
SHORTEST_NAME_LIMIT = 16  # room for the digest of a shortened name, and for a readable beginning


def _keys(keys: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(keys)


@attrs.frozen(kw_only=True)
class FactorySettings:
    """The limits of a factory and its sessions. Durations are seconds, sizes bytes; `math.inf` means no limit of ours.

    Attributes:
        max_backend_init_concurrency: Backends of one session that connect at the same time, in its opening and when
            they are tried again; places are given in the order of the backends passed. `add_backend`, and a connection
            that calls wait for, take no place.
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
                self._require(not isinstance(value, bool) and value >= 0, field.name, value, "0 s or more")
            elif field.name.startswith("max_"):
                least = SHORTEST_NAME_LIMIT if field.name == "max_name_length" else 1
                # 5.0 is refused here: trio.CapacityLimiter takes int or math.inf, and raises TypeError much later.
                fits = value == math.inf or (type(value) is int and value >= least) or field.default is value is None
                self._require(fits, field.name, value, f"a whole number, {least} or more")
        self._require(self.min_backends >= 0, "min_backends", self.min_backends, "0 or more")
        if not all(isinstance(key, bytes) and key for key in self.identity_keys):
            raise ValueError("identity_keys holds something that is not non-empty bytes")

    @staticmethod
    def _require(fits: bool, name: str, value: object, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name}={value!r} is not {wanted}")
