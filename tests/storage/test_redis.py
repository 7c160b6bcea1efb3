"""Rows in a real redis-server: the contract, over every way to it, and every way in which a Redis can fail."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
import trio
import trio.testing
import trustme
from support.redis_server import RedisServer, free_port, serve_redis
from support.storage_works import NEXT, fails, works
from support.stored import METADATA

from trio_vmcp import MetadataConflict, SessionExists, Storage, StorageError
from trio_vmcp.metadata import UnreadableMetadata
from trio_vmcp.storage import NotifyingStorage
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import storage_contract
from trio_vmcp.testing._storage_contract import _check_history

ID = METADATA.session_id
PASSWORD = "p@ss:/w?rd#1"

OpenStorage = Callable[[float], AbstractAsyncContextManager[Storage]]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with serve_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_server: RedisServer) -> Iterator[RedisServer]:
    """An empty Redis on a unix socket; it is as new after the test."""
    shared_server.ask("FLUSHALL")
    yield shared_server
    shared_server.ask("CONFIG", "SET", "maxmemory", "0")


def open_there(server: RedisServer, timeout: float = 5.0) -> AbstractAsyncContextManager[NotifyingStorage]:
    return open_redis_storage(server.url, timeout=timeout)


# The contract.


def serve_tls(home: Path, everything: ExitStack) -> str:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(home / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(home / "key.pem")
    with (home / "cert.pem").open("wb") as file:
        file.writelines(part.bytes() for part in issued.cert_chain_pems)
    port = free_port()
    files = ("--tls-cert-file", str(home / "cert.pem"), "--tls-key-file", str(home / "key.pem"))
    options = (*files, "--tls-ca-cert-file", str(home / "ca.pem"), "--tls-auth-clients", "no")
    everything.enter_context(serve_redis(home, "--tls-port", str(port), "--requirepass", PASSWORD, *options))
    return f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/2?ssl_ca_certs={quote(str(home / 'ca.pem'))}"


def serve_socket(home: Path, everything: ExitStack) -> str:
    return everything.enter_context(serve_redis(home)).url


@pytest.mark.parametrize("way", [serve_socket, serve_tls], ids=["socket", "TLS"])
async def test_redis_keeps_the_contract(way: Callable[[Path, ExitStack], str], tmp_path: Path) -> None:
    """Over a unix socket, and over TLS with a password."""
    with ExitStack() as everything:
        await storage_contract(partial(_open_with_ttl, way(tmp_path, everything)))


def _open_with_ttl(url: str, ttl: float) -> AbstractAsyncContextManager[Storage]:
    return open_redis_storage(url, ttl=ttl)


async def test_histories_are_linearizable_while_connections_break(redis: RedisServer) -> None:
    """Answers that are lost on the way leave no half-done operation, and no answer goes to another request."""

    async def break_connections() -> None:
        while True:
            redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await trio.sleep(0.01)

    async with open_there(redis) as storage, trio.open_nursery() as nursery:
        nursery.start_soon(break_connections)
        for seed in range(5):
            await _check_history(storage, random.Random(seed))
        nursery.cancel_scope.cancel()


# What stands in Redis.


async def test_no_key_shows_an_id(redis: RedisServer) -> None:
    """Session ids are bearer tokens: a key is the prefix and a digest."""
    async with open_redis_storage(redis.url, key_prefix="mine:") as storage:
        await storage.create(METADATA)
        await storage.delete("another-secret")
    keys = redis.ask("KEYS", "*")
    assert 2 == keys.count(b"mine:")
    assert b"secret" not in keys


async def test_instances_share_rows(redis: RedisServer) -> None:
    """Of two instances that replace one row, one wins; what one deletes is gone for the other."""
    async with open_there(redis) as here, open_there(redis) as there:
        await here.create(METADATA)
        outcomes: list[str] = []

        async def write(storage: Storage) -> None:
            try:
                await storage.replace(NEXT, expected_version=METADATA.version)
            except MetadataConflict:
                outcomes.append("lost")
            else:
                outcomes.append("won")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, here)
            nursery.start_soon(write, there)
        assert ["lost", "won"] == sorted(outcomes)
        await there.delete(ID)
        with pytest.raises(SessionExists):
            await here.create(METADATA)


async def test_a_corrupt_row_is_an_error(redis: RedisServer) -> None:
    """A row that nothing here has written is a StorageError for every operation that reads it."""
    async with open_there(redis) as storage:
        await storage.create(METADATA)
        (key,) = [line for line in redis.ask("KEYS", "*").split(b"\r\n") if line.startswith(b"trio_vmcp:session:")]
        redis.ask("HSET", key, "data", "{}")
        with pytest.raises(UnreadableMetadata, match="schema_version"):
            await storage.load(ID)
        redis.ask("SET", key, "text")
        with pytest.raises(UnreadableMetadata, match="failed to load the session: WrongTypeError"):
            await storage.load(ID)
        with pytest.raises(StorageError, match="failed to touch the session: WrongTypeError"):
            await storage.touch(ID)


# A Redis that fails.


async def test_opening_does_not_wait_for_redis(tmp_path: Path) -> None:
    """A Redis that is not there is a StorageError of the operations, at once; when it is there, they work."""
    server = RedisServer(tmp_path)
    async with open_there(server) as storage:
        await fails(storage, 1.0, "^Redis at '.*' failed to (create|load|replace|touch|delete) the session: ")
        server.start()
        try:
            await works(storage, "late")
        finally:
            server.kill()


async def test_a_killed_redis_is_away_until_it_is_back(tmp_path: Path) -> None:
    """Operations fail at once meanwhile. Then they work, though the scripts are gone with the old process."""
    with serve_redis(tmp_path) as server:
        async with open_there(server) as storage:
            await works(storage, "before")
            server.kill()
            await fails(storage, 1.0, "failed to")
            server.start()
            await works(storage, "after")
            server.ask("SCRIPT", "FLUSH")
            await works(storage, "without scripts")


async def test_a_frozen_redis_is_an_error_within_the_timeout(redis: RedisServer) -> None:
    """Also for operations that begin while it is frozen, and for those that must connect first. Then it works."""
    async with open_there(redis, timeout=0.05) as storage, open_there(redis, timeout=0.05) as fresh:
        await works(storage, "before")
        with redis.frozen():
            await fails(storage, 0.9, r"did not (\w+) the session within 0.05 s \(timeout\)")
            with pytest.raises(StorageError, match="within"):
                await fresh.load(ID)
        await works(fresh, "fresh")
        await works(storage, "after")


async def test_attempts_to_connect_that_time_out_use_nothing_up(redis: RedisServer) -> None:
    """Many operations at once, all of which must connect to a frozen Redis first; when it thaws, the storage works."""
    async with open_there(redis, timeout=0.3) as storage:
        with redis.frozen():
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(_expect_error, storage, f"frozen-{number}")
        await works(storage, "after")


async def test_the_place_of_a_former_primary_is_asked_again(tmp_path: Path) -> None:
    """After a failover the old primary answers read-only on the old connection: the next operation makes a new one."""
    old_home, new_home = tmp_path / "old", tmp_path / "new"
    old_home.mkdir()
    new_home.mkdir()
    with serve_redis(old_home) as old, serve_redis(new_home) as new:
        link_to(old, tmp_path / "s")
        async with open_redis_storage(f"unix://{tmp_path}/s") as storage:
            await works(storage, "before")
            old.ask("REPLICAOF", "127.0.0.1", "1")
            link_to(new, tmp_path / "s")
            with pytest.raises(StorageError, match="ReadOnlyError"):
                await storage.create(METADATA)
            await works(storage, "after")


def link_to(server: RedisServer, place: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(server.socket)


async def serve_losing_an_answer(place: Path, server: RedisServer, *, task_status: trio.TaskStatus[None]) -> None:
    """A way to the server that breaks once, instead of delivering the answer to a script. All else passes."""
    lost: list[bytes] = []

    async def serve(client: trio.SocketStream) -> None:
        async with client, await trio.open_unix_socket(server.socket) as redis:
            async for request in client:
                await redis.send_all(request)
                answer = await redis.receive_some()
                if b"EVALSHA" in request and b"NOSCRIPT" not in answer and not lost:
                    lost.append(answer)
                    return
                await client.send_all(answer)

    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(place))
        listening.listen()
        task_status.started()
        await trio.serve_listeners(serve, [trio.SocketListener(listening)])


@pytest.mark.parametrize("operation", ["create", "replace"])
async def test_a_script_whose_answer_was_lost_is_not_run_again(
    operation: str, redis: RedisServer, tmp_path: Path
) -> None:
    """The outcome is unknown, and not SessionExists or MetadataConflict because of what this operation has written."""
    async with open_there(redis) as direct:
        other = attrs.evolve(METADATA, session_id="so that the server knows the scripts")
        await direct.create(other)
        await direct.replace(attrs.evolve(other, version=other.version + 1), expected_version=other.version)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_losing_an_answer, tmp_path / "s", redis))
            async with open_redis_storage(f"unix://{tmp_path}/s") as storage:
                if operation == "replace":
                    await direct.create(METADATA)
                    operate, written = partial(storage.replace, NEXT, expected_version=METADATA.version), NEXT
                else:
                    operate, written = partial(storage.create, METADATA), METADATA
                with pytest.raises(StorageError) as caught:
                    await operate()
                assert type(caught.value) is StorageError
                assert written == await storage.load(ID)
            nursery.cancel_scope.cancel()


async def _expect_error(storage: Storage, session_id: str) -> None:
    with pytest.raises(StorageError):
        await storage.load(session_id)


async def test_cancelled_callers_use_nothing_up(redis: RedisServer) -> None:
    """A hundred callers that are cancelled in mid-operation, some while the storage connects: then it works."""
    async with open_there(redis) as storage:
        with redis.frozen():
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(storage.load, f"cancelled-{number}")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        await works(storage, "after")


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OOM"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "ReadOnlyError"),
    ],
)
async def test_a_redis_that_refuses_writes(
    before: tuple[str, ...], after: tuple[str, ...], code: str, redis: RedisServer
) -> None:
    """A full Redis, and one that has become a replica, are a StorageError that says so, and work again afterwards."""
    async with open_there(redis) as storage:
        await works(storage, "before")
        redis.ask(*before)
        with pytest.raises(StorageError, match=f"failed to create the session: .*{code}"):
            await storage.create(METADATA)
        redis.ask(*after)
        await works(storage, "after")


async def test_a_wrong_password_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither it nor the url is in the error, in what it comes from, in a repr or in the log."""
    with serve_redis(tmp_path, "--requirepass", PASSWORD) as server:
        url = f"unix://user:canary-%41@{server.socket}"
        async with open_redis_storage(url) as storage:
            with pytest.raises(StorageError) as caught:
                await storage.load(ID)
            shown = repr(storage)
    error: BaseException | None = caught.value
    while error is not None:
        shown += f"{error!r} {error}"
        error = error.__cause__ or error.__context__
    assert "canary" not in shown + caplog.text


@pytest.mark.parametrize(
    ("password", "kind"), [("", "AuthenticationRequiredError"), (":other@", "AuthenticationFailureError")]
)
async def test_the_kind_of_a_refusal_is_told(password: str, kind: str, tmp_path: Path) -> None:
    """Not the first word of what is left of the server's text."""
    with serve_redis(tmp_path, "--requirepass", "right") as redis:
        async with open_redis_storage(f"unix://{password}{redis.socket}") as storage:
            with pytest.raises(StorageError, match=f"failed to load the session: {kind}$"):
                await storage.load("x")


# Notices.


async def test_notices_tell_of_writes_and_deletes_of_others(redis: RedisServer) -> None:
    """They name the session by a tag, soon, and not the writes of this storage itself."""
    async with open_there(redis) as here, open_there(redis) as there, here.notices() as notices:
        await wait_for_listener(redis)
        await there.create(METADATA)
        await here.replace(NEXT, expected_version=METADATA.version)
        await there.replace(attrs.evolve(NEXT, version=NEXT.version + 1), expected_version=NEXT.version)
        await there.delete("gone")
        with trio.fail_after(0.5):
            assert here.notice_tag(ID) == await notices.receive()
            assert here.notice_tag("gone") == await notices.receive()
        assert "gone" not in here.notice_tag("gone")
        with pytest.raises(trio.WouldBlock):
            notices.receive_nowait()


async def test_notices_go_on_after_a_restart(tmp_path: Path) -> None:
    """A listener whose connection broke listens again."""
    with serve_redis(tmp_path) as server:
        async with open_there(server) as here, open_there(server) as there, here.notices() as notices:
            await wait_for_listener(server)
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await wait_for_listener(server)
            await there.delete(ID)
            with trio.fail_after(0.5):
                assert here.notice_tag(ID) == await notices.receive()


async def test_notices_end_with_the_storage(redis: RedisServer) -> None:
    """A loop over notices ends when the storage is closed, and one that begins then ends at once."""
    async with open_there(redis) as storage:
        async with storage.notices() as notices:
            await storage.aclose()
            assert [] == [notice async for notice in notices]
        async with storage.notices() as notices:
            assert [] == [notice async for notice in notices]


async def wait_for_listener(server: RedisServer) -> None:
    with trio.fail_after(5):
        while b":1" not in server.ask("PUBSUB", "NUMSUB", "trio_vmcp:session:notices"):  # noqa: ASYNC110
            await trio.sleep(0.01)  # the other process sets no event


# What a caller gives and gets.


async def test_no_context_of_a_caller_lives_on(redis: RedisServer) -> None:
    """Connections that a call has made outlive it, and must not carry its identity or trace."""
    request: ContextVar[str] = ContextVar("request")
    async with open_there(redis) as storage:
        request.set("alice")
        await storage.delete(ID)
        root = trio.lowlevel.current_root_task()
        assert root is not None
        tasks, own = [root], trio.lowlevel.current_task()
        while tasks:
            task = tasks.pop()
            tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            if task is not own and "redis" in f"{task.coro.__qualname__} {task.name}".lower():
                assert request not in task.context


async def test_the_body_s_error_comes_out_as_itself(redis: RedisServer) -> None:
    """Not in a group."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # it is about leaving the body
        async with open_there(redis) as storage:
            await storage.delete(ID)
            raise ZeroDivisionError


@pytest.mark.parametrize("ttl", [0, -1.0, math.nan, math.inf, True, "10", None])
def test_a_ttl_is_finite(ttl: float) -> None:
    """Redis cannot keep a row for ever: only a finite TTL over 0 is taken."""
    with pytest.raises(ValueError, match=r"ttl=.* is not more than 0 s and at most 1e\+12 s"):
        open_redis_storage("redis://localhost", ttl=ttl)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:6379", "does not begin with redis://, rediss:// or unix://"),
        ("http://:canary@localhost", "does not begin with"),
        ("redis://:canary@localhost:x", "host or port that cannot be read"),
        ("redis://:canary/1@localhost", "host or port that cannot be read"),
        ("redis://:canary@localhost/one", "database that is not a whole number"),
        ("redis://:canary@localhost?canary=1&ssl_ca_certs=x", "what is not known: 'canary', 'ssl_ca_certs'"),
        ("rediss://:canary@localhost?ssl_ca_certs=/none", "certificates that the url of the Redis names"),
        ("rediss://:canary@localhost?ssl_cert_reqs=some", "ssl_cert_reqs that is not"),
        ("unix://:canary@", "unix:///path"),
    ],
)
def test_a_url_that_does_not_fit_is_not_shown(url: str, words: str) -> None:
    """A ValueError says what is wrong."""
    with pytest.raises(ValueError, match=words) as caught:
        open_redis_storage(url)
    assert "canary@" not in str(caught.value)


@pytest.mark.parametrize("url", ["unix:///s", "redis://localhost/1"])
def test_a_cluster_has_no_socket_and_one_database(url: str) -> None:
    """What no cluster has is refused at once."""
    with pytest.raises(ValueError, match="cluster"):
        open_redis_storage(url, cluster=True)
