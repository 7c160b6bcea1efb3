"""The functions to mutate, the tests that must notice, and the mutants that need not be noticed, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CORE", "CORE_TESTS", "EQUIVALENT", "TARGETS", "TESTS"]

# By module: the functions, or None for all of it.
TARGETS: Mapping[str, tuple[str, ...] | None] = {
    "trio_vmcp._session.admission": None,
    "trio_vmcp._session.owner": tuple(
        f"SessionOwner.{name}"
        for name in (
            "serve",
            "request_close",
            "shorten_drain",
            "wait_closed",
            "close",
            "_shut_down",
            "_close_late",
            "_end_life",
        )
    ),
    "trio_vmcp._http.connection": None,
    "trio_vmcp._http.transport": (
        *(f"RawResponse.{name}" for name in ("close", "close_connection")),
        *(
            f"Http11Transport.{name}"
            for name in (
                *("send", "connect", "tidy", "close"),
                *("_idle_connection", "_connect", "_return_connection", "_keep_idle", "_close_expired"),
            )
        ),
    ),
    "trio_vmcp._session.life": None,
    "trio_vmcp._session.members": tuple(
        f"Membership.{name}"
        for name in (
            *("cancel_connecting", "cancel_replacing", "close_connections", "close", "add", "remove"),
            *("_on_transition", "_ensure_retrying", "_retry", "_connect_anew", "_place"),
        )
    ),
    "trio_vmcp._session.member": tuple(
        f"Member.{name}"
        for name in (
            *("to", "may_join", "join", "fail", "start_retrying", "start_longer", "fail_replacing"),
            "note_connection_ended",
            *("replace_connection", "cancel_connecting", "remove", "discard_attempt", "_cancel_attempts"),
            "_check_gone",
        )
    ),
    "trio_vmcp._session.connecting": (
        *(f"Attempt.{name}" for name in ("run", "replace", "is_over", "current_client", "_fail", "_settle")),
        *("Attempt._report_late", "Attempt._report"),
        *("Attempt._close_client_in_time", "Attempt._close_in_time", "Attempt._goodbye_scope"),
        *("close_connection", "_close_client"),
    ),
    "trio_vmcp._session.call": (
        *("request_member", "_is_sent_again", "_replaced_connection", "_pass_breaker", "_note_error", "note_answer"),
    ),
    "trio_vmcp._session.connection": None,
    "trio_vmcp._session.reconnects": None,
    "trio_vmcp._session.breaker": None,
    "trio_vmcp._session.trial": None,
    "trio_vmcp._session.calls": None,
    "trio_vmcp._session.row": None,
    "trio_vmcp._session.directory": None,
    "trio_vmcp.routing": None,
    "trio_vmcp._routing.names": None,
    "trio_vmcp._routing.strategies": None,
    "trio_vmcp._routing.name_rule": None,
    "trio_vmcp._session.use_marks": None,
    "trio_vmcp._client.channels.pace": None,
    "trio_vmcp._client.channels.inbox": None,
    "trio_vmcp._client.channels.streamable_session": tuple(
        f"StreamableSession.{name}"
        for name in (
            *("resume", "greet", "_note_assigned", "agree", "aclose", "retire", "_delete", "_compose_headers"),
            *("exchange", "cancel", "_answered_anywhere", "_resumed", "_resume", "_check_session", "_says_gone"),
            *("watch", "_open_stream", "_close_stream", "_refuses_everything", "terminate"),
        )
    ),
    "trio_vmcp._client.channels.refusals": None,
    "trio_vmcp._client.probe": None,
    "trio_vmcp._client.listening": None,
}

# Mutated on every push; the other modules take over half an hour and are mutated on request.
CORE = ("trio_vmcp._session.admission", "trio_vmcp._session.owner")

# The tests that judge them: a mutant that none of these notices counts as a survivor.
CORE_TESTS = (
    *(
        f"session/test_{name}"
        for name in (
            *("admission", "closing", "calls", "ownership", "opening", "change_feed", "close_path", "interrupts"),
            *("restore", "recovery", "idle_recovery", "coming_back", "add_remove", "breaker", "health"),
            *("life", "member", "row", "traps", "two_instances", "own_connector", "use_marks", "late_joins"),
        )
    ),
    "client/test_handlers",
)

TESTS = (
    *CORE_TESTS,
    *(
        f"session/test_{name}"
        for name in (
            *("questions", "transition_log", "interfaces", "listing", "names", "refresh", "staying_current"),
            *("directory", "two_principals", "starting", "silent_streams", "time_limits", "refused_everything"),
            *("flaws", "moves", "whose_credentials"),
        )
    ),
    *(
        f"client/test_{name}"
        for name in (
            *("walls", "probe", "order", "handshake", "listening", "http_link", "duplex", "http_sse"),
            *("subscriptions", "server_requests", "answers", "questions", "explanations", "rounds", "repeats"),
            *("stateless", "http_subscriptions", "duplex_subscriptions", "http_rounds", "complaints", "credentials"),
            *("whose_credentials", "giving_up", "greeting", "notifications", "lines", "cookies", "last_words"),
        )
    ),
    *(f"http/test_{name}" for name in ("transport", "response", "dial", "tcp", "keep_alive")),
    "test_routing",
)

# Mutants that behave as the original does, or no worse, with the reason. An entry whose mutant is killed or does not
# exist is an error.
EQUIVALENT: Mapping[str, str] = {
    "close_connection: delete `connection.retire()`": (
        "A close only takes a little longer: what ends by itself meanwhile is cancelled afterwards."
    ),
    "Breaker: False becomes True in `_on_trial: bool = attrs.field(default=False, init=False)`": (
        "Not read before the circuit opens, which sets it."
    ),
    "_note_error: ignore `isinstance(member.state, Ready)` in `if opened and isinstance(member.state, Ready):`": (
        "For the type checker. A member with a connection and a closed circuit is Ready: Failing begins when the "
        "circuit opens, and `note_answer` and `join` end it when the circuit closes."
    ),
    "Calls: 0.0 becomes 1.0 in `last_call_at: float = attrs.field(default=0.0, init=False)`": (
        "Set when the opening ends, and not read before."
    ),
    "Calls.call: ignore `array` in `if array and not isinstance(raw.get(array), list | None):`": (
        'A method without an array asks for the member "", which no result of MCP has.'
    ),
    "Calls._find: ignore `owner is not None` in `if owner is not None and owner in self._members:`": (
        "For the type checker: None is the id of no member."
    ),
    "Calls.route_completion: ignore `member.record is not None` in `if member.record is not None and not "
    'declares(member.record.server_capabilities, ("completions",)):`': (
        "For the type checker: a backend whose prompt or template is listed was connected once."
    ),
    "Membership._ensure_retrying: ignore `member.backend is not None` in `if member.retry is None and member.backend "
    "is not None and member.may_join(self._session.life):`": (
        "For the type checker: a member without its `Backend` is Unconfigured, and may not join."
    ),
    "NameRule.fit: > becomes >= in `return (legible[int(too_long) :] if too_long > 0 else legible) + tail`": (
        "From its character 0 on, a name is whole."
    ),
    "_well_formed_templates: < becomes <= in `if left < 0:`": "One character of 65 536.",
    "_well_formed_templates: 0 becomes 1 in `if left < 0:`": "One character of 65 536.",
    "<module>: 1024 becomes 1025 in `_TEMPLATE_CHARACTERS = 64 * 1024`": "A thousandth of a bound on costs.",
    "inner_prefixes: 0 becomes 1 in `found[backend_id] = dict(sorted(inner, key=lambda pair: len(pair[0]), "
    "reverse=True))`": "The ids in them are in the same order: of two prefixes of one format, that of the longer id is "
    "longer.",
    "Turns.note_failure: > becomes >= in `if self._succeeded_at is not None and now - self._succeeded_at > "
    "self._backoff.max_delay:`": "An instant.",
    "SessionOwner.shorten_drain: < becomes <= in `if deadline < self._drain.deadline:`": (
        "Two drains that end at the same instant: the message names the one limit or the other, and both hold."
    ),
    "StreamBackoff._keep_trying: 1 becomes 2 in `self._fruitless = min(self._fruitless, MOST_FRUITLESS - 1)`": (
        "The pace is the slowest already, and after an outage a stream that is refused is given up an attempt later."
    ),
    "HeldStream.note_ended: >= becomes > in `if trio.current_time() - opened_at >= HELD_LONG:`": "An instant.",
    "may_be_about_session: ignore `isinstance(outcome.reply, ErrorReply)` in `return not (`": (
        "For the type checker: a result is no refusal, and both callers have excluded it."
    ),
    'Opening.verdict_key: invert `self.greets_first` in `return f"{self.endpoint} initialize" if self.greets_first '
    "else self.endpoint`": "The keys of the two orders only have to differ.",
    'Opening.open_event_stream: delete `raise AssertionError("there is no such stream over this channel")`': (
        "Not run: over a channel without such a stream no verdict asks for one."
    ),
    "<module>: 3 becomes 4 in `MOST_ROUNDS = 3`": "One round more of a bound.",
    "Connection: 0.0 becomes 1.0 in `idle_since: float = attrs.field(default=0.0, init=False)`": (
        "Set when the connection becomes idle, and not read before."
    ),
    "Connection: False becomes True in `ended_unused: bool = attrs.field(default=False, init=False)`": (
        "Set by each error of `send_request`, and not read before."
    ),
    "StreamableSession.exchange: ignore `not stream.settled.is_set()` in `if self._is_asked and not "
    "stream.settled.is_set() and METHODS.get(ask.method, UNKNOWN).may_ask_back:`": (
        "A wait for what is settled is a checkpoint."
    ),
    "Connection: False becomes True in `_is_answering: bool = attrs.field(default=False, init=False)`": (
        "Set at the begin of each request, and not read before."
    ),
    "Connection: True becomes False in `_takes_more: bool = attrs.field(default=True, init=False)`": (
        "Set at the begin of each request, and not read before."
    ),
}
