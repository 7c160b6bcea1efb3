"""The phases of a session: one state, explicit transitions, and every waiter wakes."""

from __future__ import annotations

from itertools import product

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_vmcp import SessionState
from trio_vmcp._session.life import TRANSITIONS, Life, Phase

WAYS: dict[Phase, tuple[Phase, ...]] = {
    Phase.OPENING: (),
    Phase.OPEN: (Phase.OPEN,),
    Phase.DRAINING: (Phase.OPEN, Phase.DRAINING),
    Phase.PARTING: (Phase.OPEN, Phase.DRAINING, Phase.PARTING),
    Phase.CLOSED: (Phase.OPEN, Phase.DRAINING, Phase.PARTING, Phase.CLOSED),
}
SHORTEST_WAYS: dict[Phase, tuple[Phase, ...]] = {
    Phase.OPENING: (),
    Phase.OPEN: (Phase.OPEN,),
    Phase.DRAINING: (Phase.DRAINING,),
    Phase.PARTING: (Phase.DRAINING, Phase.PARTING),
    Phase.CLOSED: (Phase.CLOSED,),
}
ALLOWED = {
    (Phase.OPENING, Phase.OPEN),
    (Phase.OPENING, Phase.DRAINING),
    (Phase.OPENING, Phase.CLOSED),
    (Phase.OPEN, Phase.DRAINING),
    (Phase.OPEN, Phase.CLOSED),
    (Phase.DRAINING, Phase.PARTING),
    (Phase.DRAINING, Phase.CLOSED),
    (Phase.PARTING, Phase.CLOSED),
}


def life_in(phase: Phase) -> Life:
    life = Life()
    for step in WAYS[phase]:
        life.to(step)
    return life


@pytest.mark.parametrize(("phase", "following"), list(product(Phase, Phase)))
def test_transitions_are_those_of_the_table(phase: Phase, following: Phase) -> None:
    """An allowed transition changes the phase; every other is an error that names both phases, and changes nothing."""
    life = life_in(phase)
    assert ((phase, following) in ALLOWED) is (following in TRANSITIONS[phase])
    if (phase, following) in ALLOWED:
        life.to(following)
        assert following is life.phase
    else:
        with pytest.raises(RuntimeError, match=f"{phase.name} to {following.name}"):
            life.to(following)
        assert phase is life.phase


def test_the_public_state_follows_from_the_phase() -> None:
    """OPEN until the first request to close, DRAINING until all is let go of, CLOSED for ever."""
    assert [
        SessionState.OPEN,
        SessionState.OPEN,
        SessionState.DRAINING,
        SessionState.DRAINING,
        SessionState.CLOSED,
    ] == [life_in(phase).state for phase in Phase]
    assert [False, False, True, True, True] == [life_in(phase).is_closing for phase in Phase]


@pytest.mark.parametrize(("awaited", "phase"), list(product(Phase, Phase)))
async def test_a_waiter_wakes_in_its_phase_or_a_later_one(awaited: Phase, phase: Phase) -> None:
    """Also where its phase was skipped: a session that never was open wakes what waits for that."""
    life, woken = Life(), False

    async def wait() -> None:
        nonlocal woken
        await life.reached(awaited)
        woken = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for step in SHORTEST_WAYS[phase]:
            life.to(step)
        await wait_all_tasks_blocked()
        assert woken is (awaited <= phase)
        if woken:
            with assert_checkpoints():
                await life.reached(awaited)
        nursery.cancel_scope.cancel()
