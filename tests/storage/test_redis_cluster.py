"""Rows in a real Redis Cluster of three nodes, also while the slot of the rows moves from one node to another."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from support.redis_cluster import Move, RedisCluster, cluster_options, serve_cluster
from support.redis_server import free_port, serve_redis
from support.storage_works import fails, works
from support.stored import METADATA

from trio_vmcp import SessionExists, SessionNotFound, Storage, StorageError
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import storage_contract
from trio_vmcp.testing._storage_contract import _check_history

TIMEOUT = 2.0  # s, of an operation
TTL = 600.0
WORKERS, ROWS_EACH = 3, 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with serve_cluster(tmp_path_factory.mktemp("cluster"), 3) as served:
        yield served


def open_there(
    cluster: RedisCluster, ttl: float = TTL, prefix: str = "trio_vmcp:session:"
) -> AbstractAsyncContextManager[Storage]:
    return open_redis_storage(cluster.url, ttl=ttl, key_prefix=prefix, timeout=TIMEOUT, cluster=True)


async def test_a_cluster_keeps_the_contract(cluster: RedisCluster) -> None:
    """Every operation touches one key."""
    await storage_contract(partial(open_there, cluster))


async def test_a_cluster_that_is_away_and_comes_back(cluster: RedisCluster) -> None:
    """A client of a cluster asks for its nodes when it is opened; that this fails ends nothing but the operation."""
    async with open_redis_storage(f"redis://127.0.0.1:{free_port()}", cluster=True) as storage:
        await fails(storage, 1.0, "^Redis at '127.0.0.1', port .* failed to ")
    async with open_redis_storage(cluster.url, cluster=True, timeout=0.2) as storage:
        with cluster.frozen():
            for _ in range(2):
                with pytest.raises(StorageError, match=r"within 0\.2 s"):
                    await storage.load(METADATA.session_id)
        await works_soon(storage)


async def works_soon(storage: Storage) -> None:
    """On a busy machine, a new client may take longer than its timeout to connect to three nodes."""
    with trio.fail_after(5):
        for number in itertools.count():
            with suppress(StorageError):
                await works(storage, f"after-{number}")
                return


async def test_part_of_a_cluster_says_so(tmp_path: Path) -> None:
    """A node that does not have the slot, asked without cluster=True, is an error that names the argument."""
    with serve_redis(tmp_path, *cluster_options(), port=free_port()) as server:
        server.ask("CLUSTER", "ADDSLOTSRANGE", "0", "1")
        async with open_redis_storage(server.url) as storage:
            with pytest.raises(StorageError, match="failed to load the session: "):
                await storage.load(METADATA.session_id)


# A slot that moves.


@attrs.define(eq=False)
class Rows:
    """Rows that tasks use by way of two storages, and what the storages have acknowledged of them.

    Attributes:
        versions: The version of each row that stands.
        deleted: Ids whose tombstone stands.
        unknown: Of each id whose last operation failed, the versions at which the row may be; None: not there.
        done: How many operations have succeeded.
    """

    storages: tuple[Storage, Storage]
    may_fail: bool
    choices: random.Random = attrs.field(factory=lambda: random.Random(1))
    versions: dict[str, int] = attrs.field(factory=dict)
    deleted: set[str] = attrs.field(factory=set)
    unknown: dict[str, set[int | None]] = attrs.field(factory=dict)
    done: int = 0
    is_over: bool = False

    async def work(self, name: str) -> None:
        """On rows of its own. (A task that is cancelled would not know what became of its last operation.)"""
        ids = (f"{name}-{number}" for number in itertools.count())
        own = [next(ids) for _ in range(ROWS_EACH)]
        while not self.is_over:
            place = self.choices.randrange(ROWS_EACH)
            if own[place] in self.versions:
                what = self.choices.choice(("replace", "replace", "touch", "load", "delete"))
                await self.operate(own[place], what)
            else:
                own[place] = next(ids)
                await self.operate(own[place], "create")

    async def operate(self, session_id: str, what: str) -> None:
        """One operation, by either storage, within its time."""
        storage, version = self.choices.choice(self.storages), self.versions.get(session_id)
        following = attrs.evolve(METADATA, session_id=session_id, version=(version or 0) + 1)
        operations: dict[str, tuple[Callable[[], Awaitable[None]], int | None]] = {
            "create": (lambda: storage.create(following), following.version),
            "replace": (lambda: storage.replace(following, expected_version=following.version - 1), following.version),
            "touch": (lambda: storage.touch(session_id, expected_version=version), version),
            "load": (lambda: self.check_stands(storage, session_id), version),
            "delete": (lambda: storage.delete(session_id, expected_version=version), None),
        }
        operate, afterwards = operations[what]
        try:
            with trio.fail_after(TIMEOUT + 0.5):
                await operate()
        except StorageError as error:
            if not self.may_fail or type(error) is not StorageError:  # such as MetadataConflict
                raise
            self.versions.pop(session_id, None)
            self.unknown[session_id] = {version, afterwards}
            return
        self.done += 1
        if afterwards is not None:
            self.versions[session_id] = afterwards
        else:
            del self.versions[session_id]
            self.deleted.add(session_id)

    async def check_stands(self, storage: Storage, session_id: str) -> None:
        assert self.versions[session_id] == (await storage.load(session_id)).version

    async def check_all(self, storage: Storage) -> None:
        for session_id in self.versions:
            await self.check_stands(storage, session_id)
        for session_id, versions in self.unknown.items():
            try:
                found: int | None = (await storage.load(session_id)).version
            except SessionNotFound:
                found = None
            assert found in versions
        for session_id in self.deleted:
            with pytest.raises(SessionExists):
                await storage.create(attrs.evolve(METADATA, session_id=session_id))

    async def go_on(self, operations: int = 8) -> None:
        """Returns after so many further operations."""
        until = self.done + operations
        with trio.fail_after(10):
            while self.done < until:  # noqa: ASYNC110  # the workers set no event
                await trio.sleep(0.002)


@pytest.mark.parametrize("to", ["a node that has slots", "a new node"])
async def test_rows_are_used_while_their_slot_moves(to: str, cluster: RedisCluster) -> None:
    """No row or tombstone is lost, and no operation fails; but clients of before do not know a node that was added to
    the cluster, so operations may fail, in bounded time, until a slot is its own.
    """
    is_new = to == "a new node"
    prefix = f"{{{to}}}:"  # one slot for all rows: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
    slot = cluster.slot_of(prefix)
    source = cluster.owner_of(slot)
    target = cluster.nodes[-1] if is_new else next(node for node in cluster.nodes[:2] if node is not source)
    move = Move(cluster, slot, source, target)
    asks, moves = (cluster.count_errors(source, code) for code in ("ASK", "MOVED"))
    async with (
        open_there(cluster, prefix=prefix) as here,
        open_there(cluster, prefix=prefix) as there,
        open_there(cluster, prefix=prefix) as idle,  # knows the map of before alone, whatever the others have read
    ):
        with pytest.raises(SessionNotFound):
            await idle.load("none")  # now it has read the map
        rows = Rows((here, there), may_fail=is_new)
        async with trio.open_nursery() as workers:
            for number in range(WORKERS):
                workers.start_soon(rows.work, str(number))
            await rows.go_on(WORKERS * ROWS_EACH)
            await trio.to_thread.run_sync(move.announce)
            await rows.go_on()
            while await trio.to_thread.run_sync(move.move_keys, 4):
                await rows.go_on(0 if is_new else 3)
            for node in (target, source):
                await trio.to_thread.run_sync(move.end_at, node)
                await rows.go_on()
            rows.is_over = True
        for storage in (here, there, idle):
            await rows.check_all(storage)
    assert cluster.count_errors(source, "ASK") > asks
    assert cluster.count_errors(source, "MOVED") > moves
    assert target is cluster.owner_of(slot)
    assert rows.deleted


async def test_histories_are_linearizable_while_the_slot_moves(cluster: RedisCluster) -> None:
    """There and back; some operations are cancelled."""
    prefix = "{to and fro}:"
    slot = cluster.slot_of(prefix)

    async def move_the_slot() -> None:
        while True:
            for source, target in itertools.permutations(cluster.nodes[:2]):
                if cluster.owner_of(slot) is source:
                    move = Move(cluster, slot, source, target)
                    await trio.to_thread.run_sync(move.announce)
                    await trio.sleep(0.01)
                    while await trio.to_thread.run_sync(move.move_keys):
                        pass
                    await trio.sleep(0.01)
                    for node in (target, source):
                        await trio.to_thread.run_sync(move.end_at, node)

    async with open_there(cluster, prefix=prefix) as storage, trio.open_nursery() as nursery:
        nursery.start_soon(move_the_slot)
        for seed in range(3):
            await _check_history(storage, random.Random(seed))
        nursery.cancel_scope.cancel()
