"""What must hold for every script: violations, as sentences."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import trio
from support.deterministic import ending, seeded
from trio.testing import MockClock

from fuzz.front_run import Outcome, Sent, events, messages, replay, stream_of
from fuzz.front_steps import Delete, Get, Legacy, Modern, Raw, Reply, Step
from trio_vmcp import JSON

__all__ = ["judge", "violations"]

# 401 and 403: edges; 404: session ids, and methods of the stateless era; 405, 406, 413, 415: as HTTP defines them
STATUSES = frozenset([200, 202, 204, 400, 401, 403, 404, 405, 406, 413, 415, 503])
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CANARY = re.compile(r"(alice|bob|stranger)-\d+\.")
_RETURNS_ITS_CANARY = re.compile(r"[abc]_(echo|hold|chat|region)")


def violations(script: Sequence[Step], seed: int = 0) -> list[str]:
    """Replay a script in virtual time, under a seed for the scheduler, and judge it."""
    try:
        with seeded(seed):
            return judge(trio.run(replay, script, clock=ending(MockClock(autojump_threshold=0), longest=1e5)))
    except Exception:  # noqa: BLE001  # a violation as any other; the traceback says what raised
        return [f"the application raised:\n{traceback.format_exc()}"]


def judge(outcome: Outcome) -> list[str]:
    found = [f"a task crashed: {crash}" for crash in outcome.crashes]
    found += [f"left at the end: {what}" for what in outcome.left]
    withdrawn = {key for sent in outcome.sent for key in _withdrawn(sent)}
    for number, sent in enumerate(outcome.sent):
        # Requests without a response of their own: withdrawn, or their streams were resumed.
        excused = withdrawn | {key for get in outcome.sent if _took(get, sent) for key in _excused_by(get, sent)}
        found += [f"request {number} ({sent.principal}): {problem}" for problem in _problems(sent, excused)]
    return found + list(_repeated_events(outcome))


def _withdrawn(sent: Sent) -> Iterator[Any]:
    for message in sent.message if isinstance(sent.message, list) else [sent.message]:  # a list: a batch
        if isinstance(message, dict) and message.get("method") == "notifications/cancelled":
            params = message.get("params")
            found = params.get("requestId") if isinstance(params, dict) else None
            if isinstance(found, int | str):
                yield sent.session_id, type(found), found


def _took(get: Sent, sent: Sent) -> bool:
    """A GET goes on with the stream of this request: all that follows comes by that connection."""
    if not get.resumes or get.principal != sent.principal or get.received.status not in (0, 200):
        return False
    return not get.resumes.isdisjoint(stream_of(event_id) for event_id, _ in events(sent.received) if event_id)


def _excused_by(get: Sent, sent: Sent) -> Iterator[Any]:
    """What has its response there; or may have: the client has left that connection, too, or it was still open."""
    if get.left:
        yield from ((sent.session_id, type(request_id), request_id) for request_id in sent.asked)
    for message in messages(get.received):
        if "method" not in message:
            yield sent.session_id, type(message.get("id")), message.get("id")


def _problems(sent: Sent, excused: set[Any]) -> Iterator[str]:
    received = sent.received
    if not received.status:
        if not sent.left:
            yield "no reply"
        return
    if received.status not in STATUSES:
        yield f"status {received.status}"
    if received.status == 503 and not received.headers.get("retry-after", "").isdigit():
        yield "503 without Retry-After"
    is_probe = isinstance(sent.step, Raw) and sent.step.path in ("/healthz", "/readyz")  # which take no credentials
    if sent.principal == "stranger" and received.status < 400 and sent.is_plain and not is_probe:
        yield f"a stranger got {received.status}"
    yield from _foreign(sent)
    if not (isinstance(sent.step, Raw) and sent.step.path.strip("/") != "mcp"):
        yield from _shape(sent)
        yield from _responses(sent, excused)
    texts = [received.body.decode(), *received.headers.values()]
    canaries = {found[0]: found[1] for text in texts for found in _CANARY.finditer(text)}
    for canary, owner in canaries.items():
        if owner != sent.principal:
            yield f"got {canary!r} of {owner}"


def _foreign(sent: Sent) -> Iterator[str]:
    """A session of another principal is as one that does not exist."""
    is_foreign = sent.owner not in (None, sent.principal)
    if is_foreign and sent.is_plain and isinstance(sent.step, Legacy | Reply | Get | Delete):
        of_a_session = not (isinstance(sent.step, Legacy) and sent.step.method == "initialize")
        if of_a_session and sent.received.status < 400:
            yield f"got {sent.received.status} for a session of {sent.owner}"


def _shape(sent: Sent) -> Iterator[str]:
    received = sent.received
    if received.is_stream:
        for event_id, message in events(received):
            if message is None:
                if not event_id:
                    yield "an event with neither data nor id"
            elif not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
                yield f"an event that is no JSON-RPC message: {message!r:.200}"
    elif received.body and received.headers.get("content-type") == "application/json":
        found = messages(received)
        if [message for message in found if message.get("jsonrpc") != "2.0"] or not found:
            yield f"a body that is no JSON-RPC message: {received.body[:200]!r}"
    elif received.body:
        yield f"a body of type {received.headers.get('content-type')!r}"
    if received.status in (202, 204) and received.body:
        yield f"{received.status} with a body"
    is_opening = isinstance(sent.message, dict) and sent.message.get("method") == "initialize"
    if "mcp-session-id" in received.headers and not is_opening:
        yield "a session id, without initialize"


def _responses(sent: Sent, excused: set[Any]) -> Iterator[str]:
    """Exactly one response to each request, with its id, behind all other messages; none to anything else."""
    received = sent.received
    found = messages(received)
    responses = [message for message in found if "method" not in message]
    for message in responses:
        if ("result" in message) == ("error" in message):
            yield f"a response with both or neither of result and error: {message!r:.200}"
    if isinstance(sent.step, Get):
        if len(responses) > 1:
            yield f"{len(responses)} responses on one stream"
        return
    waiting = Counter((type(request_id), request_id) for request_id in sent.asked)
    for message in responses:
        key = (type(message.get("id")), message.get("id"))
        if waiting[key]:
            waiting[key] -= 1
        elif message.get("id") is not None or not _has_no_id(sent, message):
            yield f"a response with the id {message.get('id')!r:.50} to the requests {sent.asked!r:.200}"
    if responses and found[len(found) - len(responses) :] != responses:
        yield "a message behind the response"
    if sent.left or not received.done.is_set() or received.status >= 400 or not sent.body_is_whole:
        return
    for kind, request_id in waiting.elements():
        if (sent.session_id, kind, request_id) not in excused:
            yield f"no response to {request_id!r:.50}, status {received.status}"
    yield from _own_canary(sent, responses)


def _has_no_id(sent: Sent, message: JSON) -> bool:
    """The id of an error is null only where the server had none (JSON-RPC 2.0 §5): at edges, and for what is no
    request, or a batch that was not taken.
    """
    status, text = sent.received.status, str(message.get("error"))
    is_edge = status in (401, 403, 405, 413, 415) or "at this path" in text
    is_edge |= any(isinstance(each, str) and _LONE_SURROGATE.search(each) for each in sent.asked)  # an id that is none
    return is_edge or not sent.asked or isinstance(sent.message, list) or "the body " in text


def _own_canary(sent: Sent, responses: list[JSON]) -> Iterator[str]:
    if not sent.is_plain or not isinstance(sent.step, Legacy | Modern) or sent.step.method != "tools/call":
        return
    params, text = sent.step.params, str(responses)
    is_result = any(message.get("result") and not message["result"].get("isError") for message in responses)
    if is_result and _RETURNS_ITS_CANARY.fullmatch(str(params.get("name"))) and sent.canary not in text:
        yield f"a result that is not of this call: {text:.300}"


def _repeated_events(outcome: Outcome) -> Iterator[str]:
    """The id of an event means one message, in all streams of a session (MCP 2025-11-25, transports)."""
    by_id: dict[tuple[str | None, str], Any] = {}
    per_reply: Counter[tuple[int, str]] = Counter()
    for number, sent in enumerate(outcome.sent):
        for event_id, message in events(sent.received):
            if event_id is None or not sent.is_plain:
                continue
            per_reply[number, event_id] += 1
            key = (sent.session_id, event_id)
            if by_id.setdefault(key, message) != message:
                yield f"event {event_id} is two messages: {by_id[key]!r:.200}, {message!r:.200}"
    for (number, event_id), count in per_reply.items():
        if count > 1:
            yield f"request {number}: event {event_id} came {count} times"
