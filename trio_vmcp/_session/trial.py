"""A backend whose circuit is open is asked in the background, so that it is ready again without a call.

The request changes nothing: `ping` in the handshake era, `server/discover` in the modern one. It is one of the trials
of the circuit (`breaker.py`), so calls and this task together keep to its delays, and a call is not held up for long.
"""

from __future__ import annotations

import random

import trio

from trio_vmcp._protocol.methods import DISCOVER, PING
from trio_vmcp._request_note import RequestNote, current_note
from trio_vmcp._session.call import note_answer
from trio_vmcp._session.life import Life, Phase
from trio_vmcp._session.member import Failing, Member
from trio_vmcp._session.reconnects import JITTER
from trio_vmcp.errors import BackendError, BackendTimeout, BackendUnavailable

__all__ = ["try_until_answered"]

TRIAL_TIMEOUT = 10.0  # s
MOST_PAUSE = 60.0  # s between two trials of this task, unless the circuit's delay is longer
CALLS_TRIAL = 1.0  # s until the next look at a circuit whose trial is a call


async def try_until_answered(member: Member, failing: Failing, life: Life, max_delay: float) -> None:
    """Ask once in `max_delay` s, while the backend is in this state and its session is open. Run this in a task of its
    own, since it changes the context of the task.

    Args:
        max_delay: s, `FactorySettings.reconnect_max_delay`.
    """
    pause = _pause(max_delay)
    while True:
        await trio.sleep(pause)
        if member.state is not failing or life.phase > Phase.OPEN:
            return
        wait = member.breaker.admit(trio.current_time())
        if wait is None:
            await _try_once(member, failing)
            pause = _pause(max_delay)
        else:
            pause = wait or CALLS_TRIAL


def _pause(max_delay: float) -> float:
    """s; sessions that lost the backend together must not ask together."""
    return min(max_delay, MOST_PAUSE) * (1 - JITTER * random.random())


async def _try_once(member: Member, failing: Failing) -> None:
    client = failing.connection.client
    note = RequestNote()
    current_note.set(note)
    record = failing.connection.record
    method = DISCOVER if record is not None and record.era == "modern" else PING
    try:
        await client.request(method, {}, identity=member.identity, timeout=TRIAL_TIMEOUT, on_progress=None)
    except Exception as error:  # noqa: BLE001  # a client of the user's may raise anything
        if member.state is failing:
            _note_failure(member, failing, note, error)
    else:
        note_answer(member)


def _note_failure(member: Member, failing: Failing, note: RequestNote, error: Exception) -> None:
    """What a refusal says, and what silence says."""
    is_unreached = note.is_unreached
    if note.session_lost and not is_unreached and isinstance(error, BackendError):
        member.breaker.cancel_trial()
        if not note.lost_by_words or member.reconnects.try_words():
            member.replace_connection(failing.connection, error)
            return
    if not isinstance(error, BackendError):
        member.breaker.fail(trio.current_time(), random.random(), was_trial=True)
    elif is_unreached or isinstance(error, BackendUnavailable | BackendTimeout):
        member.note_unreached(error, trio.current_time(), random.random(), was_trial=True)
    else:
        note_answer(member)
