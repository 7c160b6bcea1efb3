"""Admission: every admitted call has one outcome, refusal is immediate, and no close waits for longer than it may."""

from __future__ import annotations

import math
from typing import Literal

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import SessionClosed
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp._session.admission import Admission

Step = Literal["call", "impatient call", "stubborn call", "wait", "close"]


# One thing at a time


async def test_a_call_counts_from_admission_to_its_end() -> None:
    """`in_flight` counts admitted calls that have not ended, also those that end in an error."""
    admission = Admission()

    async def failing_call() -> None:
        async with admission.admit():
            assert 1 == admission.in_flight
            raise KeyError

    with pytest.raises(KeyError):
        await failing_call()
    assert 0 == admission.in_flight
    assert current_note.get() is None


async def test_refusal_is_synchronous() -> None:
    """From the moment of `refuse` nothing is admitted, and there is no checkpoint in between."""
    admission = Admission()
    async with admission.admit():
        admission.refuse()
        with pytest.raises(SessionClosed, match="admits no new calls") as refused:
            async with admission.admit():
                pytest.fail("admitted")
        assert 1 == admission.in_flight
    assert not refused.value.may_have_executed


async def test_a_refused_caller_that_is_cancelled_sees_the_cancel_alone() -> None:
    """One cancel that both closes the session and hits the caller surfaces as the cancel."""
    admission = Admission()
    admission.refuse()
    with trio.CancelScope() as surroundings:
        surroundings.cancel()
        async with admission.admit():
            pytest.fail("admitted")
    assert surroundings.cancelled_caught


async def test_drained_is_not_set_by_the_first_call_that_ends() -> None:
    """The count is zero while the session is open; a later close still waits for its running call."""
    admission = Admission()
    async with admission.admit():
        pass
    async with admission.admit():
        admission.refuse()
        assert not admission.drained.is_set()
    assert admission.drained.is_set()


async def test_refusing_with_nothing_in_flight_is_drained_at_once() -> None:
    """A close that finds no call waits for nothing; asking again changes nothing."""
    admission = Admission()
    admission.refuse()
    admission.refuse()
    assert admission.drained.is_set()


async def test_a_cut_off_call_ends_in_session_closed_and_its_surroundings_live_on() -> None:
    """The call's own scope is cancelled; the caller's is not, so the caller may go on."""
    admission = Admission()

    async def stuck_call() -> None:
        async with admission.admit() as call:
            call.written = True
            admission.cut_off("out of time")
            await trio.sleep_forever()

    with trio.CancelScope() as surroundings:
        with pytest.raises(SessionClosed, match=r"^out of time$") as cut:
            await stuck_call()
        await trio.lowlevel.checkpoint()
    assert not surroundings.cancelled_caught
    assert cut.value.may_have_executed
    assert 0 == admission.in_flight


async def test_the_first_verdict_on_a_call_is_its_error() -> None:
    """A call that is cut off again while it unwinds, by the close of the session, ends in the error of the first."""
    admission = Admission()

    async def stuck_call() -> None:
        async with admission.admit() as call:
            call.cut_off(SessionClosed("removed"))
            admission.cut_off("out of time")
            await trio.sleep_forever()

    with pytest.raises(SessionClosed, match=r"^removed$"):
        await stuck_call()


async def test_a_call_that_is_cut_off_and_cancelled_propagates_the_cancel() -> None:
    """With both at once the outer cancel must come out, not SessionClosed."""
    admission = Admission()
    with trio.CancelScope() as surroundings:
        async with admission.admit():
            surroundings.cancel()
            admission.cut_off("out of time")
            await trio.sleep_forever()
    assert surroundings.cancelled_caught
    assert 0 == admission.in_flight


async def test_a_call_that_has_its_answer_keeps_it_when_it_is_cut_off() -> None:
    """A cut-off after the last checkpoint changes nothing: the outcome is the answer."""
    admission = Admission()
    async with admission.admit():
        admission.cut_off("out of time")
    assert 0 == admission.in_flight


async def test_a_shielded_call_does_not_hold_a_close_up() -> None:
    """A caller that shields itself does not keep `drained` from being set."""
    admission = Admission()
    async with admission.admit():
        admission.refuse()
        admission.discard_calls()
        assert 0 == admission.in_flight
        assert admission.drained.is_set()
    assert 0 == admission.in_flight


async def test_a_task_knows_whether_it_is_inside_a_call() -> None:
    """Inside a call, and in a task started there, until that call has ended."""
    admission, other = Admission(), Admission()
    seen: list[bool] = []

    async def grandchild(after: trio.Event) -> None:
        seen.append(admission.holds_current_task())
        await after.wait()
        seen.append(admission.holds_current_task())

    assert not admission.holds_current_task()
    async with trio.open_nursery() as nursery:
        over = trio.Event()
        async with admission.admit():
            async with other.admit():  # a call of one session inside a call of another
                assert admission.holds_current_task()
                assert other.holds_current_task()
            assert not other.holds_current_task()
            nursery.start_soon(grandchild, over)
            await wait_all_tasks_blocked()
        assert not admission.holds_current_task()
        over.set()
    assert [True, False] == seen


async def test_a_note_of_a_connecting_client_is_no_call() -> None:
    """A client leaves a note while it connects, and is not inside any call."""
    current_note.set(RequestNote())
    assert not Admission().holds_current_task()


# Whole histories


@attrs.define
class Ended:
    """The outcome of one call."""

    kind: str
    lasts: int
    began_at: float
    too_late: bool  # a close came first
    outcomes: list[tuple[str, float]] = attrs.field(factory=list)


async def replay(script: list[tuple[Step, int]]) -> None:
    """Run a history, then check that each call ended once and in time, and that no close was late."""
    admission = Admission()
    calls: list[Ended] = []
    closes: list[tuple[float, float]] = []  # when it began, and its grace

    async def make_call(call: Ended) -> None:
        try:
            with trio.move_on_after(call.lasts if call.kind == "impatient call" else math.inf) as surroundings:
                async with admission.admit():
                    with trio.CancelScope(shield=call.kind == "stubborn call"):
                        await trio.sleep(math.inf if call.kind == "impatient call" else call.lasts)
                call.outcomes.append(("answered", trio.current_time()))
            if surroundings.cancelled_caught:
                call.outcomes.append(("cancelled", trio.current_time()))
        except SessionClosed as closed:
            call.outcomes.append(("cut off" if "grace" in str(closed) else "refused", trio.current_time()))

    async def close(grace: int) -> None:
        begun = trio.current_time()
        closes.append((begun, grace))
        admission.refuse()
        with trio.move_on_after(grace):
            await admission.drained.wait()
        assert trio.current_time() <= begun + grace
        assert trio.current_time() == begun + grace or all(call.outcomes for call in calls)
        admission.cut_off("its grace ran out")

    async with trio.open_nursery() as nursery:
        for step, seconds in script:
            if step == "wait":
                await trio.sleep(seconds)
            elif step == "close":
                nursery.start_soon(close, seconds)
            else:
                calls.append(Ended(step, seconds, trio.current_time(), too_late=bool(closes)))
                nursery.start_soon(make_call, calls[-1])
            await wait_all_tasks_blocked()  # steps happen in the script's order

    assert 0 == admission.in_flight
    assert bool(closes) == admission.drained.is_set()
    cut_at = min((begun + grace for begun, grace in closes), default=math.inf)
    for call in calls:
        assert 1 == len(call.outcomes)
        assert call.outcomes[0] in expected(call, cut_at)


def expected(call: Ended, cut_at: float) -> list[tuple[str, float]]:
    """The allowed outcomes of a call: one, or either of two that fall on the same instant."""
    ends_at = call.began_at + call.lasts
    own_end = ("cancelled" if call.kind == "impatient call" else "answered", ends_at)
    if call.too_late:
        return [own_end if own_end == ("cancelled", call.began_at) else ("refused", call.began_at)]
    if call.kind == "stubborn call" or ends_at < cut_at:
        return [own_end]
    return [own_end, ("cut off", cut_at)] if ends_at == cut_at else [("cut off", cut_at)]


class AdmissionMachine(RuleBasedStateMachine):
    """Rules write a script; teardown replays it on a fresh loop, so it shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[tuple[Step, int]] = []

    @rule(step=st.sampled_from(["call", "impatient call", "stubborn call", "wait", "close"]), seconds=st.integers(0, 4))
    def add(self, step: Step, seconds: int) -> None:
        self.script.append((step, seconds))

    def teardown(self) -> None:
        trio.run(replay, self.script, clock=MockClock(autojump_threshold=0))


AdmissionMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=12)
TestAdmissionHistories = AdmissionMachine.TestCase
