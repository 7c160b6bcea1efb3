"""Metadata in Redis (6 or newer), for several instances, by coredis (extra `redis`).

```python
async with open_redis_storage("rediss://:secret@redis.internal:6379/0") as storage:
    async with open_session_factory(storage=storage) as factory:
        ...
```

Storage failures are reported by the sessions; coredis logs each failed connection, too, under the name `coredis`.

What survives is what Redis keeps. Without persistence, a Redis that is restarted comes back empty: sessions that are
live go on and write their rows again, all others are lost, and so are the tombstones of terminated ones. With
`appendonly yes` and `appendfsync everysec` (the default) a crash of Redis loses nothing, and a crash of its machine the
last second; `appendfsync always` loses nothing, and is about five times slower. A failover to a replica loses what was
not replicated yet. `maxmemory-policy noeviction` (the default) is the right one: with any other, Redis removes sessions
when it is full; with this one, a full Redis refuses new sessions.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import attrs
import trio
from coredis.exceptions import WrongTypeError

from trio_vmcp._nursery import require_trio, start_if_open
from trio_vmcp.errors import MetadataConflict, SessionExists, SessionNotFound, StorageError
from trio_vmcp.metadata import SessionMetadata, UnreadableMetadata, metadata_from_json, metadata_to_json
from trio_vmcp.storage._redis_address import read_url
from trio_vmcp.storage._redis_scripts import (
    CREATE,
    DELETE,
    DONE,
    EXISTS,
    NO_ROW,
    OTHER_VERSION,
    REPLACE,
    TOUCH,
    Script,
    row_tag,
)
from trio_vmcp.storage.interface import NotifyingStorage

try:
    from trio_vmcp.storage._redis_client import RedisClients
    from trio_vmcp.storage._redis_notices import listen, make_notice
except ImportError as _error:
    if (_error.name or "").partition(".")[0] != "coredis":
        raise
    _text = "open_redis_storage needs coredis: pip install 'trio-vmcp[redis]'"
    raise ImportError(_text, name="coredis") from None

__all__ = ["open_redis_storage"]

_MOST_TTL = 1e12  # s; Redis counts the ms since 1970 in 63 bits
_NOTICES_KEPT = 1000  # for a reader that is busy; what comes then is not kept


def open_redis_storage(
    url: str,
    *,
    ttl: float = 1800.0,
    key_prefix: str = "trio_vmcp:session:",
    timeout: float = 5.0,
    cluster: bool = False,
) -> AbstractAsyncContextManager[NotifyingStorage]:
    """A `Storage` that several instances share. Opening does not wait for Redis.

    Each operation is one atomic step on the server and touches one key, so any cluster can run it. Time to live is
    counted by the server. A Redis that is away, frozen, restarting, full or read-only is a StorageError within
    `timeout`; the next operation tries again.

    Args:
        url: `redis://[user][:password]@host:port/db`, `rediss://…` with TLS, `unix://[user][:password]@/path?db=0`;
            user, password and path are percent-decoded. TLS trusts what the system trusts; `?ssl_ca_certs=FILE` names
            other certificates, `&ssl_certfile=FILE&ssl_keyfile=FILE` a client's own.
        ttl: s. How long a row lives untouched, and a tombstone; it is rounded up to whole ms.
        key_prefix: Of all keys, and of the channel of the notices. Behind it stands a digest of a session's id.
        timeout: s for each operation. The factory's `storage_timeout` holds, too.
        cluster: The url is that of any node of a Redis Cluster. Slots may be moved while sessions are used. Operations
            on a slot that moves to a node without slots may fail until it has arrived: clients learn of a node by
            the slots that it owns.

    Raises:
        ValueError: Says which argument does not fit, and never shows the url.
    """
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= _MOST_TTL:
        raise ValueError(f"ttl={ttl!r} is not more than 0 s and at most {_MOST_TTL:g} s")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ValueError(f"timeout={timeout!r} is not more than 0 s")
    address = read_url(url, cluster=cluster)
    return _open(partial(RedisClients, address, cluster, timeout), ttl, key_prefix)


@asynccontextmanager
async def _open(
    clients_for: Callable[[trio.Nursery], RedisClients], ttl: float, key_prefix: str
) -> AsyncIterator[NotifyingStorage]:
    require_trio()
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            storage = _RedisStorage(ttl, key_prefix, clients_for(nursery), nursery)
            try:
                yield storage
            except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised below: the nursery would group it
                body_error = exc
            storage.close()
    finally:
        if body_error is not None:
            raise body_error


@attrs.define(eq=False)
class _RedisStorage(NotifyingStorage):
    """Rows in a Redis. Made by `open_redis_storage`."""

    _ttl: float
    _key_prefix: str
    _clients: RedisClients
    _nursery: trio.Nursery  # of the clients and listeners
    _listening: set[trio.CancelScope] = attrs.field(factory=set)
    # Tells notices of this storage's own writes from those of others.
    _origin: str = attrs.field(factory=lambda: secrets.token_hex(8))

    @property
    def ttl(self) -> float:
        return self._ttl

    def __repr__(self) -> str:
        return f"<storage in {self._clients.address}, ttl={self._ttl} s>"

    async def create(self, metadata: SessionMetadata) -> None:
        data = metadata_to_json(metadata)
        await self._run(CREATE, metadata.session_id, str(metadata.version), data, self._ttl_in_ms())

    async def load(self, session_id: str) -> SessionMetadata:
        await self._begin()
        try:
            data = await self._clients.read_field(self._key(session_id), "data")
        except StorageError as error:
            if isinstance(error.__cause__, WrongTypeError):  # another program has put something else there
                raise UnreadableMetadata(error.detail) from error.__cause__
            raise
        if data is None:
            raise SessionNotFound(session_id)
        return metadata_from_json(data)

    async def replace(self, metadata: SessionMetadata, *, expected_version: int) -> None:
        if metadata.version != expected_version + 1:
            raise ValueError(f"version={metadata.version!r} is not expected_version={expected_version!r} plus 1")
        versions, data = (str(expected_version), str(metadata.version)), metadata_to_json(metadata)
        session_id = metadata.session_id
        await self._run(REPLACE, session_id, *versions, data, self._ttl_in_ms(), *self._notice(session_id))

    async def touch(self, session_id: str, *, expected_version: int | None = None) -> None:
        await self._run(TOUCH, session_id, _expected(expected_version), self._ttl_in_ms())

    async def delete(self, session_id: str, *, expected_version: int | None = None) -> None:
        expected = _expected(expected_version)
        await self._run(DELETE, session_id, expected, self._ttl_in_ms(), *self._notice(session_id))

    async def aclose(self) -> None:
        require_trio()
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._clients.close()
        for listening in self._listening:
            listening.cancel(reason="the storage is closed")

    def notice_tag(self, session_id: str) -> str:
        return row_tag(session_id)

    @asynccontextmanager
    async def notices(self) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
        send, receive = trio.open_memory_channel[str](_NOTICES_KEPT)
        listening = trio.CancelScope()

        async def listen_here() -> None:
            with send, listening:
                await listen(self._clients.address, self._channel, self._origin, send)

        with receive:
            if self._clients.is_closed or not start_if_open(self._nursery, listen_here):
                send.close()  # the reader's loop ends at once
            self._listening.add(listening)
            try:
                yield receive
            finally:
                self._listening.discard(listening)
                listening.cancel(reason="the reader of notices has left")

    async def _begin(self) -> None:
        require_trio()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _run(self, script: Script, session_id: str, *arguments: bytes | str) -> None:
        await self._begin()
        outcome = await self._clients.run_script(script, self._key(session_id), *arguments)
        if outcome == DONE:
            return
        if outcome in (EXISTS, NO_ROW, OTHER_VERSION):
            raise {EXISTS: SessionExists, NO_ROW: SessionNotFound, OTHER_VERSION: MetadataConflict}[outcome](session_id)
        raise StorageError(f"{self._clients.address} gave an answer to {script.name} that none of its scripts gives")

    def _key(self, session_id: str) -> str:
        return self._key_prefix + row_tag(session_id)

    def _ttl_in_ms(self) -> str:
        return str(math.ceil(self._ttl * 1000))

    @property
    def _channel(self) -> str:
        return f"{self._key_prefix}notices"

    def _notice(self, session_id: str) -> tuple[str, str]:
        return self._channel, make_notice(self._origin, row_tag(session_id))


def _expected(version: int | None) -> str:
    return "" if version is None else str(version)
