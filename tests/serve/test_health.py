"""`/healthz` and `/readyz`: what balancers are told, without credentials and whatever their Host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from support.front import FrontWorld, Received, front_world
from support.harness import echo_backend
from support.scripted_storage import ScriptedStorage
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import StorageError

EVERY_PROBE = pytest.mark.parametrize("path", ["/healthz", "/readyz"])
OPERATOR_PATHS = ("/healthz", "/readyz", "/status", "/status.css", "/status.js", "/metrics")


async def get(world: FrontWorld, path: str, headers: dict[str, str] | None = None) -> Received:
    return await world.request("GET", headers=headers or {}, path=path)


async def away() -> None:
    raise StorageError("redis at CANARY.test is away")


class NeverAsked:
    """An authenticator that must not be asked."""

    async def authenticate(self, headers: object) -> object:
        raise AssertionError("a probe has no credentials")


@EVERY_PROBE
async def test_a_probe_needs_no_credentials_and_no_host(path: str, autojump_clock: MockClock) -> None:
    """Balancers ask by address. A wrong Origin does not matter either."""
    async with front_world(authenticator=NeverAsked()) as world:  # type: ignore[arg-type]  # gives no identity
        found = await get(world, path, {"host": "10.0.0.7:8000", "origin": "https://elsewhere.test"})
        assert (200, "application/json", "no-store") == (
            found.status,
            found.headers["content-type"],
            found.headers["cache-control"],
        )


@EVERY_PROBE
async def test_backends_that_are_away_do_not_count(path: str, autojump_clock: MockClock) -> None:
    """An instance without a single backend still gets requests: its sessions say what is missing."""
    backend = echo_backend()
    async with front_world(backend) as world:
        backend.crash()
        await world.initialize()
        assert 200 == (await get(world, path)).status


async def test_a_server_that_drains_is_alive_and_not_ready(autojump_clock: MockClock) -> None:
    """From the beginning of the drain on, so that a balancer sends no more."""
    async with front_world() as world:
        await world.app.drain()
        ready, alive = await get(world, "/readyz"), await get(world, "/healthz")
        assert (503, 200) == (ready.status, alive.status)
        assert {"ready": False, "why": "the server is shutting down"} == ready.json
        assert "1" == ready.headers["retry-after"]


async def test_a_server_that_starts_is_not_ready(autojump_clock: MockClock) -> None:
    """Until whatever runs the application says that it is."""
    async with front_world() as world:
        world.app.is_starting = True
        found = await get(world, "/readyz")
        assert (503, "the server is starting") == (found.status, found.json["why"])
        world.app.is_starting = False
        assert 200 == (await get(world, "/readyz")).status


async def test_it_is_not_ready_while_the_storage_is_away(autojump_clock: MockClock) -> None:
    """And ready again a second after the storage is back. What the storage says of itself is not told to strangers."""
    storage = ScriptedStorage()
    async with front_world(storage=storage) as world:
        storage.before["load"] = away
        found = await get(world, "/readyz")
        assert (503, {"ready": False, "why": "the storage of sessions is away"}) == (found.status, found.json)
        assert 200 == (await get(world, "/healthz")).status
        del storage.before["load"]
        await trio.sleep(1)
        assert 200 == (await get(world, "/readyz")).status


async def test_a_storage_that_hangs_is_away_after_two_seconds(autojump_clock: MockClock) -> None:
    """However long `storage_timeout` is."""
    storage = ScriptedStorage(before={"load": trio.sleep_forever})
    async with front_world(storage=storage) as world:
        before = trio.current_time()
        found = await get(world, "/readyz")
        assert (503, 2.0) == (found.status, round(trio.current_time() - before, 3))
        assert "the storage of sessions gave no answer within 2.0 s" == found.json["why"]


@pytest.mark.parametrize("answer", [trio.lowlevel.checkpoint, away], ids=["there", "away"])
async def test_the_storage_is_asked_once_a_second_at_most(
    answer: Callable[[], Awaitable[None]], autojump_clock: MockClock
) -> None:
    """Ten balancers that probe ten times a second cost one operation a second."""
    storage = ScriptedStorage(before={"load": answer})
    async with front_world(storage=storage) as world:
        for _ in range(50):
            for _ in range(10):
                world.start("GET", path="/readyz")
            await trio.sleep(0.1)
        await wait_all_tasks_blocked()
        assert storage.calls["load"] in (5, 6)


async def test_probes_share_one_question(autojump_clock: MockClock) -> None:
    """One that is given up does not hurt the others, which all get the answer when it comes."""

    async def slow() -> None:
        await trio.sleep(1.5)

    storage = ScriptedStorage(before={"load": slow})
    async with front_world(storage=storage) as world:
        probes = [world.start("GET", path="/readyz") for _ in range(5)]
        await trio.sleep(1.2)
        probes[0].scope.cancel()
        probes.append(world.start("GET", path="/readyz"))
        for probe in probes:
            await probe.done.wait()
        assert [0, 200, 200, 200, 200, 200] == [probe.status for probe in probes]
        assert 1 == storage.calls["load"]


async def test_it_is_not_ready_once_the_manager_has_ended(autojump_clock: MockClock) -> None:
    """The process is alive still."""
    async with front_world() as world:
        pass
    async with trio.open_nursery() as world.nursery:
        ready, alive = await get(world, "/readyz"), await get(world, "/healthz")
    assert (503, "the sessions of this server have ended", 200) == (ready.status, ready.json["why"], alive.status)


@pytest.mark.parametrize("path", OPERATOR_PATHS)
@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_other_verbs_are_refused(verb: str, path: str, autojump_clock: MockClock) -> None:
    """405 with `Allow` (RFC 9110 §15.5.6)."""
    async with front_world() as world:
        found = await world.request(verb, path=path)
        assert (405, "GET, HEAD") == (found.status, found.headers["allow"])


@pytest.mark.parametrize("path", [*OPERATOR_PATHS, "/nothing"])
async def test_head_is_get_without_a_body(path: str, autojump_clock: MockClock) -> None:
    """Status and type are those of GET, also of a refusal (RFC 9110 §9.3.2)."""
    async with front_world() as world:
        head, found = await world.request("HEAD", path=path), await get(world, path)
        assert (b"", found.status, found.headers["content-type"]) == (
            head.body,
            head.status,
            head.headers["content-type"],
        )
        assert int(head.headers["content-length"]) > 0
