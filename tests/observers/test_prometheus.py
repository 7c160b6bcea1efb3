"""Metrics of sessions over every channel: they count what happened, never fall, and show no secret."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from support.channels import EVERY_CHANNEL, Channel
from support.endpoint import open_endpoint
from support.harness import ALICE
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock

from trio_vmcp import BackendState, FactorySettings, NoBackends, ToolNotFound, VmcpError, open_session_factory
from trio_vmcp.observe import BackendStateChanged, CallEnded, Event
from trio_vmcp.observers import prometheus
from trio_vmcp.observers.prometheus import OTHER, PrometheusObserver
from trio_vmcp.testing import Error


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """All that only ever grows, by name and labels, as Prometheus reads it."""
    lines = generate_latest(registry).decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in values.items() if "_created" not in name}


def counted(registry: CollectorRegistry, metric: str, /, **labels: str) -> float:
    return registry.get_sample_value(f"trio_vmcp_{metric}", labels) or 0.0


def ended(name: str = "b_x", backend_id: str | None = "b", method: str = "tools/call", outcome: str = "ok") -> Event:
    numbers = {"call": 1, "seconds": 0.2, "waiting": 0.0, "at_backend": 0.2}
    told = {"session": "session #0", "may_have_executed": True, "retried": False}
    return CallEnded(name=name, backend_id=backend_id, method=method, outcome=outcome, **numbers, **told)  # type: ignore[arg-type]  # a dict of several types


@EVERY_CHANNEL
async def test_calls_are_counted_by_backend_and_name(
    channel: Channel, autojump_clock: MockClock, registry: CollectorRegistry
) -> None:
    """And by outcome. Retries and outages are counted, too."""
    backend = channel.backend()
    async with channel.open_session(backend, observers=[PrometheusObserver(registry)]) as session:
        assert 1 == counted(registry, "sessions")
        for _ in range(3):
            await session.call_tool("b_echo", {})
        backend.fail("tools/call", Error(-32603, "no"), times=1)
        with pytest.raises(VmcpError):
            await session.call_tool("b_echo", {})
        with pytest.raises(ToolNotFound):
            await session.call_tool("b_CANARY", {})
    labels = {"backend": "b", "method": "tools/call", "name": "b_echo"}
    assert 3 == counted(registry, "calls_total", **labels, outcome="ok")
    assert 1 == counted(registry, "calls_total", **labels, outcome="BackendRejected")
    unknown = {"backend": "", "method": "tools/call", "name": "", "outcome": "ToolNotFound"}
    assert 1 == counted(registry, "calls_total", **unknown)
    assert 4 == counted(registry, "call_seconds_count", backend="b", method="tools/call")
    assert 1 == counted(registry, "backend_state_changes_total", backend="b", old="connecting", new="ready")
    assert (0, 1) == (counted(registry, "sessions"), counted(registry, "sessions_closed_total", how="terminated"))
    assert "CANARY" not in generate_latest(registry).decode()


@EVERY_CHANNEL
async def test_counters_never_fall(channel: Channel, autojump_clock: MockClock, registry: CollectorRegistry) -> None:
    """Not when a backend is lost or removed, not when a session closes, not when the factory is left."""
    seen: list[dict[str, float]] = []

    class Watch:
        def on_event(self, event: Event) -> None:
            seen.append(samples(registry))

    async with open_endpoint(channel, observers=[PrometheusObserver(registry), Watch()]) as endpoint:
        for _ in range(2):
            session = await endpoint.factory.make_session([endpoint.configured(ALICE)])
            for _ in range(2):
                await session.call_tool("b_echo", {})
            await endpoint.lose(ALICE)
            with suppress(VmcpError):
                await session.call_tool("b_echo", {})
            await trio.sleep(5)
            await session.remove_backend("b")
            await session.aclose()
    seen.append(samples(registry))
    assert 4 <= seen[-1]['trio_vmcp_calls_total{backend="b",method="tools/call",name="b_echo",outcome="ok"}']
    assert 2 == seen[-1]['trio_vmcp_sessions_closed_total{how="terminated"}']
    for before, after in pairwise(seen):
        fell = {name for name, value in before.items() if after.get(name, -1.0) < value}
        assert set() == fell - {"trio_vmcp_sessions"}  # the one gauge


async def test_two_factories_may_share_an_observer(autojump_clock: MockClock, registry: CollectorRegistry) -> None:
    """The counts are those of both."""
    observer = PrometheusObserver(registry)
    for _ in range(2):
        async with open_session_factory(connector=PlainConnector(), observers=[observer]) as factory:
            session = await factory.make_session(plain_backends(2))
            await session.call_tool("b1_echo")
    assert 2 == counted(registry, "sessions_opened_total") == counted(registry, "opening_seconds_count")
    labels = {"backend": "b1", "method": "tools/call", "name": "b1_echo", "outcome": "ok"}
    assert 2 == counted(registry, "calls_total", **labels)


async def test_openings_that_fail_are_counted(autojump_clock: MockClock, registry: CollectorRegistry) -> None:
    settings = FactorySettings(min_backends=1)
    async with open_session_factory(
        connector=PlainConnector(), observers=[PrometheusObserver(registry)], settings=settings
    ) as factory:
        with pytest.raises(NoBackends):
            await factory.make_session([])
    assert 1 == counted(registry, "sessions_failed_total", outcome="NoBackends")
    assert 0 == counted(registry, "sessions") == counted(registry, "sessions_opened_total")


def series(registry: CollectorRegistry, name: str) -> Iterator[dict[str, str]]:
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == f"trio_vmcp_{name}":
                yield dict(sample.labels)


def test_backends_and_names_without_end_are_one_series(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backends come and go, and list ever new names: what comes after the limits is counted under `OTHER`."""
    monkeypatch.setattr(prometheus, "MOST_BACKENDS", 5)
    monkeypatch.setattr(prometheus, "MOST_NAMES", 20)
    observer = PrometheusObserver(registry)
    for number in range(50):
        observer.on_event(ended(name=f"b_{number}"))
        observer.on_event(ended(name=f"b_{number}"))
    for number in range(50):
        observer.on_event(ended(name="x", backend_id=f"b{number}"))
    found = list(series(registry, "calls_total"))
    assert 5 + 1 == len({label["backend"] for label in found})
    assert 20 == len({(label["backend"], label["name"]) for label in found if label["name"] != OTHER})
    assert 150 == sum(value for name, value in samples(registry).items() if "calls_total" in name)


@pytest.mark.parametrize("method", ["resources/read", "resources/subscribe", "completion/complete"])
def test_uris_are_no_labels(method: str, registry: CollectorRegistry) -> None:
    """There is no limit to them, and they may say anything."""
    PrometheusObserver(registry).on_event(ended(name="file:///CANARY", method=method))
    assert "CANARY" not in generate_latest(registry).decode()
    assert 1 == counted(registry, "calls_total", backend="b", method=method, name="", outcome="ok")


def test_without_prometheus_client_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else works without it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, prometheus.__name__)
    with pytest.raises(ImportError) as caught:
        __import__(prometheus.__name__)
    assert "PrometheusObserver needs prometheus_client: pip install 'trio-vmcp[prometheus]'" == str(caught.value)


def test_a_record_of_a_kind_that_is_unknown_is_ignored(registry: CollectorRegistry) -> None:
    """A later release may have more of them."""
    before = samples(registry)
    PrometheusObserver(registry).on_event(object())  # type: ignore[arg-type]  # that is the point
    assert {name for name, value in samples(registry).items() if value} == {n for n, value in before.items() if value}


def test_a_state_is_counted_by_its_shown_name(registry: CollectorRegistry) -> None:
    changed = BackendStateChanged(
        session="session #0",
        backend_id="b",
        old=BackendState.READY,
        new=BackendState.DEGRADED,
        why="CANARY",
        since=datetime.now(UTC),
    )
    PrometheusObserver(registry).on_event(changed)
    assert 1 == counted(registry, "backend_state_changes_total", backend="b", old="ready", new="degraded")
    assert "CANARY" not in generate_latest(registry).decode()
