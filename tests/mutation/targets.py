"""The functions to mutate, the tests that must notice, and the mutants that need not be noticed, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CORE", "EQUIVALENT", "TARGETS", "TESTS"]

# By module: the functions, or None for all of it.
TARGETS: Mapping[str, tuple[str, ...] | None] = {
    "trio_vmcp._session.admission": None,
    "trio_vmcp._session.owner": tuple(
        f"SessionOwner.{name}"
        for name in ("serve", "request_close", "shorten_drain", "wait_closed", "close", "_shut_down")
    ),
    "trio_vmcp._http.connection": None,
    "trio_vmcp._http.transport": (
        *(f"RawResponse.{name}" for name in ("close", "close_connection")),
        *(
            f"Http11Transport.{name}"
            for name in (
                *("send", "connect", "tidy", "close"),
                *("_idle_connection", "_connect", "_give_back", "_keep", "_close_expired"),
            )
        ),
    ),
    "trio_vmcp._session.members": tuple(
        f"Membership.{name}"
        for name in (
            *("stop_connecting", "stop_recovering", "say_goodbye", "add", "remove", "_let_go", "_part"),
            *("_try_first", "_see_to", "_retry", "_connect_anew", "_may_join", "_note_attempt", "_note_missing"),
            "_replace",
        )
    ),
    "trio_vmcp._session.member": tuple(
        f"Member.{name}"
        for name in (
            *("joined", "lose_session", "end_recovery", "give_up", "remove", "let_go", "_look_gone", "request"),
            *("relapse", "_ask", "_on", "_recovered", "_pass_breaker", "_note_error", "_note_answer"),
        )
    ),
    "trio_vmcp._session.connection": None,
    "trio_vmcp._session.reconnects": None,
    "trio_vmcp._session.backoff": None,
    "trio_vmcp._session.breaker": None,
}

# Mutated on every push; the other modules take a quarter of an hour and are mutated on request.
CORE = ("trio_vmcp._session.admission", "trio_vmcp._session.owner")

TESTS = (
    *(
        f"session/test_{name}"
        for name in (
            *("admission", "closing", "calls", "ownership", "opening", "changes", "close_path"),
            *("restore", "recovery", "idle_recovery", "coming_back", "add_remove", "breaker", "health"),
        )
    ),
    "http/test_transport",
)

# Mutants that behave as the original does, or no worse, with the reason. An entry whose mutant is killed or does not
# exist is an error.
EQUIVALENT: Mapping[str, str] = {
    "Membership._part: delete `incarnation.end()`": (
        "A close only takes a little longer: what ends by itself meanwhile is cancelled afterwards."
    ),
    "Connection.receive: return nothing in `return None`": "Which is None.",
    "Http11Transport._idle_connection: return nothing in `return None`": "Which is None.",
    "SessionOwner.serve: delete `self._close_requested.set()`": (
        "After a crash no close asks for it: `state` asks for CLOSED first, and a later close changes nothing any more."
    ),
    "Breaker.admit: return nothing in `return None`": "The same.",
    "Breaker.admit: return nothing in `return None` (no. 2)": "The same.",
    "Breaker.fail: return nothing in `return False`": "Callers test the truth of the result.",
    "Breaker: False becomes True in `_on_trial: bool = attrs.field(default=False, init=False)`": (
        "Not read before the circuit opens, which sets it."
    ),
    "Incarnation: False becomes True in `is_listed: bool = attrs.field(default=False, init=False)`": (
        "Not read before the backend has joined, which sets it."
    ),
    "Turns.failed: > becomes >= in `if self._succeeded_at is not None and now - self._succeeded_at > "
    "self._backoff.max_delay:`": "An instant.",
    "SessionOwner.shorten_drain: < becomes <= in `if deadline < self._drain.deadline:`": (
        "Two drains that end at the same instant: the message names the one limit or the other, and both hold."
    ),
}
