"""One client of coredis after the other: a client that failed is retired, and the next operation gets a new one.

Three things in coredis 6.9 make this necessary. A connection attempt that is cancelled takes a place in the pool with
it for good. A connection to a frozen server is used again. A crash in the pool is an ExceptionGroup in the task that
opened the client. So each client is opened by a task of its own, and each operation runs in a task of that client, in
an empty context: coredis starts tasks in the context of its caller, and they outlive the call. Operations are not sent
again by coredis, since a script whose answer was lost may have run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs
import coredis
import trio
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)
from coredis.exceptions import MovedError, NoScriptError, ReadOnlyError, ResponseError
from coredis.retry import NoRetryPolicy

from trio_vmcp._nursery import describe_crash, start_clean, start_if_open
from trio_vmcp.errors import StorageError
from trio_vmcp.storage._redis_address import RedisAddress
from trio_vmcp.storage._redis_scripts import Script

__all__ = ["RedisClients", "make_connection"]

_Client: TypeAlias = "coredis.Redis[bytes] | coredis.RedisCluster[bytes]"
_Ask = Callable[[_Client], Awaitable[Any]]

# Commands share connections, each being released as soon as its request is queued; more than one is used only while
# the first is still connecting.
_MAX_CONNECTIONS = 8


def make_connection(address: RedisAddress) -> BaseConnection:
    """A connection outside of any pool, for subscriptions."""
    options: Any = {"username": address.username, "password": address.password, "db": address.db}
    if address.path is not None:
        return UnixDomainSocketConnection(UnixDomainSocketLocation(address.path), **options)
    return TCPConnection(TCPLocation(address.host, address.port), ssl_context=address.tls, **options)


def _make_client(address: RedisAddress, known_nodes: list[TCPLocation], *, cluster: bool) -> _Client:
    options: Any = {
        "username": address.username,
        "password": address.password,
        "retry_policy": NoRetryPolicy(),
        "verify_version": False,
        "max_connections": _MAX_CONNECTIONS,
    }
    if cluster:
        nodes = [*known_nodes, TCPLocation(address.host, address.port)]
        return coredis.RedisCluster(
            startup_nodes=nodes,
            decode_responses=False,
            ssl_context=address.tls,
            max_connections_per_node=True,
            skip_full_coverage_check=True,  # else it asks for CONFIG, which hosted clusters refuse
            **options,
        )
    if address.path is not None:
        return coredis.Redis(unix_socket_path=address.path, db=address.db, **options)
    return coredis.Redis(address.host, address.port, db=address.db, ssl_context=address.tls, **options)


@attrs.define(eq=False)
class _Answer:
    """What came of one operation; neither value nor error: its client ended."""

    value: list[Any] = attrs.field(factory=list)
    error: Exception | None = None
    arrived: trio.Event = attrs.field(factory=trio.Event)

    async def fetch(self, ask: _Ask, client: _Client, timeout: float) -> None:
        try:
            with trio.move_on_after(timeout):
                self.value.append(await ask(client))
        except Exception as exc:  # noqa: BLE001  # raised in the task of the operation's caller
            self.error = exc
        finally:
            self.arrived.set()


@attrs.define(eq=False)
class _Link:
    """A client, from its opening to its end. Once it is retired, it ends with the last of its operations."""

    client: _Client
    _timeout: float
    _operations: trio.Nursery | None = None
    _opened: trio.Event = attrs.field(factory=trio.Event)
    _retired: trio.Event = attrs.field(factory=trio.Event)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _failure: Exception | None = None

    @property
    def is_retired(self) -> bool:
        return self._retired.is_set()

    def retire(self) -> None:
        """Take no new operation. A client that is still opening is given up."""
        self._retired.set()
        if not self._opened.is_set():
            self.close()

    def close(self) -> None:
        """End now: operations that are under way have no answer."""
        self._retired.set()
        self._scope.cancel(reason="the client of Redis is closed, or took too long to open")

    async def run(self) -> None:
        try:
            with self._scope:
                async with self.client:
                    async with trio.open_nursery() as self._operations:
                        self._opened.set()
                        await self._retired.wait()
        except* Exception as group:  # noqa: BLE001  # given to the operations; of any depth: each layer of coredis has a group of its own
            self._failure = group
        finally:
            self._retired.set()
            self._opened.set()

    async def ask(self, ask: _Ask) -> Any:
        """Raises an error of any kind, or LookupError where the client ended without one."""
        await self._opened.wait()
        answer = _Answer()
        if self._operations is None or not start_if_open(
            self._operations, answer.fetch, ask, self.client, self._timeout
        ):
            raise self._failure or LookupError("the client ended")
        await answer.arrived.wait()
        if answer.error is not None:
            raise answer.error
        if not answer.value:
            raise self._failure or LookupError("the client ended")
        return answer.value[0]


@attrs.define(eq=False)
class RedisClients:
    """Does operations, each within `timeout` s.

    An operation whose caller is cancelled goes on, and ends by itself: it may have its effect later.
    """

    address: RedisAddress
    _cluster: bool
    _timeout: float
    _nursery: trio.Nursery
    _link: _Link | None = None
    _links: set[_Link] = attrs.field(factory=set)  # all that have not ended
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True
        for link in self._links:
            link.close()

    async def run_script(self, script: Script, key: str, *arguments: bytes | str) -> Any:
        async def ask(client: _Client) -> Any:
            try:
                return await client.evalsha(script.digest, keys=[key], args=list(arguments))
            except NoScriptError:  # it has not run: the server was restarted, or is another one
                return await client.eval(script.text, keys=[key], args=list(arguments))

        return await self._perform(script.name, ask)

    async def read_field(self, key: str, field: str) -> bytes | None:
        async def ask(client: _Client) -> Any:
            return await client.hget(key, field)

        value: bytes | None = await self._perform("load", ask)
        return value

    async def _perform(self, operation: str, ask: _Ask) -> Any:
        """
        Raises:
            StorageError: With nothing in its text that the server said but the code of its error.
        """
        self._check_open()
        link = self._current()
        try:
            with trio.move_on_after(self._timeout):
                return await link.ask(ask)
        except Exception as exc:
            if not _leaves_connection_sound(exc):
                link.retire()
            self._check_open()
            raise StorageError(f"{self.address} failed to {operation} the session: {_describe(exc)}") from exc
        link.retire()
        self._check_open()
        raise StorageError(f"{self.address} did not {operation} the session within {self._timeout} s (timeout)")

    def _check_open(self) -> None:
        if self.is_closed:
            raise StorageError("the Redis storage is closed")

    def _current(self) -> _Link:
        if self._link is None or self._link.is_retired:
            known = _nodes_of(self._link.client) if self._link is not None else []
            self._link = _Link(_make_client(self.address, known, cluster=self._cluster), self._timeout)
            self._links.add(self._link)
            start_clean(self._nursery, self._run_link, self._link)
        return self._link

    async def _run_link(self, link: _Link) -> None:
        try:
            await link.run()
        finally:
            self._links.discard(link)


def _nodes_of(client: _Client) -> list[TCPLocation]:
    """The nodes that a client knows of: the one in the url may be the one that died."""
    if not isinstance(client, coredis.RedisCluster):
        return []
    return [TCPLocation(node.host, node.port) for node in client.connection_pool.cluster_layout.nodes]


def _leaves_connection_sound(error: Exception) -> bool:
    """Whether the server answered, and will not answer otherwise on a new connection. (A server that is read-only was
    the primary until now, and its name may belong to another by now.)
    """
    return isinstance(error, ResponseError) and not isinstance(error, (ReadOnlyError, MovedError))


def _describe(error: Exception) -> str:
    """The kind of an error. Its text is left out, unless it is the code of a server's error, such as OOM. Where
    coredis has a class for a code, it has cut that from the text.
    """
    if isinstance(error, MovedError):
        return "the server is part of a cluster (cluster=True)"
    if type(error) is ResponseError:
        code = str(error).partition(" ")[0]
        if code.isascii() and code.isalpha() and code.isupper():
            return code
    return describe_crash(error)
