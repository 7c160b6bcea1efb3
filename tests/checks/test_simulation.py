"""The simulation itself: one seed is one history, whatever the process, and a few of them as a part of every run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from simulation.case import Case
from simulation.checker import ERRORS, judge
from simulation.command import CHUNK, digest, run_chunk
from simulation.draw import draw_history
from simulation.history import BackendSpec, Call, Close, History, Open, Step
from simulation.trace import Began, Opened, What
from simulation.world import run_history

from trio_vmcp import Bare, FactorySettings


@pytest.mark.parametrize("seed", range(8))
def test_a_drawn_history_is_as_the_design_says(seed: int) -> None:
    """No check reports it. `nox -s simulation` runs a thousand more."""
    history = draw_history(seed)
    assert [] == judge(history, run_history(history))


@pytest.mark.parametrize("seed", [13, 16, 17, 19, 28, 32, 36, 41, 43, 54, 58, 73])
def test_a_drawn_journey_is_as_the_design_says(seed: int) -> None:
    """Sessions that move between instances, too, while instances freeze and die and the storage fails."""
    history = draw_history(seed)
    assert [] == judge(history, run_history(history))


def test_a_drawn_question_is_answered_on_another_instance() -> None:
    """Seed 232 has a question that one instance hands out, and whose answer another one takes to the backend."""
    history = draw_history(232)
    trace = run_history(history)
    case = Case(history, trace)
    answers = [call for call in case.ended("call") if call.began.answers is not None and call.outcome.kind == "ok"]
    both = [(case.instance_of_operation(case.asking(call)), case.instance_of_operation(call)) for call in answers]
    assert any(asking != answering for asking, answering in both)
    assert [] == judge(history, trace)


@pytest.mark.parametrize(("reopened_at", "answered"), [(None, [2]), (6.0, [])], ids=["same", "another of its id"])
def test_a_question_is_answered_in_the_session_that_it_was_put_to(
    reopened_at: float | None, answered: list[int]
) -> None:
    """Once a row has expired, the same id may open another session, with other backends behind its names: the question
    is none of that session's (seed 399).
    """
    twins = tuple(
        BackendSpec(id=backend_id, era="modern", configured_era="modern", answers="sse") for backend_id in ("b0", "b1")
    )
    question = Call(at=1.0, asks=1, question="elicitation", rounds="hand out")
    again = () if reopened_at is None else (Close(at=2.0), Open(at=reopened_at, backends=(0, 1)))
    history = History(
        settings=FactorySettings(conflict_resolution=Bare()),
        backends=twins,
        given=("elicitation",),
        ttl=3.0,
        steps=(Open(backends=(1,)), question, *again, Call(at=7.0, rounds="answer"), Close(at=8.0)),
    )
    trace = run_history(history)
    began = [event for event in trace.events if isinstance(event, Began)]
    assert answered == [event.answers for event in began if event.answers is not None]
    assert 1 + bool(again) == sum(isinstance(event, Opened) for event in trace.events)
    assert [] == judge(history, trace)


@pytest.mark.parametrize("seed", [3, 11, 20, 59])
def test_a_seed_replays_exactly(seed: int) -> None:
    """Two runs of one seed leave equal traces, event by event."""
    assert draw_history(seed) == draw_history(seed)
    assert run_history(draw_history(seed)) == run_history(draw_history(seed))


def test_every_operation_has_its_errors() -> None:
    """`only_listed_errors` judges the operations that are in `ERRORS`: a new one must not be left out."""
    assert set(get_args(What)) == set(ERRORS)


def test_a_step_without_a_case_is_no_step_that_did_nothing() -> None:
    """A step that was added to `history.py` alone fails the run: else every history with it would pass."""

    @attrs.frozen(kw_only=True)
    class Forgotten:
        at: float = 1.0

    steps: Any = (Open(), Forgotten())
    forgotten = pytest.RaisesExc(Exception, match="_start has no case for Forgotten")
    with pytest.RaisesGroup(forgotten, flatten_subgroups=True):
        run_history(History(steps=steps))


def test_the_seed_rules_the_scheduler() -> None:
    """Steps of the same moment come in another order under another seed."""
    calls: list[Step] = [Call(at=1.0, seconds=1.0)] * 5
    steps = (Open(), *calls, Close(at=1.0))
    traces = [run_history(History(seed=seed, steps=steps)) for seed in range(4)]
    assert len({digest(trace) for trace in traces}) > 1


@pytest.fixture
def replayed_elsewhere() -> str:
    """The output of the command for seed 4; a fixture, since fixtures do not count for the duration of a test."""
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "simulation", "--seed", "4"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout


def test_a_seed_replays_in_another_process(replayed_elsewhere: str) -> None:
    """The trace does not depend on hashes of strings or addresses of objects."""
    expected = digest(run_history(draw_history(4)))
    assert [expected] == re.findall(r"^digest (\w+)$", replayed_elsewhere, re.MULTILINE)


def test_a_failing_seed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report names the seed that replays it, even if the simulation itself raised."""
    monkeypatch.setattr("simulation.command.judge", lambda history, trace: ["wrong"] if history.seed == 2 else [])
    report = run_chunk(range(1, 1 + CHUNK))
    assert (2, "wrong") == report.failed
    assert 1 == report.tally["histories"]
    monkeypatch.setattr("simulation.command.run_history", lambda history: 1 / 0)
    report = run_chunk(range(7, 9))
    assert report.failed is not None
    assert (7, "ZeroDivisionError: division by zero") == (report.failed[0], report.failed[1].splitlines()[-1])
