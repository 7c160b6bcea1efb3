"""A stranger learns nothing of a session from the time that an answer takes: with a real clock and a real Redis."""

from __future__ import annotations

import random
import time
from itertools import product
from pathlib import Path

import trio
from support.harness import ALICE, BOB, echo_backend
from support.redis_server import serve_redis

from trio_vmcp import Backend, FactorySettings, SessionNotFound, open_session_factory, open_session_manager
from trio_vmcp.storage.redis import open_redis_storage
from trio_vmcp.testing import open_loopback

ROUNDS = 150  # answers of each kind
# Of pairs of an answer for an unknown id and one of another kind: how often the second takes longer. 0.5 if the times
# are of one distribution; by chance it is beyond these bounds in less than one of ten thousand runs (Mann-Whitney).
BOUNDS = 0.37, 0.63


async def test_the_time_of_a_refusal_does_not_tell_whether_a_session_exists(tmp_path: Path) -> None:
    """Unknown, another's and live here, another's and asleep in the storage, terminated: in any order, while the owner
    uses its session.
    """
    settings = FactorySettings(identity_keys=(b"k" * 32,), on_exit="suspend")
    choices = random.Random(7)
    with serve_redis(tmp_path) as redis:
        async with open_loopback(echo_backend()) as url, open_redis_storage(redis.url) as storage:
            async with (
                open_session_factory(storage=storage, settings=settings) as factory,
                open_session_manager(factory, [Backend("a", url)]) as manager,
            ):
                attributes = {"text": "x" * 16_000}  # a row takes longer to read than no row
                live, stored, ended = [await manager.create(identity=ALICE, attributes=attributes) for _ in range(3)]
                await stored.suspend()
                await manager.terminate(ended.id, caller=ALICE)
                ids = {"unknown": "no-such-session", "live": live.id, "stored": stored.id, "terminated": ended.id}
                times: dict[str, list[float]] = {kind: [] for kind in ids}
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_use, live.call_tool)
                    for _ in range(ROUNDS):
                        for kind in choices.sample(list(ids), len(ids)):
                            begun = time.perf_counter()
                            try:
                                await manager.get(ids[kind], caller=BOB)
                            except SessionNotFound:
                                times[kind].append(time.perf_counter() - begun)
                    nursery.cancel_scope.cancel()
                assert (await live.call_tool("a_echo")).backend_id == "a"
    for kind in ("live", "stored", "terminated"):
        assert ROUNDS == len(times[kind])
        later = sum(two > one for one, two in product(times["unknown"], times[kind])) / ROUNDS**2
        assert BOUNDS[0] < later < BOUNDS[1], (kind, later)


async def _use(call: object) -> None:
    while True:
        await call("a_echo")  # type: ignore[operator]  # `Session.call_tool`
        await trio.sleep(0.05)
