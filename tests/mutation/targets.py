"""The functions to mutate, the tests that must notice, and the mutants that need not be noticed, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

__all__ = ["CORE", "EQUIVALENT", "TARGETS", "Target"]


@attrs.frozen
class Target:
    """What is mutated of one module, and what judges it.

    Attributes:
        tests: The files of tests below `tests`. A mutant that none of these notices counts as a survivor, although
            another file might notice: the tests of a module belong where they are looked for.
        functions: By qualified name; None: all of the module.
    """

    tests: tuple[str, ...]
    functions: tuple[str, ...] | None = None


_TESTS = Path(__file__).parent.parent


def _session(*names: str) -> tuple[str, ...]:
    return tuple(f"session/test_{name}" for name in names)


def _client(*names: str) -> tuple[str, ...]:
    return tuple(f"client/test_{name}" for name in names)


def _http(*names: str) -> tuple[str, ...]:
    return tuple(f"http/test_{name}" for name in names)


def _of(owner: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{owner}.{name}" for name in names)


_OWNER_TESTS = (
    *_session(
        *("admission", "closing", "calls", "ownership", "opening", "change_feed", "close_path", "interrupts"),
        *("restore", "recovery", "idle_recovery", "coming_back", "add_remove", "breaker", "health"),
        *("life", "member", "row", "traps", "two_instances", "own_connector", "use_marks", "late_joins", "observing"),
        "reference_cycles",
    ),
    *_client("handlers"),
    "manager/test_requests",
    "manager/test_hibernation",
)
# Of modules that nearly every test runs: the first test that fails ends a mutant, so a long list costs little.
_SESSION_TESTS = tuple(f"session/{path.stem}" for path in sorted(_TESTS.joinpath("session").glob("test_*.py")))
_BREAKER_TESTS = _session("breaker", "recovery", "health", "idle_recovery")
_ROW_TESTS = _session(
    *("row", "row_kept", "two_instances", "use_marks", "restore", "ownership", "closing", "close_path", "opening"),
    *("late_joins", "traps", "recovery", "interrupts", "attributes", "names_of_instances"),
) + tuple(f"manager/test_{name}" for name in ("instances", "leaving", "storage_away"))
_ROUTING_TESTS = (
    *_session("names", "names_of_instances", "directory", "directory_updates", "add_remove", "moves", "restore"),
    *_session("two_instances", "refresh", "offered_tools", "listing"),
    *("test_routing", "test_router", "test_cut_names", "test_names_for_models"),
)

TARGETS: Mapping[str, Target] = {
    "trio_vmcp._session.admission": Target(_OWNER_TESTS),
    "trio_vmcp._session.owner": Target(
        _OWNER_TESTS,
        _of(
            "SessionOwner",
            *("serve", "request_close", "shorten_drain", "wait_closed", "close"),
            *("_shut_down", "_close_late", "_end_life"),
        ),
    ),
    "trio_vmcp._session.call_options": Target(_session("call_options")),
    "trio_vmcp._session.life": Target(_session("life", "closing", "opening", "restore", "recovery", "close_path")),
    "trio_vmcp._session.members": Target(
        _SESSION_TESTS,
        _of(
            "Membership",
            *("cancel_connecting", "cancel_replacing", "close_connections", "close", "add", "remove"),
            *("_on_transition", "_ensure_retrying", "_retry", "_connect_anew", "_place"),
        ),
    ),
    "trio_vmcp._session.member": Target(
        _SESSION_TESTS,
        _of(
            "Member",
            *("to", "may_join", "join", "fail", "start_retrying", "start_longer", "fail_replacing"),
            *("note_connection_ended", "replace_connection", "cancel_connecting", "remove", "discard_attempt"),
            *("_cancel_attempts", "_check_gone"),
        ),
    ),
    "trio_vmcp._session.connecting": Target(
        _SESSION_TESTS,
        (
            *_of("Attempt", "run", "replace", "is_over", "current_client", "_fail", "_settle", "_report_late"),
            *_of("Attempt", "_report", "_close_client_in_time", "_close_in_time", "_goodbye_scope"),
            *("close_connection", "_close_client"),
        ),
    ),
    "trio_vmcp._session.call": Target(
        _SESSION_TESTS,
        (
            "request_member",
            "_request_with_progress",
            "_is_sent_again",
            "_replaced_connection",
            "_pass_breaker",
            "_note_error",
            "note_answer",
        ),
    ),
    # The roots of a client change in sessions of the front.
    "trio_vmcp._session.connection": Target(
        (*_SESSION_TESTS, "serve/test_questions", "serve/test_return", "manager/test_renewed_tokens")
    ),
    "trio_vmcp._session.reconnects": Target(
        _session(
            *("recovery", "idle_recovery", "coming_back", "two_principals", "breaker", "starting", "opening"),
            *("late_joins", "member", "refused_everything", "reconnects"),
        )
    ),
    "trio_vmcp._session.breaker": Target(_BREAKER_TESTS),
    "trio_vmcp._session.trial": Target(_BREAKER_TESTS),
    "trio_vmcp._session.stopping": Target(_session("stop_after")),
    "trio_vmcp._session.calls": Target(
        (*_SESSION_TESTS, *_client("subscriptions", "questions"), "serve/test_questions")
    ),
    "trio_vmcp._session.row": Target(_ROW_TESTS),
    "trio_vmcp._session.stored_row": Target(_ROW_TESTS),
    "trio_vmcp._session.use_marks": Target(_session("use_marks", "two_instances", "row", "restore", "closing")),
    "trio_vmcp._session.offered_tools": Target(_session("offered_tools", "listing", "names")),
    "trio_vmcp._known_results": Target(
        (*_client("known_results"), *_session("shared_lists", "refresh")),
        (*_of("SharedPages", "find", "end"), *_of("KnownResults", "find", "end"), "can_recall"),
    ),
    "trio_vmcp._client.channels.parsing": Target(
        (*_client("parsing", "known_results", "answers", "walls", "steps"), *_session("shared_lists"))
    ),
    "trio_vmcp._tool_patterns": Target(_session("offered_tools", "names")),
    "trio_vmcp._session.directory": Target(
        (
            *_session("directory", "names", "add_remove", "restore", "refresh", "staying_current", "coming_back"),
            *_session("offered_tools", "listing", "change_feed", "calls"),
            "test_routing",
        )
    ),
    "trio_vmcp.routing": Target(_ROUTING_TESTS),
    "trio_vmcp._routing.names": Target(_ROUTING_TESTS),
    "trio_vmcp._routing.strategies": Target(_ROUTING_TESTS),
    "trio_vmcp._routing.name_rule": Target(_ROUTING_TESTS),
    "trio_vmcp._http.connection": Target((*_http("transport", "response", "proxy"), *_client("http_link", "answers"))),
    "trio_vmcp._http.transport": Target(
        (
            *_http("transport", "response", "dial", "tcp", "keep_alive", "proxy"),
            *_client("http_link", "giving_up", "answers"),
        ),
        (
            *_of("RawResponse", "close", "close_connection"),
            *_of("Http11Transport", "send", "connect", "tidy", "close", "open_ahead", "_ready_connection"),
            *_of("Http11Transport", "_connect_ahead", "_idle_connection", "_connect", "_return_connection"),
            *_of("Http11Transport", "_keep_idle", "_close_expired"),
        ),
    ),
    "trio_vmcp._client.channels.pace": Target(
        _client("pace", "walls", "lines", "duplex", "http_link", "notifications", "order", "steps")
    ),
    "trio_vmcp._client.channels.inbox": Target(
        _client(
            *("inbox", "answers", "duplex", "lines", "http_sse", "order", "walls", "server_requests", "notifications"),
            *("giving_up", "rounds", "known_results"),
        )
        + _session("silent_streams")
    ),
    "trio_vmcp._client.channels.streamable_session": Target(
        (
            *_client("http_subscriptions", "http_link", "handshake", "answers", "listening", "giving_up"),
            *_client("greeting", "walls", "explanations", "server_requests", "rounds", "http_rounds", "order"),
            *_session("recovery", "refused_everything", "restore", "silent_streams", "failing_streams"),
            *_session("idle_recovery", "close_path", "closing", "whose_credentials"),
        ),
        _of(
            "StreamableSession",
            *("resume", "greet", "_note_assigned", "agree", "aclose", "retire", "_delete", "_compose_headers"),
            *("exchange", "cancel", "_answered_anywhere", "_resumed", "_resume", "_check_session", "_says_gone"),
            *("watch", "_open_stream", "_refuses_everything", "terminate"),
        ),
    ),
    "trio_vmcp._client.channels.refusals": Target(
        (
            *_client("explanations", "http_link", "handshake"),
            *_session("recovery", "refused_everything", "silent_streams"),
        )
    ),
    "trio_vmcp._client.probe": Target(
        (
            *_client("probe", "greeting", "handshake", "http_sse", "explanations", "stateless", "walls", "order"),
            *_session("starting", "two_principals"),
        )
    ),
    "trio_vmcp._client.listening": Target(
        (
            *_client("listening", "http_subscriptions", "duplex_subscriptions", "stateless", "subscriptions"),
            *_session("silent_streams", "failing_streams"),
        )
    ),
    "trio_vmcp._manager.agenda": Target(("manager/test_agenda",)),
    "trio_vmcp._manager.configuration": Target(("manager/test_agenda", "manager/test_set_backends")),
    "trio_vmcp._manager.changes": Target(("manager/test_set_backends",)),
    "trio_vmcp.serve.sealing": Target(
        ("serve/test_sealing",),
        (*_of("Sealer", "__init__", "seal", "unseal"), "BadSeal", "_derived", "_encoded", "_decoded"),
    ),
}

# Mutated on every push; all modules take half an hour and are mutated on request.
CORE = ("trio_vmcp._session.admission", "trio_vmcp._session.owner")

# Mutants that behave as the original does, or no worse, with the reason. An entry whose mutant is killed or does not
# exist is an error.
EQUIVALENT: Mapping[str, str] = {
    "parse: delete `if is_cheap(text, max_values):`": "What is cheap can be counted, too.",
    'split_batch: delete `if text[:1] == "{":  # most texts`': "An object is no array: the same answer, later.",
    'split_batch: 1 becomes 2 in `if text[:1] == "{":  # most texts`': "As above.",
    "Breaker: False becomes True in `_on_trial: bool = attrs.field(default=False, init=False)`": (
        "Not read before the circuit opens, which sets it."
    ),
    "Calls: 0.0 becomes 1.0 in `last_call_at: float = attrs.field(default=0.0, init=False)`": (
        "Set when the opening ends, and not read before."
    ),
    "Calls._find: ignore `owner is not None` in `if owner is not None and owner in self._members and not "
    "self._is_left_out(kind, self._members[owner], name):`": ("For the type checker: None is the id of no member."),
    "Calls.route_completion: ignore `member.record is not None` in `if member.record is not None and not "
    'declares(member.record.server_capabilities, ("completions",)):`': (
        "For the type checker: a backend whose prompt or template is listed was connected once."
    ),
    "Attempt.replace: ignore `self.connection is None` in `if self.connection is None or self.connection.client is not "
    "events.client:`": "For the type checker: the tasks of an attempt that has failed are being ended.",
    "Membership._ensure_retrying: ignore `member.backend is not None` in `if member.retry is None and member.backend "
    "is not None and self._is_retried(member):`": (
        "For the type checker: a member without its `Backend` is Unconfigured, and may not join."
    ),
    "Member.join: ignore `self.backend is not None` in `if self.stored is not None and self.backend is not None:  "
    "# else it is the first connection ever`": "For the type checker: as above.",
    "Membership._on_transition: ignore `member.backend is not None` in `elif isinstance(state, Waking) and "
    "member.backend is not None:`": "For the type checker: as above.",
    "Configuration.set: 1 becomes 2 in `self.generation += 1`": "Generations are compared, and not counted.",
    "Configuration: 0 becomes 1 in `generation: int = attrs.field(default=0, init=False)`": (
        "Generations are compared, and not counted."
    ),
    "Changes.take_over: >= becomes > in `if owner.life.is_closing or known.generation >= generation:`": (
        "Backends of the same generation are the same, so that nothing changes."
    ),
    "NameRule.fit: > becomes >= in `return (legible[int(too_long) :] if too_long > 0 else legible) + tail`": (
        "From its character 0 on, a name is whole."
    ),
    "<module>: 64 becomes 65 in `_MOST_KNOWN = 64`": "One set of backends more is known.",
    "<module>: 1000 becomes 1001 in `MOST_AT_ONCE = 1000`": "A thousandth of a bound on the time of a step.",
    "_inner_prefixes: 0 becomes 1 in `found[backend_id] = dict(sorted(inner, key=lambda pair: len(pair[0]), "
    "reverse=True))`": "The ids in them are in the same order: of two prefixes of one format, that of the longer id is "
    "longer.",
    "Turns.note_failure: > becomes >= in `if self._succeeded_at is not None and now - self._succeeded_at > "
    "self._backoff.max_delay:`": "An instant.",
    "SessionOwner.shorten_drain: < becomes <= in `if deadline < self._drain.deadline:`": (
        "Two drains that end at the same instant: the message names the one limit or the other, and both hold."
    ),
    "StreamBackoff.keep_trying: 1 becomes 2 in `self._fruitless = min(self._fruitless, MOST_FRUITLESS - 1)`": (
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
    "Connection: 0.0 becomes 1.0 in `idle_since: float = attrs.field(default=0.0, init=False)`": (
        "Set when the connection becomes idle, and not read before."
    ),
    "Connection: False becomes True in `ended_unused: bool = attrs.field(default=False, init=False)`": (
        "Set by each error of `send_request`, and not read before."
    ),
    "HeldStream.run: delete `self.is_running = False`": "As below.",
    "HeldStream.run: False becomes True in `self.is_running = False`": "As below.",
    "StreamableSession.exchange: ignore `not stream.is_running` in `if stream is None or not stream.is_running:`": (
        "No answer comes by a stream that has ended, so that the two ways differ in speed only."
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
    "<module>: 10.0 becomes 11.0 in `TRIAL_TIMEOUT = 10.0`": "A second more of a bound.",
    "Http11Transport.send: <= becomes < in `if trio.current_time() - begun_at <= AT_ONCE:`": "An instant.",
    "Http11Transport.send: >= becomes > in `if age >= LEAST_FOUND:`": "An instant.",
    "Inbox._is_late: ignore `answered is None` in `if answered is None or answered not in self._given_up:`": (
        "For the type checker: None is the id of no request."
    ),
    "Turns.note_success: delete `self._waiting = None`": "Faster: the wait of these is over already.",
    "Endpoints.no_reconnects: return nothing in `return Reconnects(turns, turns, self)`": (
        "For the type checker: such a backend is never connected."
    ),
    "_join: delete `if theirs == base:`": "Faster, where the row has nothing to join with.",
    "<module>: 8 becomes 9 in `MOST_UNANSWERED = 8`": "One more of a bound.",
    "Pace.wait: < becomes <= in `if self._bytes < 0:`": "Nothing is waited for.",
    "Pace.wait: 0 becomes 1 in `if self._bytes < 0:`": "Nothing is waited for.",
    "pieces: delete `if len(chunk) <= SMALL_PIECE:`": "A short chunk is one piece, whether it is cut or not.",
    "pieces: <= becomes < in `if len(chunk) <= SMALL_PIECE:`": "As above.",
    "tool_patterns: take all in `globs = sorted(name for name in names if not _GLOB_CHARACTERS.isdisjoint(name))`": (
        "As a glob, a name without its characters matches itself alone."
    ),
    "<module>: 512 becomes 513 in `AT_ONCE = 512`": "One name more in a step.",
    "<module>: 16 becomes 17 in `SIMPLE_AT_ONCE = 16 * AT_ONCE`": "512 plain names more in a step: 0.15 ms.",
    "<module>: 1 becomes 2 in `_TICK = timedelta(microseconds=1)`": "Any tick makes a mark differ.",
}
