"""`/metrics`: for Prometheus, with its extra and without."""

from __future__ import annotations

import sys

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from support.front import FrontWorld, front_world
from trio.testing import MockClock

from trio_vmcp.observers.prometheus import PrometheusObserver


async def samples(world: FrontWorld) -> dict[str, float]:
    """Values by name, with the labels where there are some."""
    found = await world.request("GET", path="/metrics")
    assert 200 == found.status, found.body
    assert found.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(found.body.decode()))
    assert len(families) == len({family.name for family in families})
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def test_it_has_what_the_observer_counts(autojump_clock: MockClock) -> None:
    """In the registry of the observer that the sessions have; and the counts of the manager and of the front."""
    registry = CollectorRegistry()
    Counter("application_things", "Of the application.", registry=registry).inc()
    async with front_world(observers=[PrometheusObserver(registry)]) as world:
        client = await world.initialize()
        await client.result("tools/call", {"name": "a_echo", "arguments": {}})
        assert 404 == (await world.request("GET", path="/nothing")).status
        found = await samples(world)
        assert 1 == found["trio_vmcp_calls_total a tools/call a_echo ok"]
        assert 1 == found["application_things_total"]
        assert (1, 1, 0) == tuple(found[f"trio_vmcp_manager_{name}"] for name in ("live", "created_total", "in_flight"))
        assert (0, 1) == (found["trio_vmcp_front_in_flight"], found["trio_vmcp_front_refused_total"])


async def test_without_an_observer_it_has_the_default_registry(autojump_clock: MockClock) -> None:
    """Which an application fills with what it likes."""
    async with front_world() as world:
        found = await samples(world)
        assert "python_info" in {name.partition(" ")[0] for name in found}
        assert 0 == found["trio_vmcp_manager_live"]


async def test_every_count_of_the_manager_is_there(autojump_clock: MockClock) -> None:
    """Also those that later versions add: what only grows is a counter."""
    async with front_world() as world:
        names = {name for name in await samples(world) if name.startswith("trio_vmcp_manager_")}
        fields = {field.removesuffix("_total") for field in names}
        counted = {f"trio_vmcp_manager_{name}" for name in type(world.manager.statistics).__annotations__}
        assert counted == fields


async def test_without_its_extra_it_names_the_extra(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """404, and the command that installs it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with front_world() as world:
        found = await world.request("GET", path="/metrics")
        assert 404 == found.status
        assert "trio-vmcp[prometheus]" in found.json["error"]["message"]
        assert 200 == (await world.request("GET", path="/status")).status
