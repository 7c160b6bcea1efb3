"""Whatever a backend answers, the call ends in a BackendError within its deadline, and the next call works."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clients import (
    Chunks,
    call,
    echo_backend,
    event,
    in_json,
    message_of,
    no_progress,
    open_bench,
    open_client,
    result,
)
from support.harness import open_world
from trio.testing import MockClock

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    FactorySettings,
    FailureReason,
    MessageTooLarge,
    open_session_factory,
)
from trio_vmcp._client.http.foreign import HttpxSource, RequestBody
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp.testing import Disconnect, Drip, Error, Flip, Raw, Reset, Rewrite, Stall, WireFault

KIB = 1024

CALL_ID = 2  # in both eras the first request has the id 1
TINY = FactorySettings(max_message_bytes=2000, max_json_depth=16)
WHOLE = result(CALL_ID, content=[{"type": "text", "text": "whole"}])
DEADLINE = 5.0


class Hostile:
    """Connects normally, answers the first call with `answer`, and every later call correctly."""

    def __init__(self, answer: Callable[[], httpx.Response]) -> None:
        self.answer: Callable[[], httpx.Response] | None = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked = message_of(request)
        if asked.get("method") == "tools/call":
            answer, self.answer = self.answer, None
            return answer() if answer else in_json(result(asked["id"], content=["next"]))
        if "id" not in asked:
            return httpx.Response(202)
        versions = {"supportedVersions": ["2026-07-28"], "protocolVersion": "2025-11-25"}
        return in_json(result(asked["id"], **versions, capabilities={"tools": {}}))


async def outcome_of(
    answer: Callable[[], httpx.Response], era: str, limits: FactorySettings = TINY
) -> JSON | BackendError:
    """The result or error of the hostile call, after a check that it kept the deadline and that the next call works."""
    async with open_bench(httpx.MockTransport(Hostile(answer)), era=era, settings=limits) as bench:
        client = await bench.connect()
        started = trio.current_time()
        outcome: JSON | BackendError
        try:
            outcome = await call(client, timeout=DEADLINE, on_progress=no_progress)
        except BackendError as error:
            outcome = error
        assert trio.current_time() - started <= DEADLINE + 0.1
        assert {"content": ["next"]} == await call(client, timeout=DEADLINE)
        return outcome


def json_of(data: bytes) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, headers={"content-type": "application/json"}, content=data)


def sse_of(*pieces: bytes | float | Exception) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(*pieces))


def nested(levels: int) -> bytes:
    """`levels` of nesting, the message itself and its result included."""
    inside = levels - 2
    return b'{"jsonrpc":"2.0","id":%d,"result":{"content":%s%s}}' % (CALL_ID, b"[" * inside, b"]" * inside)


def sized(size: int) -> bytes:
    head = json.dumps(result(CALL_ID, content=[""])).encode()
    return head.replace(b'""', b'"' + b"x" * (size - len(head)) + b'"')


BAD_MESSAGES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"hello",
    "half": json.dumps(WHOLE).encode()[:-1],
    "two": json.dumps(WHOLE).encode() * 2,
    "not UTF-8": b'{"jsonrpc":"2.0","id":2,"result":{"a":"\xff"}}',
    "UTF-16": json.dumps(WHOLE).encode("utf-16"),
    "NaN": b'{"jsonrpc":"2.0","id":2,"result":{"a":NaN}}',
    "Infinity": b'{"jsonrpc":"2.0","id":2,"result":{"a":-Infinity}}',
    "1e999": b'{"jsonrpc":"2.0","id":2,"result":{"a":1e999}}',
    "deep": nested(17),
    "deepest": b"[" * 1900,
    "scalar": b"7",
    "null": b"null",
    "batch": b"[" + json.dumps(WHOLE).encode() + b"]",
    "no version": b'{"id":2,"result":{}}',
    "version 1": b'{"jsonrpc":"1.0","id":2,"result":{}}',
    "neither": b'{"jsonrpc":"2.0","id":2}',
    "both": b'{"jsonrpc":"2.0","id":2,"result":{},"error":{"code":1,"message":"x"}}',
    "scalar result": b'{"jsonrpc":"2.0","id":2,"result":7}',
    "null result": b'{"jsonrpc":"2.0","id":2,"result":null}',
    "array result": b'{"jsonrpc":"2.0","id":2,"result":[]}',
    "text error": b'{"jsonrpc":"2.0","id":2,"error":"x"}',
    "no code": b'{"jsonrpc":"2.0","id":2,"error":{"message":"x"}}',
    "true code": b'{"jsonrpc":"2.0","id":2,"error":{"code":true,"message":"x"}}',
    "no message": b'{"jsonrpc":"2.0","id":2,"error":{"code":1}}',
    "no id": b'{"jsonrpc":"2.0","result":{}}',
    "float id": b'{"jsonrpc":"2.0","id":2.0,"result":{}}',
    "true id": b'{"jsonrpc":"2.0","id":true,"result":{}}',
    "object id": b'{"jsonrpc":"2.0","id":{},"result":{}}',
    "no method": b'{"jsonrpc":"2.0","id":2,"method":7}',
    "array params": b'{"jsonrpc":"2.0","method":"x","params":[]}',
}


# Of these the request that they answer cannot be told.
NO_ID = {"empty", "not JSON", "UTF-16", "deepest", "scalar", "null", "batch", "no id", "true id", "object id"}
NO_REPLIES = {"no method", "array params"}


def event_of(data: bytes) -> bytes:
    return b"".join(b"data: " + line + b"\n" for line in data.split(b"\n")) + b"\n"


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "json") for name in BAD_MESSAGES),
        *((name, "sse") for name in BAD_MESSAGES if name not in NO_ID | NO_REPLIES),
    ],
)
async def test_a_malformed_answer_is_a_protocol_error(
    autojump_clock: MockClock, name: str, form: str, era: str
) -> None:
    """The error names the backend, quotes nothing, and says that the call may have run. In a stream this holds for what
    bears the id of the call.
    """
    data = BAD_MESSAGES[name]
    error = await outcome_of(json_of(data) if form == "json" else sse_of(event_of(data)), era)
    assert isinstance(error, BackendProtocolError)
    assert error.may_have_executed
    assert str(error).startswith("backend 'b' sent a message that ")
    assert len(str(error)) < 200


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("name", sorted(NO_ID | NO_REPLIES))
async def test_what_is_no_message_is_skipped_in_a_stream(autojump_clock: MockClock, name: str, era: str) -> None:
    """The answer behind it counts; without one, the end of the stream is the error."""
    noise = event_of(BAD_MESSAGES[name])
    assert WHOLE["result"] == await outcome_of(sse_of(noise, event(WHOLE)), era)
    assert isinstance(await outcome_of(sse_of(noise), era), BackendUnavailable)


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("like", ["2", 2.0])
async def test_an_id_of_another_type_fails_the_call(autojump_clock: MockClock, like: Any, era: str) -> None:
    """Some JSON writers turn 2 into "2" or 2.0: the call need not wait for its deadline."""
    for answer in (json_of(json.dumps({**WHOLE, "id": like}).encode()), sse_of(event({**WHOLE, "id": like}))):
        assert isinstance(await outcome_of(answer, era), BackendProtocolError)


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("wrong", [1, 3, "3", -2, 2**70])
async def test_the_id_of_another_request_is_no_answer(autojump_clock: MockClock, wrong: Any, era: str) -> None:
    """In a JSON body another request's id is a protocol error; in a stream it is ignored, so that the call fails at the
    end of the stream.
    """
    error = await outcome_of(json_of(json.dumps({**WHOLE, "id": wrong}).encode()), era)
    assert isinstance(error, BackendProtocolError)
    assert "the id of another request" in error.detail
    error = await outcome_of(sse_of(event({**WHOLE, "id": wrong})), era)
    assert isinstance(error, BackendUnavailable)
    assert WHOLE["result"] == await outcome_of(sse_of(event({**WHOLE, "id": wrong}), event(WHOLE)), era)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_request_is_no_answer(autojump_clock: MockClock, era: str) -> None:
    """A request or notification in place of the one JSON object is a protocol error."""
    for message in ({"jsonrpc": "2.0", "id": 2, "method": "ping"}, {"jsonrpc": "2.0", "method": "x"}):
        error = await outcome_of(json_of(json.dumps(message).encode()), era)
        assert isinstance(error, BackendProtocolError)
        assert "with a request or notification" in error.detail


@pytest.mark.parametrize(
    "content_type", ["text/html", "text/plain; charset=utf-8", "", "application/json-seq", "x" * 5000, "application"]
)
async def test_other_media_types_are_named_and_cut(autojump_clock: MockClock, content_type: str) -> None:
    """The error names the media type, shortened: a login page, for example. A stream of events with plain text ends as
    a lost connection.
    """
    error = await outcome_of(
        lambda: httpx.Response(200, headers={"content-type": content_type}, text="hello"), "modern"
    )
    assert isinstance(error, BackendProtocolError)
    assert len(str(error)) < 400
    assert content_type.partition(";")[0][:50] in str(error)
    error = await outcome_of(sse_of(b"hello, I am plain text\n"), "modern")
    assert isinstance(error, BackendUnavailable)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-16", "APPLICATION/JSON", " application/json "])
async def test_what_the_head_says_of_charsets_does_not_count(autojump_clock: MockClock, content_type: str) -> None:
    """JSON is UTF-8 (RFC 8259 §8.1) whatever charset the head names; media types are compared without case."""
    data = json.dumps(WHOLE).encode()
    headers = {"content-type": content_type}
    assert WHOLE["result"] == await outcome_of(lambda: httpx.Response(200, headers=headers, content=data), "modern")


# Sizes


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_limits_are_exact(autojump_clock: MockClock, era: str) -> None:
    """A message at the limit is read; one byte or level more is refused."""
    assert isinstance(await outcome_of(json_of(sized(2000)), era), dict)
    error = await outcome_of(json_of(sized(2001)), era)
    assert isinstance(error, MessageTooLarge)
    assert (True, "backend 'b' sent an answer of over 2000 bytes (max_message_bytes)") == (
        error.may_have_executed,
        str(error),
    )
    assert isinstance(await outcome_of(json_of(nested(16)), era), dict)
    error = await outcome_of(json_of(nested(17)), era)
    assert "deeper than 16 (max_json_depth)" in str(error)


class Endless(httpx.AsyncByteStream):
    """The same bytes for ever; counts how many were read."""

    def __init__(self, piece: bytes, pause: float = 0) -> None:
        self.piece, self.pause, self.taken = piece, pause, 0

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        await trio.sleep(self.pause)
        self.taken += len(self.piece)
        return self.piece

    async def aclose(self) -> None:
        pass


PROGRESS = event(
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": CALL_ID, "progress": 1}}
)
ENDLESS: dict[str, bytes] = {
    "line": b"x" * 100,
    "data line": b"data: x\n",
    "comments": b": keep-alive\n",
    "comment events": b": keep-alive\n\n",
    "blank lines": b"\n",
    "ids": b"id: 1\n\n",
    "priming": b"id: 1\ndata:\n\n",
    "retry": b"retry: 1\n\n",
    "progress": PROGRESS,
    "unknown events": b"event: other\ndata: x\n\n",
    "stray answers": event({**WHOLE, "id": 99}),
    "notifications": event({"jsonrpc": "2.0", "method": "x"}),
}


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("name", ENDLESS)
async def test_an_endless_stream_is_cut_by_size(autojump_clock: MockClock, name: str, era: str) -> None:
    """Sent at full speed: at most four messages of the largest size are read."""
    body = Endless(ENDLESS[name])
    stream = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    error = await outcome_of(lambda: stream, era)
    assert isinstance(error, MessageTooLarge)
    assert "(max_message_bytes)" in str(error)
    assert error.may_have_executed
    assert body.taken <= 4 * 2000 + 70 * len(body.piece)  # with what is read, at most, while the response is closed


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("name", ENDLESS)
async def test_an_endless_stream_is_cut_by_the_deadline(autojump_clock: MockClock, name: str, era: str) -> None:
    """Sent slowly: progress and comments do not extend the deadline."""
    body = Endless(ENDLESS[name], pause=0.5)
    stream = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    error = await outcome_of(lambda: stream, era)
    assert isinstance(error, BackendTimeout)
    assert error.may_have_executed


async def test_an_endless_json_body_is_cut_by_size(autojump_clock: MockClock) -> None:
    """An endless JSON body exceeds the limit; an endless body of an error status is not read."""
    body = Endless(b" " * 100)
    error = await outcome_of(
        lambda: httpx.Response(200, headers={"content-type": "application/json"}, stream=body), "modern"
    )
    assert isinstance(error, MessageTooLarge)
    body = Endless(b" " * 10_000)
    error = await outcome_of(lambda: httpx.Response(503, stream=body), "modern")
    assert isinstance(error, BackendRejected)
    assert body.taken < 1_000_000


# Error texts


async def test_a_challenge_is_quoted_and_cut(autojump_clock: MockClock) -> None:
    """`WWW-Authenticate` is quoted, shortened, since it comes from the backend, too."""
    headers = {"www-authenticate": "Bearer " + "x" * 5000}
    error = await outcome_of(lambda: httpx.Response(401, headers=headers), "modern")
    assert isinstance(error, BackendError)
    assert "'Bearer xxx" in str(error)
    assert len(str(error)) < 400


# Truncation, over real HTTP


@pytest.mark.parametrize("fault", [Disconnect, Reset, Stall])
@pytest.mark.parametrize("answers", ["json", "sse"])
@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("first", [0, 1])  # every other byte: half of a sweep takes long enough for one test
async def test_an_answer_cut_at_any_byte_is_no_answer(
    autojump_clock: MockClock, first: int, era: str, answers: str, fault: Any
) -> None:
    """An answer that is cut at any byte is an error that says the call may have run, never a partial result, and the
    next call works.
    """
    backend = echo_backend(era, answers)
    async with open_client(backend) as client:
        whole = await call(client, arguments={"text": "ü"})
        size = backend.received("tools/call")[0].response_bytes
        assert size > 150
        failed = 0
        cuts = range(first, size, 2)
        for cut in cuts:
            backend.fail("tools/call", fault(cut), times=1)
            try:
                answer = await call(client, arguments={"text": "ü"}, timeout=DEADLINE)
            except (BackendUnavailable, BackendTimeout, BackendProtocolError) as error:
                failed += error.may_have_executed
            else:
                assert whole == answer
                assert answers == "sse"  # the answer had arrived, and only the end of its stream was missing
                failed += 1
            if cut % 10 == first:
                assert whole == await call(client, arguments={"text": "ü"}, timeout=DEADLINE)
    assert len(cuts) == failed
    assert len(backend.received("tools/call")) == backend.executed["echo"]


@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_one_byte_at_a_time_is_an_answer_like_any_other(autojump_clock: MockClock, answers: str) -> None:
    """Byte by byte, an answer within the deadline is a result; else a timeout, however steadily the bytes arrive."""
    backend = echo_backend("modern", answers)
    async with open_client(backend) as client:
        backend.fail("tools/call", Drip(1, 0.001), times=1)
        await call(client, timeout=DEADLINE)
        backend.fail("tools/call", Drip(1, 0.1), times=1)
        started = trio.current_time()
        with pytest.raises(BackendTimeout):
            await call(client, timeout=DEADLINE)
        assert DEADLINE == pytest.approx(trio.current_time() - started)
        await call(client)


@pytest.mark.parametrize("bit", [0, 1, 4, 5, 7])
@pytest.mark.parametrize("answers", ["json", "sse"])
async def test_a_flipped_bit_is_an_answer_or_a_typed_error(autojump_clock: MockClock, answers: str, bit: int) -> None:
    """A flipped bit anywhere in head or body gives an answer or a BackendError."""
    backend = echo_backend("modern", answers)
    async with open_client(backend) as client:
        await call(client)
        size = backend.received("tools/call")[0].response_bytes
        errors = 0
        for byte in range(bit % 2, size, 2):  # half of a sweep takes long enough for one test
            backend.fail("tools/call", Flip(byte, bit), times=1)
            try:
                await call(client, timeout=DEADLINE)
            except BackendError:
                errors += 1
        assert errors > 10
        await call(client)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n{}",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + json.dumps(WHOLE).encode()[:-1],
    ],
)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_what_is_not_http_is_a_typed_error(autojump_clock: MockClock, raw: bytes, era: str) -> None:
    """Bytes that are no HTTP are a BackendError; the call may have run, and the next one has a connection of
    its own.
    """
    backend = echo_backend(era)
    async with open_client(backend) as client:
        backend.fail("tools/call", Raw(raw), times=1)
        with pytest.raises(BackendError) as caught:
            await call(client, timeout=DEADLINE)
        assert caught.value.may_have_executed
        assert len(str(caught.value)) < 300
        await call(client)


# Everything at once


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
IDS = st.sampled_from([CALL_ID, CALL_ID, 1, "2", 2.0, True, None])


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[JSON]:
    return st.fixed_dictionaries({}, optional=fields)


MESSAGES = VALUES | objects(
    jsonrpc=st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2]),
    id=IDS,
    method=st.sampled_from(["ping", "notifications/progress", "notifications/cancelled", "x"]) | VALUES,
    params=objects(progressToken=IDS, progress=SCALARS, total=SCALARS, message=SCALARS) | VALUES,
    result=objects(resultType=st.sampled_from(["complete", "input_required", None]), content=VALUES) | VALUES,
    error=objects(code=st.integers() | SCALARS, message=SCALARS, data=VALUES) | VALUES,
)
NOISE = st.sampled_from(
    [b": x\n\n", b"id: 1\n", b"retry: 1\n", b"event: x\n", b"data:\n\n", b"\r", b"\xef\xbb\xbf", b"data: {\n"]
)


@given(
    messages=st.lists(MESSAGES.map(json.dumps).map(str.encode), max_size=4),
    noise=st.lists(NOISE, max_size=4),
    status=st.sampled_from([200, 200, 200, 201, 202, 400, 404, 500]),
    media_type=st.sampled_from(["application/json", "text/event-stream", "text/event-stream", "text/plain"]),
    era=st.sampled_from(["legacy", "modern"]),
)
@settings(max_examples=60)
def test_any_answer_is_a_result_or_a_typed_error(
    messages: list[bytes], noise: list[bytes], status: int, media_type: str, era: str
) -> None:
    """Almost valid messages in almost valid streams under almost valid heads."""
    if media_type == "text/event-stream":
        pieces = [b"data: " + message + b"\n\n" for message in messages]
        for position, piece in enumerate(noise):
            pieces.insert(position * 2, piece)
    else:
        pieces = messages[:1]
    headers = {"content-type": media_type}

    async def main() -> None:
        outcome = await outcome_of(lambda: httpx.Response(status, headers=headers, stream=Chunks(*pieces)), era)
        assert isinstance(outcome, dict | BackendError)
        if isinstance(outcome, BackendError):
            assert outcome.backend_id == "b"
            assert len(str(outcome)) < 600

    trio.run(main, clock=MockClock(autojump_threshold=0))


# While connecting, a hostile backend costs the same


@pytest.mark.parametrize("era", ["auto", "legacy", "modern"])
@pytest.mark.parametrize("name", [*BAD_MESSAGES])
async def test_no_answer_to_the_handshake_is_worse(autojump_clock: MockClock, name: str, era: str) -> None:
    """The same for answers to the handshake."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "application/json"}, content=BAD_MESSAGES[name])

    async with open_bench(httpx.MockTransport(answer), era=era, settings=TINY) as bench:
        with pytest.raises(BackendProtocolError, match="sent a message that"):
            await bench.connect()


async def test_deep_json_never_reaches_the_recursion_limit(autojump_clock: MockClock) -> None:
    """With the default limit no nesting reaches the recursion limit of this Python's parser."""
    for levels in (129, sys.getrecursionlimit(), 99_000):
        error = await outcome_of(json_of(nested(levels)), "modern", FactorySettings())
        assert isinstance(error, BackendProtocolError)
    assert isinstance(await outcome_of(json_of(nested(128)), "modern", FactorySettings()), dict)


async def test_integers_of_any_length_cost_no_quadratic_time(autojump_clock: MockClock) -> None:
    """Python refuses to read over 4300 digits, with a ValueError that is no JSONDecodeError."""
    data = b'{"jsonrpc":"2.0","id":2,"result":{"a":%s}}' % (b"9" * 5000)
    error = await outcome_of(json_of(data), "modern", FactorySettings())
    assert isinstance(error, MessageTooLarge)
    assert "an integer of too many digits" in error.detail


async def test_an_error_in_place_of_a_result_is_capped_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """No text of a backend gets into the log at full length."""
    backend = echo_backend("modern")
    async with open_client(backend) as client:
        backend.fail("tools/call", Error(-1, "y" * 100_000), times=1)
        with pytest.raises(BackendRejected):
            await call(client)
        backend.add_tool("x" * 100_000, inputSchema={"properties": {"a": {"x-mcp-header": "y" * 100_000}}})
        backend.fail("tools/call", Rewrite(lambda message: {**message, "id": "z" * 100_000}), times=1)
        with pytest.raises(BackendProtocolError):
            await call(client)
        await client.request("tools/list", {}, identity=None, timeout=DEADLINE, on_progress=None)
    assert 0 < max(len(record.getMessage()) for record in caplog.records) < 1000


@pytest.mark.parametrize("line", [b"\n", b":\n", b"\r", b"id:1\n"])
async def test_a_flood_of_tiny_lines_is_cut_before_its_bytes_reach_the_limit(line: bytes) -> None:
    """An empty line or a comment counts for more than its bytes: a flood of them is cut below `max_message_bytes`."""
    taken = 0

    class Flood(httpx.AsyncByteStream):
        def __aiter__(self) -> Flood:
            return self

        async def __anext__(self) -> bytes:
            nonlocal taken
            taken += 1
            await trio.lowlevel.checkpoint()
            return line * (KIB // len(line))

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Flood())

    backend = Backend(id="a", url="http://a.test/mcp", era="modern")
    settings = FactorySettings(max_message_bytes=256 * KIB)
    async with open_session_factory(transport=httpx.MockTransport(answer), settings=settings) as factory:
        async with factory.open_session([backend]) as session:
            (failure,) = session.failures
    assert FailureReason.LIMIT is failure.reason
    assert taken < 4 * 256 / 16


class ShortLength(WireFault):
    """A Content-Length without its first digit."""

    def steps(self, sent: int, data: bytes) -> Iterator[bytes]:
        yield re.sub(rb"(?<=content-length: )\d", b"", data)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_connection_whose_answer_was_too_long_is_not_used_again(era: str, autojump_clock: MockClock) -> None:
    """Bytes behind a Content-Length that is too small must not be read as the answer to the next call."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", ShortLength(), times=1)
        with pytest.raises(BackendProtocolError, match="not JSON"):
            await session.call_tool("a_echo")
        result = await session.call_tool("a_echo", {"after": "it"})
    assert '{"after": "it"}' == result.content[0]["text"]


class Crumbs(httpx.AsyncByteStream):
    """A body in chunks of two bytes, all available at once."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return b"%02d" % (self.left % 100)


def reply_in_crumbs(count: int) -> HttpReply:
    return HttpReply("a", 200, RequestBody(b""), [], HttpxSource("a", httpx.Response(200, stream=Crumbs(count))))


async def test_tiny_chunks_take_no_more_memory_than_their_bytes() -> None:
    """At most about twice the bytes of an answer are held, however small its chunks are."""
    tracemalloc.start()
    data = await reply_in_crumbs(20_000).read(limit=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 40_000 == len(data)
    assert peak < 4 * 40_000  # with Trio's own memory


async def test_a_body_of_many_chunks_lets_other_tasks_run() -> None:
    """Reading chunks that are all available yields to the scheduler at least every 32 chunks."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await reply_in_crumbs(1600).read(limit=1 << 20)
        nursery.cancel_scope.cancel()
    assert turns >= 1600 // 32
