"""A few of the simulation's histories of a front; `nox -s simulation -- --front` runs more. And defects of a front that
the histories must notice.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from simulation.command import run_front_chunk
from simulation.front import run_front

from trio_vmcp.serve._client_session import ClientSession
from trio_vmcp.serve._exchange import Exchanges
from trio_vmcp.serve._legacy import LegacyFront
from trio_vmcp.serve._streams import EventStream

STEPS = 2  # of each client


@pytest.mark.parametrize("seed", [1, 2, 6, 13])
def test_what_clients_do_at_the_same_time_breaks_no_promise(seed: int) -> None:
    """One outcome for each call, which is its own; resumed streams are whole; changes are told; a drain cuts none."""
    assert 0 < run_front(seed, STEPS)["ok"]


Defect = tuple[Any, str, Callable[[Any], Any], int, str]


def answering_the_oldest(original: Any) -> Any:
    def on_reply(self: Any, reply: Any) -> None:
        for question in [*self._questions.values()][:1]:
            question.reply = reply
            question.answered.set()

    return on_reply


DEFECTS: dict[str, Defect] = {
    "a resumed stream begins behind its newest event": (
        EventStream,
        "write_to",
        lambda original: (
            lambda self, reply, *, after, keep_alive: original(
                self, reply, after=None if after is None else self._events.last, keep_alive=keep_alive
            )
        ),
        13,
        "no response",
    ),
    "the streams of answered requests are forgotten": (
        LegacyFront,
        "_keep",
        lambda original: lambda self, client, stream: None,
        10,
        "its stream was not kept",
    ),
    "an answer goes to another question": (ClientSession, "on_reply", answering_the_oldest, 36, "on a healthy backend"),
    "changed lists are not told": (
        ClientSession,
        "tell_changed_lists",
        lambda original: lambda self: None,
        2,
        "was not told",
    ),
    "an exchange stays": (Exchanges, "discard", lambda original: lambda self, exchange: None, 0, "left at the end"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed finds nothing without the defect."""
    owner, attribute, broken, seed, expected = DEFECTS[name]
    monkeypatch.setattr(owner, attribute, broken(getattr(owner, attribute)))
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: ASYNC401  # of any depth: its text is looked at
        run_front(seed, STEPS)
    assert expected in "".join(traceback.format_exception(caught.value))


def test_a_history_that_fails_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its traceback; the seeds before it are counted."""

    def fail_at_one(seed: int) -> Counter[str]:
        if seed:
            raise AssertionError("a promise")
        return Counter(ok=7)

    monkeypatch.setattr("simulation.command.run_front", fail_at_one)
    report = run_front_chunk(range(3))
    assert report.failed is not None
    assert (1, {"call: ok": 7, "histories": 1}) == (report.failed[0], report.tally)
    assert "a promise" in report.failed[1]
