"""One call through one backend of a session: the circuit, the request, and once more where a lost session needs it.

A request is sent again in five places, each after a proof that it did not run, or on demand of the backend:

- here: the backend had lost our session, and the connection was replaced;
- `_client/http/credentials.py`: HTTP 401, and `auth` gives other credentials;
- `_client/http/link.py`: a redirect that keeps method and body (307, 308) within the origin;
- `_client/stateless.py`: the headers did not match the tool's schema (-32020), and the schema was read again;
- `_client/rounds.py`: the answer asks for input, and the next round has it.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import trio

from trio_vmcp._known_results import can_recall
from trio_vmcp._limits import TimeLimit
from trio_vmcp._nursery import crash_of_client
from trio_vmcp._protocol.methods import TOOLS_CALL
from trio_vmcp._request_note import Silence
from trio_vmcp._session.admission import Call
from trio_vmcp._session.breaker import FAILURES_TO_OPEN
from trio_vmcp._session.call_options import CallOptions
from trio_vmcp._session.connection import Connection
from trio_vmcp._session.member import Failing, Member, Replacing, Stopped, Waking
from trio_vmcp.connector import BackendClient, OnProgress
from trio_vmcp.errors import BackendError, BackendTimeout, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON, STATE_LOST

__all__ = ["CallRequest", "request_member"]

# s. A call with a shorter timeout proves nothing about the backend.
TELLING_TIMEOUT = 1.0


class CallRequest(NamedTuple):
    """What a caller asks of a backend. A tuple: one is made for every call.

    Attributes:
        caller: The request carries this identity's credentials.
        begun_at: `trio.current_time()` of its admission.
        limit: Of the whole call.
        options: None: none.
    """

    method: str
    params: JSON
    caller: Identity | None
    begun_at: float
    limit: TimeLimit
    on_progress: OnProgress | None
    options: CallOptions | None = None

    def __repr__(self) -> str:
        return f"CallRequest({self.method!r}, limit={self.limit!r})"  # arguments may be secret

    @property
    def deadline(self) -> float:
        """When the call ends at the latest, by `trio.current_time()`."""
        return self.begun_at + self.limit.seconds

    def over(self, member: Member, connection: Connection) -> CallRequest:
        """This request as it is sent over a connection: by the era of the backend there.

        Raises:
            BackendRejected: The backend there cannot take it.
        """
        assert self.options is not None
        params = self.options.params_for(member.backend_id, connection.record, self.method, self.params)
        return self if params is self.params else self._replace(params=params)


async def request_member(member: Member, call: Call, asked: CallRequest) -> JSON:
    """Send one request in its caller's task. A request that provably did not run because the backend had lost our
    session is sent once more, through the connection that replaces the one before.

    Raises:
        BackendError: As the client says, or one of the user's own has crashed; at once where the circuit is open or the
            backend is missing.
    """
    is_trial = is_replaced = has_waited = False
    timeout, call.knob = asked.limit
    connection: Connection | None = None
    if asked.on_progress is not None:
        asked = asked._replace(on_progress=_noting_failure(call, asked.on_progress))
    try:
        is_trial = _pass_breaker(member, asked.begun_at)
        connection = member.state.connection
        while True:
            if connection is None:
                is_replaced = not isinstance(member.state, Stopped | Waking)
                connection = await _replaced_connection(member, call, asked)
                has_waited, timeout = True, max(asked.deadline - trio.current_time(), 0.0)
            sent = asked if asked.options is None else asked.over(member, connection)
            connection.add_call(call)
            call.written, call.is_reported, call.session_lost = not connection.reports_writes, False, False
            try:
                if member.progress_limit is None:
                    raw = await connection.client.request(
                        sent.method, sent.params, identity=sent.caller, timeout=timeout, on_progress=sent.on_progress
                    )
                else:
                    raw = await _request_with_progress(member, connection, call, sent, timeout)
            except BackendError as error:
                if has_waited:
                    _name_whole_timeout(error, call, asked)
                if not _is_sent_again(member, connection, call, error, was_replaced=is_replaced):
                    raise
                call.is_sent_again = True
            else:
                if call.is_sent_again:
                    member.reconnects.confirm_words()
                member.health.answered(trio.current_time() - asked.begun_at)
                note_answer(member)
                # Callers look for it in the result of a tool call, so no other answer uses it up.
                is_told = asked.method == TOOLS_CALL and connection.take_loss()
                return _with_state_lost(raw) if is_told or is_replaced else raw
            finally:
                connection.reports_writes = connection.reports_writes or call.is_reported
                connection.remove_call(call)
            connection = None
    except BackendError as error:
        member.health.failed()
        _note_error(member, call, error, trio.current_time() - asked.begun_at, is_trial)
        raise
    except Exception as crash:
        _note_no_answer(member, is_trial)
        if connection is None or not _is_of_client(crash, connection.client, call):
            raise
        member.health.errors += 1
        raise crash_of_client(member.backend_id, asked.method, crash, may_have_executed=call.written) from crash
    except BaseException:
        _note_no_answer(member, is_trial)
        raise


def _note_no_answer(member: Member, was_trial: bool) -> None:
    """The call has ended by something that tells nothing about the backend, such as a cancel."""
    member.health.calls += 1
    if was_trial:
        member.breaker.cancel_trial()


def _is_of_client(crash: Exception, client: BackendClient, call: Call) -> bool:
    """Whether a client of the user's own has crashed. What one of ours raises beside BackendError is about what the
    caller gave, and so is what comes through a client that wraps one of ours before anything is sent.
    """
    if call.has_callback_failed or can_recall(client):
        return False
    return call.written or not isinstance(crash, TypeError | ValueError)


def _noting_failure(call: Call, on_progress: OnProgress) -> OnProgress:
    async def noting(progress: float, total: float | None, message: str | None) -> None:
        try:
            await on_progress(progress, total, message)
        except BaseException:
            call.has_callback_failed = True
            raise

    return noting


async def _request_with_progress(
    member: Member, connection: Connection, call: Call, asked: CallRequest, timeout: float
) -> JSON:
    """Ask for progress, and give the call up when none has come for `member.progress_limit`."""
    limit = member.progress_limit
    assert limit is not None
    silence = call.silence = Silence(limit.seconds)

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        if asked.on_progress is None:
            silence.begin()
            return
        with silence.paused():
            await asked.on_progress(progress, total, message)

    silence.begin()  # before the scope is entered: a limit of 0 sends nothing
    with silence.scope:
        return await connection.client.request(
            asked.method, asked.params, identity=asked.caller, timeout=timeout, on_progress=on_progress
        )
    detail = f"reported no progress of {asked.method!r} for {limit}"
    raise BackendTimeout(member.backend_id, detail, may_have_executed=call.written)


def _is_sent_again(
    member: Member, connection: Connection, call: Call, error: BackendError, *, was_replaced: bool
) -> bool:
    """Whether a failed request needs another connection and may be sent there. Has a lost one replaced, but not twice
    for one call.
    """
    if error.may_have_executed:
        connection.note_use()
    if was_replaced:
        if call.lost_by_words:  # the new session is told the same: that was not the session
            member.reconnects.doubt_words()
        return False
    if not call.session_lost:
        return False
    if call.lost_by_words:  # which prove less than a status
        if member.connection is connection:
            if not member.reconnects.try_words():
                return False
            member.replace_connection(connection, error)
        again, call.lost_by_words = call.may_resend, False
        return again
    if not error.may_have_executed:
        member.replace_connection(connection, error)
        return True
    # A 503: the session may be lost, or the backend is busy. The call is not sent again either way.
    # With `Retry-After` it is busy, and asks to be left alone.
    if error.retry_after is None and member.connection is connection and member.reconnects.try_to_replace():
        member.replace_connection(connection, error)
    return False


async def _replaced_connection(member: Member, call: Call, asked: CallRequest) -> Connection:
    """The connection, once it was replaced.

    Raises:
        BackendUnavailable: It was not.
        BackendTimeout: Not before the call's deadline.
    """
    begun_at = trio.current_time()
    member.waiting += 1
    try:
        member.wake()
        with trio.move_on_at(asked.deadline):
            while isinstance(member.state, Replacing | Waking):
                await member.state.over.wait()
            if member.connection is None:
                raise member.missing()
            return member.connection
    finally:
        member.waiting -= 1
        call.waited += trio.current_time() - begun_at
    raise BackendTimeout(member.backend_id, f"was not connected anew for {asked.method!r} within {asked.limit}")


def _name_whole_timeout(error: BackendError, call: Call, asked: CallRequest) -> None:
    is_silent = call.silence is not None and call.silence.scope.cancelled_caught
    if isinstance(error, BackendTimeout) and not is_silent:  # the client knows only what was left of it
        error.detail = f"did not answer {asked.method!r} within {asked.limit}, connecting anew included"


def _with_state_lost(raw: JSON) -> JSON:
    meta = raw.get("_meta")
    return raw | {"_meta": (meta if isinstance(meta, dict) else {}) | {STATE_LOST: True}}


# --- the circuit


def _pass_breaker(member: Member, now: float) -> bool:
    """Whether this call is a trial.

    Raises:
        BackendUnavailable: The circuit is open.
    """
    breaker = member.breaker
    if not breaker.is_open:
        return False
    wait = breaker.admit(now)
    if wait is not None:
        raise BackendUnavailable(
            member.backend_id,
            f"failed {FAILURES_TO_OPEN} times in a row to be reached, and is tried again in {wait:.1f} s "
            "(reconnect_delay, reconnect_max_delay)",
        )
    return True


def _note_error(member: Member, call: Call, error: BackendError, waited: float, was_trial: bool) -> None:
    """An error answer still proves that the backend is reachable, unless a gateway gave it (502 to 504)."""
    # Calls that never got to a connection tell nothing about it; nor do errors of a callback of the caller's.
    tells_nothing = member.connection is None or error.backend_id != member.backend_id
    if isinstance(error, BackendTimeout) and (error.may_have_executed or waited < TELLING_TIMEOUT):
        tells_nothing = True  # it was reached and is slow, or there was no time to find out
    if tells_nothing:
        if was_trial:
            member.breaker.cancel_trial()
    elif not (call.is_unreached or isinstance(error, BackendUnavailable | BackendTimeout)):
        note_answer(member)
    else:
        member.note_unreached(error, trio.current_time(), random.random(), was_trial=was_trial)


def note_answer(member: Member) -> None:
    """The backend has answered a request: that closes the circuit."""
    if member.breaker.succeed() and isinstance(member.state, Failing):
        member.become_ready(member.state.connection, "a request was answered")
