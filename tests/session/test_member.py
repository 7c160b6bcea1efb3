"""One backend's state: the written table is what holds, and each state says the same everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest
import trio
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    Backend,
    BackendFailure,
    BackendRecord,
    BackendState,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
)
from trio_vmcp._limits import TimeLimit
from trio_vmcp._session.connection import Connection
from trio_vmcp._session.life import Life, Phase
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.log_levels import LevelTeller, LogLevel
from trio_vmcp._session.member import (
    TRANSITIONS,
    Away,
    Connecting,
    Failing,
    GivenUp,
    Incomplete,
    Member,
    Ready,
    Removed,
    Replacing,
    Retrying,
    State,
    Stopped,
    Unconfigured,
    Waking,
    new_member,
)
from trio_vmcp._session.reconnects import Endpoints
from trio_vmcp.metadata import endpoint_digest

BACKEND = Backend(id="b", url="http://b.test/mcp")
WHY = BackendFailure("b", FailureReason.UNREACHABLE, "could not be reached", 0.0)
STATES: tuple[type[State], ...] = (
    *(
        Connecting,
        Ready,
        Incomplete,
        Failing,
        Replacing,
        Away,
        Retrying,
        Stopped,
        Waking,
        GivenUp,
        Unconfigured,
        Removed,
    ),
)
# What follows what, said once more than in the table itself: a change of the one must be a change of the other.
ALLOWED: set[tuple[type[State], type[State]]] = {
    *((Connecting, following) for following in (Connecting, Ready, Incomplete, Away, GivenUp)),
    *((Ready, following) for following in (Incomplete, Failing, Replacing, Away, Stopped)),
    *((Incomplete, following) for following in (Ready, Incomplete, Failing, Replacing, Away, Stopped)),
    *((Failing, following) for following in (Ready, Incomplete, Replacing, Away)),
    *((Replacing, following) for following in (Ready, Incomplete, Away, Retrying, GivenUp)),
    (Away, Retrying),
    *((Retrying, following) for following in (Ready, Incomplete, Away, Retrying, GivenUp)),
    (Stopped, Waking),
    *((Waking, following) for following in (Ready, Incomplete, Stopped, GivenUp)),
    *((state, Removed) for state in STATES if state is not Removed),
}


class PlainClient:
    """A `BackendClient` that is asked for its record alone."""

    def __init__(self) -> None:
        self.record = a_record()
        self.server_capabilities: JSON = {}

    async def request(self, method: str, params: JSON, **more: object) -> JSON:
        raise AssertionError

    async def aclose(self, *, terminate: bool) -> None:
        raise AssertionError


def a_record() -> BackendRecord:
    return BackendRecord(
        backend_id="b",
        session_id="given",
        era="legacy",
        protocol_version="2025-11-25",
        server_capabilities={},
        endpoint_digest=endpoint_digest(BACKEND),
    )


class NoSubscriptions:
    def subscribe(self, uri: str) -> None: ...

    def unsubscribe(self, uri: str) -> None: ...


class NeverOver:
    is_over = False


def connection() -> Connection:
    client = PlainClient()
    teller = LevelTeller(LogLevel(), client, "b", NeverOver(), TimeLimit(1.0, "request_timeout"))
    return Connection(client, (), NoSubscriptions(), reports_writes=False, log_level=teller)


def new_state(kind: type[State]) -> State:
    if kind is Ready:
        return Ready(connection())
    if kind is Incomplete:
        return Incomplete(connection(), WHY)
    if kind is Failing:
        return Failing(connection(), WHY)
    if kind in (Connecting, Stopped, Waking, Removed):
        return kind()
    return kind(WHY)  # type: ignore[call-arg,arg-type]  # the others have a failure


def member_in(kind: type[State]) -> Member:
    """A member as `new_member` makes it, put into a state that no transition led to."""
    member = new_member("b", BACKEND, FactorySettings(), Endpoints(0.5, 60.0))
    member.state = new_state(kind)
    return member


@pytest.mark.parametrize(("before", "after"), list(product(STATES, STATES)))
def test_transitions_are_those_of_the_table(before: type[State], after: type[State]) -> None:
    """An allowed transition is made and told; every other is an error that names both states, and changes nothing."""
    member = member_in(before)
    was, state = member.state, new_state(after)
    told: list[tuple[Member, State, str]] = []
    member.listener = lambda *change: told.append(change)
    assert ((before, after) in ALLOWED) is (after in TRANSITIONS[before])
    if (before, after) in ALLOWED:
        member.to(state, "the reason")
        assert state is member.state
        assert [(member, was, "the reason")] == told
    else:
        with pytest.raises(RuntimeError, match=f"'b' does not go from {before.__name__} to {after.__name__}: the reas"):
            member.to(state, "the reason")
        assert was is member.state
        assert [] == told


def test_every_state_is_in_the_table() -> None:
    """A state without a row could be left for any other, or for none."""
    assert set(STATES) == set(TRANSITIONS)


@pytest.mark.parametrize(
    ("kind", "shown", "takes_calls", "is_listed_as_missing"),
    [
        (Connecting, BackendState.CONNECTING, False, False),
        (Ready, BackendState.READY, True, False),
        (Incomplete, BackendState.DEGRADED, True, False),
        (Failing, BackendState.DEGRADED, True, False),
        (Replacing, BackendState.RECOVERING, False, False),
        (Away, BackendState.DEGRADED, False, True),
        (Retrying, BackendState.RECOVERING, False, True),
        (Stopped, BackendState.STOPPED, False, False),
        (Waking, BackendState.RECOVERING, False, False),
        (GivenUp, BackendState.DEGRADED, False, True),
        (Unconfigured, BackendState.DEGRADED, False, True),
        (Removed, BackendState.REMOVED, False, False),
    ],
)
def test_what_a_state_shows(
    kind: type[State], shown: BackendState, takes_calls: bool, is_listed_as_missing: bool
) -> None:
    """`session.backends`, `session.failures` and the way of a call follow from the state alone."""
    member = member_in(kind)
    assert shown is member.status.state
    assert takes_calls is (member.connection is not None)
    assert takes_calls is (member.client is not None)
    assert is_listed_as_missing is (member.failure is not None)
    assert (kind is Removed) is member.is_removed


@pytest.mark.parametrize("kind", STATES)
def test_a_call_waits_only_for_a_connection_that_is_being_replaced(kind: type[State]) -> None:
    """Or for one that was stopped. In every other state without a connection it fails at once, and counts as a call
    that failed.
    """
    member = member_in(kind)
    if kind in (Ready, Incomplete, Failing, Replacing, Stopped, Waking):
        member.require_reachable()
        assert 0 == member.health.errors
    else:
        with pytest.raises(BackendUnavailable, match="was removed" if kind is Removed else "is not connected"):
            member.require_reachable()
        assert 1 == member.health.errors


@pytest.mark.parametrize(("kind", "phase"), list(product(STATES, Phase)))
def test_what_may_join_in_which_phase(kind: type[State], phase: Phase) -> None:
    """Until the session drains, every backend that is missing; after that, only one that calls wait for; then none."""
    life = Life()
    life.phase = phase
    missing = kind in (Connecting, Away, Retrying)
    expected = missing if phase <= Phase.OPEN else False
    if kind in (Replacing, Waking):
        expected = phase <= Phase.DRAINING
    assert expected is member_in(kind).may_join(life)


async def test_since_is_when_another_state_was_shown() -> None:
    """A transition that `session.backends` shows alike leaves `since` as it was."""
    member = member_in(Ready)
    assert isinstance(member.state, Ready)
    began = member.since = datetime(2026, 1, 1, tzinfo=UTC)
    member.to(Failing(member.state.connection, WHY), "calls fail")
    failing = member.since
    assert began < failing
    member.to(Away(WHY), "it went away")  # shown as DEGRADED, too
    assert failing == member.since


@pytest.mark.parametrize("kind", [Failing, Replacing, Away])
async def test_the_last_failure_outlives_the_state(kind: type[State]) -> None:
    """What was wrong last stays to be read when the backend is ready again."""
    member = member_in(Ready)
    assert member.last_failure is None
    member.to(new_state(kind), "it broke")
    if kind is Away:
        member.to(Retrying(WHY), "its turn has come")
    member.to(Ready(connection()), "connected")
    assert WHY is member.last_failure
    member.to(Stopped(), "it was not used")
    assert WHY is member.last_failure


async def test_leaving_replacing_wakes_the_calls_that_wait() -> None:
    """However the replacement ended: a call that waits on looks at the next state."""
    for following in (Ready, Away, GivenUp, Removed):
        member = member_in(Replacing)
        replacing = member.state
        assert isinstance(replacing, Replacing)
        assert not replacing.over.is_set()
        member.to(new_state(following), "it is over")
        assert replacing.over.is_set()


async def test_leaving_waking_wakes_the_calls_that_wait() -> None:
    """A failure stops it again, and says why; a program that takes longer to start keeps them waiting."""
    for following in (Ready, Stopped, GivenUp, Removed):
        member = member_in(Waking)
        waking = member.state
        assert isinstance(waking, Waking)
        member.start_longer("is still starting")
        assert waking is member.state
        if following is Stopped:
            member.fail(FailureReason.TIMEOUT, "was slow")
            assert "backend 'b' is not connected: it was slow" == str(member.missing())
            assert (None, "was slow") == (member.failure, member.last_failure and member.last_failure.detail)
        else:
            member.to(new_state(following), "it is over")
        assert waking.over.is_set()


async def test_a_stopped_connection_is_let_go_of() -> None:
    """With its backend session, which no later connection resumes."""
    member = member_in(Ready)
    stopped = member.connection
    assert stopped is not None
    assert not member.is_in_use(stopped)
    assert member.is_in_use(connection())
    member.subscriptions["memo://x"] += 1
    assert member.is_in_use(stopped)
    member.subscriptions.clear()
    member.waiting += 1
    assert member.is_in_use(stopped)
    member.waiting -= 1
    member.stop(stopped, "it was not used")
    assert (True, True) == (stopped.retired.is_set(), stopped.terminate)
    assert member.record is not None
    assert (None, None) == (member.record.session_id, member.resume)
    member.wake()
    assert isinstance(member.state, Waking)
    member.wake()


async def test_a_lost_session_is_not_resumed() -> None:
    """Its id is taken out of what is stored, and only a new connection makes resuming possible again."""
    member = member_in(Ready)
    lost = member.connection
    assert lost is not None
    member.replace_connection(lost, BackendUnavailable("b", "no longer knows the session"))
    assert isinstance(member.state, Replacing)
    cause = BackendFailure("b", FailureReason.REJECTED, "no longer knows the session", 0.0)
    assert cause == member.state.cause
    assert lost.retired.is_set()
    assert lost.terminate
    assert member.stored is not None
    assert member.stored.session_id is None
    assert member.resume is None
    joined = connection()
    member.join(joined, None)
    member.note_connection_ended(joined, "was closed")
    assert isinstance(member.state, Away)
    assert joined.client.record == member.resume


async def test_the_latest_use_outlives_its_connection(autojump_clock: MockClock) -> None:
    """A backend is in use from the moment at which it joins; the time of the last call is kept when its connection is
    closed.
    """
    member, joined = member_in(Connecting), connection()
    await trio.sleep(3)
    member.join(joined, None)
    assert 3.0 == member.used_at
    joined.used_at = 7.0
    member.discard_attempt(trio.CancelScope(), joined)
    assert 7.0 == member.used_at


async def test_a_client_whose_record_cannot_be_read_joins() -> None:
    """One of the user's own may raise from it. It goes on from nothing that is stored."""
    member, joined = member_in(Ready), connection()
    assert member.connection is not None
    member.note_connection_ended(member.connection, "was closed")
    member.start_retrying()
    assert member.stored is not None
    del joined.client.record
    member.join(joined, None)
    assert isinstance(member.state, Ready)
    assert member.record is None


async def test_an_old_connection_changes_no_state() -> None:
    """Only the connection that takes calls can lose its session or end; those before it are on their way out."""
    member = member_in(Ready)
    state = member.state
    member.replace_connection(connection(), BackendUnavailable("b", "no longer knows the session"))
    member.note_connection_ended(connection(), "was closed")
    assert state is member.state


async def test_removing_cancels_what_connects_it() -> None:
    """Attempts and the task that retries; `gone` is set once the last attempt has ended."""
    member = member_in(Retrying)
    attempt, member.retry = trio.CancelScope(), trio.CancelScope()
    member.attempts = (attempt,)
    member.remove(drain_by=1.0)
    assert attempt.cancel_called
    assert member.retry.cancel_called
    assert not member.gone.is_set()
    member.discard_attempt(attempt, None)
    assert member.gone.is_set()


@pytest.mark.parametrize("kind", STATES)
async def test_what_connects_is_given_up_when_the_session_closes(kind: type[State]) -> None:
    """A backend that was being connected is missing from then on; every other state stays, and nothing goes on."""
    member = member_in(kind)
    state = member.state
    attempt = trio.CancelScope()
    member.attempts = (attempt,)
    member.cancel_connecting("session closed")
    assert attempt.cancel_called
    if kind in (Connecting, Replacing, Retrying, Waking):
        assert isinstance(member.state, GivenUp)
        assert FailureReason.PENDING is member.state.failure.reason
    else:
        assert state is member.state


async def test_an_attempt_begins_retrying_or_leaves_calls_waiting() -> None:
    """A backend that is away is shown as RECOVERING; where calls wait for a replacement, they go on waiting."""
    member = member_in(Away)
    member.start_retrying()
    assert isinstance(member.state, Retrying)
    assert WHY is member.failure
    member = member_in(Replacing)
    state = member.state
    member.start_retrying()
    assert state is member.state


async def test_a_replacement_whose_turn_is_not_due_fails() -> None:
    """The failure says what became of the session; a backend that no call waits for stays as it is."""
    member = member_in(Replacing)
    member.fail_replacing()
    assert isinstance(member.state, Away)
    assert member.failure is not None
    assert (FailureReason.UNREACHABLE, WHY.detail) == (member.failure.reason, member.failure.detail)
    state = member.state
    member.fail_replacing()
    assert state is member.state


async def test_a_removed_backend_is_gone_with_its_last_attempt() -> None:
    """Its connections take no more calls and keep the deadline of the removal; its list goes at once."""
    member = new_member("b", BACKEND, FactorySettings(), Endpoints(0.5, 60.0))
    attempt, joined = trio.CancelScope(), connection()
    member.attempts = (attempt,)
    member.join(joined, Listing())
    assert Listing() == member.listing
    assert (joined,) == member.connections
    member.remove(drain_by=1.0)
    assert member.listing is None
    assert joined.retired.is_set()
    assert not member.gone.is_set()
    member.discard_attempt(attempt, joined)
    assert () == member.connections
    assert member.gone.is_set()


async def test_a_backend_without_attempts_is_gone_when_it_is_removed() -> None:
    """There is nothing to wait for. A member that stays is never gone, however its attempts end."""
    member = member_in(Away)
    attempt = trio.CancelScope()
    member.attempts = (attempt,)
    member.discard_attempt(attempt, None)
    assert not member.gone.is_set()
    member.remove(drain_by=0.0)
    assert member.gone.is_set()


async def test_joining_without_a_list_keeps_the_one_that_is_known() -> None:
    """A backend that takes calls at once is listed later; until then callers see what it offered before."""
    member = member_in(Away)
    member.start_retrying()
    known = member.listing = Listing(tools={"echo": {"name": "echo"}})
    member.join(connection(), None)
    assert known is member.listing
