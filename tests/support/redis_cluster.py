"""A real Redis Cluster of several nodes, between which a slot can be moved step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import trio
from support.redis_server import RedisServer, free_port, serve_redis

SLOTS = 16384
KEYS_AT_A_TIME = 100


def cluster_options() -> tuple[str, ...]:
    """Of one node. With replica migration, a node that gives its last slot away would become a replica."""
    stays = ("--cluster-allow-replica-migration", "no")
    return ("--cluster-enabled", "yes", *stays, "--cluster-port", str(free_port()))


@attrs.frozen
class RedisCluster:
    """Nodes that know each other. The first ones own the slots in equal parts; the last node owns none at first."""

    nodes: tuple[RedisServer, ...]

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def id_of(self, node: RedisServer) -> str:
        return _text(node.ask("CLUSTER", "MYID"))

    def slot_of(self, key: str) -> int:
        return int(self.nodes[0].ask("CLUSTER", "KEYSLOT", key).strip(b":\r\n"))

    def count_errors(self, node: RedisServer, code: str) -> int:
        """How many answers of the node were this error."""
        lines = _text(node.ask("INFO", "errorstats")).splitlines()
        return sum(int(line.rpartition("=")[2]) for line in lines if line.startswith(f"errorstat_{code}:"))

    def owner_of(self, slot: int) -> RedisServer:
        """By what each node says of itself."""
        (owner,) = [node for node in self.nodes if _owns(node, slot)]
        return owner

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with ExitStack() as frozen:
            for node in self.nodes:
                frozen.enter_context(node.frozen())
            yield


@attrs.frozen
class Move:
    """A slot on its way to another node, by the commands of a resharding: announce it, move its keys, and end.

    From the announcement on, the node of before answers ASK for keys that it no longer has, and MOVED once it was told
    of the end. (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/, "Live reconfiguration".)
    """

    cluster: RedisCluster
    slot: int
    source: RedisServer
    target: RedisServer

    def announce(self) -> None:
        """To the target first: else the source would send clients to a node that refuses them."""
        _done(self.target, "CLUSTER", "SETSLOT", str(self.slot), "IMPORTING", self.cluster.id_of(self.source))
        _done(self.source, "CLUSTER", "SETSLOT", str(self.slot), "MIGRATING", self.cluster.id_of(self.target))

    def move_keys(self, count: int = KEYS_AT_A_TIME) -> bool:
        """Up to `count` of them. False: there was none."""
        keys = _bulks(self.source.ask("CLUSTER", "GETKEYSINSLOT", str(self.slot), str(count)))
        if keys:
            _done(self.source, "MIGRATE", "127.0.0.1", str(self.target.port), "", "0", "5000", "KEYS", *keys)
        return bool(keys)

    def end_at(self, node: RedisServer) -> None:
        """The target must be told first."""
        _done(node, "CLUSTER", "SETSLOT", str(self.slot), "NODE", self.cluster.id_of(self.target))


@contextmanager
def serve_cluster(home: Path, count: int) -> Iterator[RedisCluster]:
    """Redis takes 2 s until it says that a cluster is well."""
    with ExitStack() as everything:
        servers = []
        for number in range(count):
            (place := home / f"n{number}").mkdir()
            servers.append(everything.enter_context(serve_redis(place, *cluster_options(), port=free_port())))
        first, *others = servers
        owners = servers[:-1] or servers
        for number, node in enumerate(owners):
            begin, end = (SLOTS * edge // len(owners) for edge in (number, number + 1))
            _done(node, "CLUSTER", "ADDSLOTSRANGE", str(begin), str(end - 1))
        for number, node in enumerate(others, 2):
            _done(node, "CLUSTER", "SET-CONFIG-EPOCH", str(number))  # else the nodes contend for it first
            _done(node, "CLUSTER", "MEET", "127.0.0.1", str(first.port), first.options[-1])
        while not all(_is_well(node, count) for node in servers):
            trio.run(trio.sleep, 0.05)  # other processes: no event tells
        yield RedisCluster(tuple(servers))


def _is_well(node: RedisServer, count: int) -> bool:
    told = node.ask("CLUSTER", "INFO")
    return b"cluster_state:ok" in told and b"cluster_known_nodes:%d\r" % count in told


def _owns(node: RedisServer, slot: int) -> bool:
    (own,) = [line for line in _text(node.ask("CLUSTER", "NODES")).splitlines() if "myself" in line]
    ranges = [part.partition("-") for part in own.split()[8:] if not part.startswith("[")]
    return any(int(begin) <= slot <= int(end or begin) for begin, _, end in ranges)


def _done(node: RedisServer, *command: str | bytes) -> None:
    answer = node.ask(*command)
    assert answer.startswith(b"+OK"), (command, answer)


def _text(bulk: bytes) -> str:
    """A bulk string: `$<length>`, and the text."""
    return bulk.partition(b"\r\n")[2].decode().rstrip("\r\n")


def _bulks(array: bytes) -> list[bytes]:
    """An array of bulk strings, none of which has a line end in it."""
    return array.split(b"\r\n")[2::2]
