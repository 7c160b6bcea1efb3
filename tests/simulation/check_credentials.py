"""Checks of credentials: for which backend and principal `auth` is called, which request carries which token, how often
a request is sent again, and that a new token costs no call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from simulation.case import Case
from simulation.history import Open
from simulation.trace import AuthCalled, Principal

__all__ = ["CREDENTIAL_CHECKS"]

REFUSED = 401
# Methods that the session sends for itself, with the credentials of the identity that opened the session.
OWN = ("initialize", "notifications/initialized", "server/discover", "tools/list", "resources/list", "prompts/list")


def _credentials_match_backend_and_principal(case: Case) -> Iterator[str]:
    credentials = case.credentials
    for _, asked in credentials.asked.values():
        allowed = _principals(case, asked)
        if asked.principal not in allowed:
            yield f"{asked} is for {asked.principal}, in a session of {' and '.join(allowed)}"
    for seen in case.trace.seen:
        token = seen.token
        if token is not None and (token.backend_id != seen.backend_id or not credentials.is_guarded(seen.backend_id)):
            yield f"{seen.backend_id!r} got a token that is meant for another backend: {seen}"
        if seen.auth_call is None:
            continue
        asked = credentials.asked[seen.auth_call][1]
        if asked.backend_id != seen.backend_id or (token is not None and token.principal != asked.principal):
            yield f"{seen} has the credentials of another backend or principal: {asked}"
        if asked.principal == "opener" and seen.key is not None:
            yield f"{seen} belongs to a call, and has the credentials of the identity that opened the session"
        if asked.principal == "caller" and (seen.verb == "DELETE" or seen.method in OWN):
            yield f"{seen} belongs to no call, and has the credentials of a caller"


def _every_request_has_its_own_credentials(case: Case) -> Iterator[str]:
    credentials = case.credentials
    if not credentials.is_in_use:
        return
    for seen in case.trace.seen:
        if not seen.verb:
            continue  # a line, to a child process
        if seen.auth_call is None:
            yield f"{seen} was sent without a call of `auth`"
        elif (
            credentials.is_guarded(seen.backend_id)
            and seen.token is None
            and credentials.asked[seen.auth_call][1].gives
        ):
            yield f"{seen} carries no token, and there was one"
    for number, (_, asked) in credentials.asked.items():
        if asked.after is None and len(credentials.sent[number]) > 1:
            yield f"{asked} was used for {len(credentials.sent[number])} requests"


def _a_refused_request_is_sent_again_once(case: Case) -> Iterator[str]:
    """Beside that, a request that changes nothing is sent once more where a reused connection ended before the first
    byte of the answer (RFC 9110 §9.2.2).
    """
    for every_one in case.credentials.seen.values():
        unanswered = [seen for seen in every_one[:-1] if seen.outcome == "aborted" and seen.method != "tools/call"]
        if len(unanswered) > len({seen.token for seen in unanswered}):
            yield f"sent again more than once without an answer: {every_one}"
        received = [seen for seen in every_one if seen not in unanswered]
        if len(received) > 2 or any(seen.status != REFUSED for seen in received[:-1]):
            yield f"sent {len(received)} times, and answered with HTTP {[seen.status for seen in received]}: {received}"
        elif len(received) == 2 and received[0].token == received[1].token:
            yield f"refused, and sent again with the same token: {received}"


def _refused_requests_share_new_credentials(case: Case) -> Iterator[str]:
    """A refused request uses credentials that `auth` gave to another refused request since it was sent, if those are
    new.
    """
    anew = defaultdict[tuple[int, Principal], list[tuple[int, AuthCalled]]](list)
    for position, asked in case.credentials.asked.values():
        if asked.after is not None:
            anew[asked.attempt, asked.principal].append((position, asked))
    for together in anew.values():
        for index, (position, asked) in enumerate(together):
            assert asked.after is not None
            set_out_at = case.credentials.asked[asked.after][0]
            for earlier_at, earlier in together[:index]:
                if earlier_at > set_out_at and earlier.gives and not _was_nothing_new(case, earlier, position):
                    yield f"{asked}: `auth` was called again after {earlier}, whose credentials could be shared"


def _a_rotation_costs_no_call(case: Case) -> Iterator[str]:
    for call in case.ended("call", "subscribe"):
        backend_id, life = call.outcome.backend_id, call.began.life
        if call.outcome.error != "BackendUnauthorized" or backend_id is None or life is None:
            continue
        if not _had_reason(case, backend_id, call.began.at, call.ended_at, case.attempts_of(life)):
            yield f"{call} ended in {call.outcome}, while {backend_id!r} had good tokens to give"
    for tried in case.attempts.values():
        attempt = tried.attempt
        if tried.was_refused and not _had_reason(
            case, attempt.backend_id, attempt.at, tried.ended_at, {attempt.number}
        ):
            yield f"{attempt} was refused until {tried.ended_at}, while {attempt.backend_id!r} had good tokens to give"


def _principals(case: Case, asked: AuthCalled) -> tuple[Principal, ...]:
    """The principals for which `auth` may be called by the connection of this attempt."""
    session = case.session_of(case.attempts[asked.attempt].attempt.op)
    opened = (step for step in case.history.steps if isinstance(step, Open) and step.session == session)
    return ("opener", "caller") if next(opened).bound else ("anonymous",)


def _was_nothing_new(case: Case, asked: AuthCalled, before: int) -> bool:
    """The credentials of this call of `auth` were the refused ones again, so a further call may give others."""
    signed = sum(position < before for position, _ in case.credentials.signed[asked.number])
    return signed > sum(position < before for position, _ in case.credentials.sent[asked.number])


def _had_reason(case: Case, backend_id: str, since: float, until: float, attempts: set[int]) -> bool:
    """The backend, a rotation or a fault could refuse these connections to the end."""
    credentials = case.credentials
    return (
        credentials.was_withheld(backend_id, since, until)
        or credentials.were_overtaken(attempts, backend_id, since, until)
        or credentials.were_struck(attempts, backend_id, since, until)
    )


CREDENTIAL_CHECKS: tuple[Callable[[Case], Iterator[str]], ...] = (
    _credentials_match_backend_and_principal,
    _every_request_has_its_own_credentials,
    _a_refused_request_is_sent_again_once,
    _refused_requests_share_new_credentials,
    _a_rotation_costs_no_call,
)
