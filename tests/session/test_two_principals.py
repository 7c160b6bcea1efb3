"""Two principals at one endpoint: only what tells about the endpoint is shared between their sessions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.channels import CHANNELS, EVERY_CHANNEL, Channel
from support.endpoint import Endpoint, open_endpoint
from support.plain_connector import PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    BackendProtocolError,
    BackendRejected,
    BackendState,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    Identity,
    MessageTooLarge,
    Session,
    open_session_factory,
)
from trio_vmcp._principal import principal_key
from trio_vmcp._session.reconnects import LEAST_LINE_TIMEOUT, LINE_TIMEOUT, Endpoints, tells_of_endpoint
from trio_vmcp.models import Backend
from trio_vmcp.testing import CONNECT, Error, Fault, Hang, Refuse, Status

ISSUER = "https://issuer.test"
BOB = Identity(issuer=ISSUER, subject="bob", token="bob-token")
ALICES = tuple(Identity(issuer=ISSUER, subject=f"alice{number}", token=f"token-{number}") for number in range(2))
FOR_HOURS = FactorySettings(idle_timeout=math.inf, backend_init_timeout=20)
# s: the first delay before a reconnect, and the lines that hanging attempts hold.
FIRST_DELAY, IN_LINE = 0.5 * 1.2, 2 * LINE_TIMEOUT

OWN_TROUBLE: dict[str, Fault] = {
    "hangs": Hang(),
    "401": Status(401),
    "403": Status(403),
    "429": Status(429, headers={"retry-after": "30"}),
    "is refused": Error(-32000, "your licence has expired"),
}
EVERY_OWN_TROUBLE = pytest.mark.parametrize(
    ("channel", "trouble"),
    [(c, name) for c in CHANNELS for name, fault in OWN_TROUBLE.items() if c.transport != "stdio" or name[0] in "hi"],
    ids=str,
)


async def open_in_trouble(endpoint: Endpoint, trouble: str, nursery: trio.Nursery) -> None:
    """Sessions of other principals, whose every request meets the trouble."""
    for alice in ALICES:
        endpoint.fail(alice, OWN_TROUBLE[trouble])
        nursery.start_soon(make, endpoint, alice)
    await wait_all_tasks_blocked()


async def make(endpoint: Endpoint, who: Identity, **options: Any) -> Session:
    return await endpoint.factory.make_session([endpoint.configured(who, **options)], identity=who)


async def time_until_answered(session: Session, caller: Identity | None = BOB) -> float:
    """s until a call of "echo" is answered."""
    begun_at = trio.current_time()
    while True:
        try:
            await session.call_tool("b_echo", caller=caller)
        except BackendUnavailable:
            await trio.sleep(0.01)
        else:
            return trio.current_time() - begun_at


@EVERY_OWN_TROUBLE
async def test_trouble_of_one_principal_delays_no_opening(
    channel: Channel, trouble: str, autojump_clock: MockClock
) -> None:
    """While the attempts of others hang or are refused, another principal opens at once, the probe included."""
    async with open_endpoint(channel, settings=FOR_HOURS) as endpoint, trio.open_nursery() as nursery:
        for alice in ALICES:
            endpoint.fail(alice, OWN_TROUBLE[trouble])
            nursery.start_soon(partial(make, endpoint, alice, era="auto"))
        await wait_all_tasks_blocked()
        begun_at = trio.current_time()
        bob = await make(endpoint, BOB, era="auto")
        assert () == bob.failures
        assert channel.era == bob.backends["b"].era
        assert trio.current_time() - begun_at < 1
        nursery.cancel_scope.cancel()


@EVERY_OWN_TROUBLE
async def test_trouble_of_one_principal_delays_no_reconnect(
    channel: Channel, trouble: str, autojump_clock: MockClock
) -> None:
    """While others have trouble, a connection that is lost is back as soon as if they were not there, whether a call or
    the background connects it anew.
    """
    async with open_endpoint(channel, settings=FOR_HOURS) as endpoint, trio.open_nursery() as nursery:
        await open_in_trouble(endpoint, trouble, nursery)
        bob = await make(endpoint, BOB)
        for _ in range(2):
            await trio.sleep(121)
            await endpoint.lose(BOB)
            assert await time_until_answered(bob) <= FIRST_DELAY + IN_LINE + 0.05
        nursery.cancel_scope.cancel()


@EVERY_OWN_TROUBLE
async def test_a_principal_that_is_let_in_is_not_held_up_by_its_past(
    channel: Channel, trouble: str, autojump_clock: MockClock
) -> None:
    """The other direction: trouble that is over ends at the latest at the longest delay, whatever others do."""
    async with open_endpoint(channel, settings=FOR_HOURS) as endpoint, trio.open_nursery() as nursery:
        await open_in_trouble(endpoint, trouble, nursery)
        async with endpoint.factory.open_session([endpoint.configured(ALICES[0])], identity=ALICES[0]) as alice:
            await trio.sleep(100)
            assert ["b"] == [failure.backend_id for failure in alice.failures]
            endpoint.backends[ALICES[0].subject].heal()
            await trio.sleep(60 * 1.2 + 20 + IN_LINE)
            assert () == alice.failures
        nursery.cancel_scope.cancel()


@EVERY_CHANNEL
async def test_sessions_of_one_principal_share_the_pace(channel: Channel, autojump_clock: MockClock) -> None:
    """Five sessions of a principal that is refused make about as many attempts as one, one at a time."""
    async with open_endpoint(channel, settings=FOR_HOURS) as endpoint:
        (alice, *_) = ALICES
        endpoint.fail(alice, Error(-32000, "your licence has expired"))
        for _ in range(5):
            await make(endpoint, alice)
        asked = {"modern": "server/discover", "legacy": "GET" if channel.transport == "sse" else "initialize"}
        before = len(endpoint.times_of(alice, asked[channel.era]))
        await trio.sleep(600)
        times = endpoint.times_of(alice, asked[channel.era])[before:]
        assert 600 / 72 <= len(times) <= 600 / 48 + 10


@pytest.mark.parametrize("channel", [c for c in CHANNELS if c.transport != "stdio"], ids=str)
@pytest.mark.parametrize("where", [CONNECT, "5xx"])
async def test_an_endpoint_that_is_away_is_asked_at_one_pace(
    channel: Channel, where: str, autojump_clock: MockClock
) -> None:
    """Not reached, or HTTP 5xx: all principals together make as many attempts as one session."""
    async with open_endpoint(channel, settings=FOR_HOURS) as endpoint:
        backend = endpoint.backends[BOB.subject]
        rule = backend.fail(CONNECT, Refuse()) if where == CONNECT else backend.fail(lambda _: True, Status(500))
        for who in (*ALICES, BOB):
            await make(endpoint, who)
        opened = rule.struck
        await trio.sleep(600)
        assert 600 / 72 <= rule.struck - opened <= 600 / 48 + 10


async def test_attempts_of_many_principals_follow_one_another(autojump_clock: MockClock) -> None:
    """A backend that comes back is met by one attempt at a time, whichever principals the sessions have."""
    connector = PlainConnector()

    async def refuse() -> None:
        raise OSError

    connector.on_connect["b0"] = refuse
    async with open_session_factory(connector=connector, settings=FOR_HOURS) as factory:
        sessions = [
            await factory.make_session(plain_backends(1), identity=Identity(issuer=ISSUER, subject=str(number)))
            for number in range(30)
        ]
        connector.most_connecting, connector.on_connect["b0"] = 0, partial(trio.sleep, 0.1)
        await trio.sleep(10)
        assert [()] * 30 == [session.failures for session in sessions]
        assert 1 == connector.most_connecting


async def test_many_that_hang_hold_the_line_for_a_bounded_time(autojump_clock: MockClock) -> None:
    """Thirty principals lose an endpoint at one moment and then hang: the attempt behind them begins within about a
    second.
    """
    connector = PlainConnector()
    ended = trio.Event()

    async def end() -> None:
        await ended.wait()
        raise OSError

    connector.services["b0"] = end
    async with open_session_factory(connector=connector, settings=FOR_HOURS) as factory:
        sessions = [
            await factory.make_session(plain_backends(1), identity=Identity(issuer=ISSUER, subject=str(number)))
            for number in range(31)
        ]
        connector.services.clear()

        async def hang_but_for_the_last() -> None:
            if connector.connecting <= 30:
                await trio.sleep_forever()

        connector.on_connect["b0"] = hang_but_for_the_last
        ended.set()
        await trio.sleep(FIRST_DELAY + 2 * LINE_TIMEOUT + 31 * LEAST_LINE_TIMEOUT)
        assert 1 == sum(not session.failures for session in sessions)


async def test_credentials_that_cannot_be_had_are_the_trouble_of_their_principal(autojump_clock: MockClock) -> None:
    """The issuer of one principal's tokens is away: `auth` raises `BackendUnavailable`, on every channel with HTTP."""
    for channel in CHANNELS:
        if channel.transport == "stdio":
            continue

        def auth(backend: Backend, identity: Identity | None) -> None:
            if identity != BOB:
                raise BackendUnavailable(backend.id, "cannot be asked: https://issuer.test could not be reached")

        async with open_endpoint(channel, settings=FOR_HOURS, auth=auth) as endpoint:
            alices = [await make(endpoint, alice) for alice in ALICES]
            assert {FailureReason.UNREACHABLE} == {alice.failures[0].reason for alice in alices}
            bob = await make(endpoint, BOB)
            await trio.sleep(121)
            await endpoint.lose(BOB)
            assert await time_until_answered(bob) <= FIRST_DELAY + IN_LINE
            assert BackendState.READY is bob.backends["b"].state


@pytest.mark.parametrize(
    ("error", "is_shared"),
    [
        (BackendUnavailable("b", "could not be reached"), True),
        (BackendRejected("b", "HTTP 500", code=500, message=""), True),
        (BackendRejected("b", "HTTP 503", code=503, message="", retry_after=3), True),
        (BackendRejected("b", "HTTP 599", code=599, message=""), True),
        (BackendRejected("b", "HTTP 499", code=499, message=""), False),
        (BackendRejected("b", "HTTP 429", code=429, message=""), False),
        (BackendRejected("b", "code 600", code=600, message=""), False),
        (BackendRejected("b", "refused", code=-32000, message=""), False),
        (BackendUnauthorized("b", "HTTP 401", status=401), False),
        (BackendTimeout("b", "did not answer"), False),
        (BackendProtocolError("b", "is not MCP"), False),
        (MessageTooLarge("b", "sent too much"), False),
    ],
    ids=lambda value: getattr(value, "detail", value),
)
def test_what_tells_about_an_endpoint(error: Any, is_shared: bool) -> None:
    """Not reached, died, HTTP 5xx; unless the credentials failed, and the backend was not asked."""
    assert is_shared is tells_of_endpoint(error)
    error.in_credentials = True
    assert not tells_of_endpoint(error)


def test_who_is_the_same_principal() -> None:
    """The identity and what the configuration may hold of credentials; the token only where it is asked for."""
    backend = Backend(id="b", url="http://b.test/mcp", headers={"X": "1"})
    renewed = attrs.evolve(BOB, token="renewed")
    assert principal_key(backend, BOB) == principal_key(backend, renewed)
    assert principal_key(backend, BOB, by_token=True) != principal_key(backend, renewed, by_token=True)
    others = [
        principal_key(backend, None),
        principal_key(backend, ALICES[0]),
        principal_key(backend, Identity(issuer="https://issuer.testb", subject="ob")),
        principal_key(attrs.evolve(backend, headers={"X": "2"}), BOB),
        principal_key(attrs.evolve(backend, headers={}), BOB),
        principal_key(attrs.evolve(backend, headers={}, env={"X": "1"}), BOB),
        principal_key(attrs.evolve(backend, headers={}, inherit_env=["X", "1"]), BOB),
        principal_key(attrs.evolve(backend, headers={}, inherit_env=["X"]), BOB),
        principal_key(attrs.evolve(backend, headers={}, inherit_env=["X"]), None),
    ]
    assert len(others) == len({*others, principal_key(backend, BOB)} - {principal_key(backend, BOB)})


def test_turns_of_one_principal_are_shared() -> None:
    """By endpoint and principal; the endpoint's are shared by all."""
    endpoints, backend = Endpoints(0.5, 60.0), Backend(id="b", url="http://b.test/mcp")
    one, two = endpoints.reconnects(backend, BOB), endpoints.reconnects(attrs.evolve(backend, id="c"), BOB)
    other = endpoints.reconnects(backend, ALICES[0])
    elsewhere = endpoints.reconnects(attrs.evolve(backend, url="http://c.test/mcp"), BOB)
    assert one.own_turns is two.own_turns
    assert one.endpoint_turns is two.endpoint_turns is other.endpoint_turns
    assert 5 == len({one.own_turns, other.own_turns, one.endpoint_turns, elsewhere.own_turns, elsewhere.endpoint_turns})


async def test_failures_of_both_kinds_keep_to_one_pace(autojump_clock: MockClock) -> None:
    """A principal's delays double whether its attempts fail by the endpoint or by its own trouble. When another one
    reaches the endpoint, only the wait for the endpoint is over.
    """
    endpoints, backend = Endpoints(1.0, 64.0), Backend(id="b", url="http://b.test/mcp")
    own, other = endpoints.reconnects(backend, BOB), endpoints.reconnects(backend, ALICES[0])
    for number in range(6):
        began = trio.current_time()
        own.note_failure(FailureReason.PROTOCOL, is_of_endpoint=number % 2 == 0)
        await own.wait_turn()
        assert own.is_due
        assert 0.8 * 2**number <= trio.current_time() - began <= 1.2 * 2**number
    own.note_failure(FailureReason.UNREACHABLE, is_of_endpoint=True)
    other.note_joined()
    assert own.is_due
    own.note_failure(FailureReason.REJECTED)
    other.note_joined()
    assert not own.is_due
