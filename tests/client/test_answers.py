"""An answer reaches the call that it belongs to, and no other. The same over every channel."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from support.channels import (
    ANSWERS,
    EVERY_ANSWER,
    EVERY_CHANNEL,
    EVERY_LEGACY_CHANNEL,
    EVERY_MODERN_ANSWER,
    Channel,
    notification,
)
from support.clients import ask, call
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    FactorySettings,
    MessageTooLarge,
)
from trio_vmcp.testing import CallContext, Delay, Error, Rewrite, Status

EVERY_HTTP = pytest.mark.parametrize("channel", [c for c in ANSWERS if c.transport != "stdio"], ids=str)

# Normal use


@EVERY_ANSWER
async def test_a_backend_is_greeted_listed_and_called(channel: Channel, autojump_clock: MockClock) -> None:
    """The record names the era and the version that were agreed on, and what the backend declared."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        assert "echo" == (await ask(client, "tools/list"))["tools"][0]["name"]
        answer = await call(client, arguments={"a": 1})
        assert '{"a": 1}' == answer["content"][0]["text"]
        version = "2026-07-28" if channel.is_modern else "2025-11-25"
        assert (channel.era, version) == (client.record.era, client.record.protocol_version)
        assert {"tools": {}} == client.server_capabilities == client.record.server_capabilities
    first = ["server/discover"] if channel.is_modern else ["initialize", "notifications/initialized"]
    assert [*first, "tools/list", "tools/call"] == [e.method for e in backend.exchanges if e.method]


@EVERY_ANSWER
async def test_a_result_is_handed_on_as_received(channel: Channel, autojump_clock: MockClock) -> None:
    """Unknown fields and unknown kinds of content stay."""
    fields: JSON = {"resultType": "complete", "content": [{"type": "new", "x": 1}], "vendor": {"a": None, "é": 1.5}}
    backend = channel.backend()
    backend.fail("tools/call", Rewrite(lambda message: message | {"result": fields}))
    async with channel.open_client(backend) as client:
        assert fields == await call(client)


@EVERY_ANSWER
async def test_answers_in_reverse_order_reach_their_calls(channel: Channel, autojump_clock: MockClock) -> None:
    """Fifty calls in flight, answered last to first: each call gets the result of its own arguments."""
    got: dict[int, str] = {}

    async def late(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(50 - arguments["n"])
        return str(arguments["n"])

    async def one(client: Any, number: int) -> None:
        got[number] = (await call(client, "late", {"n": number}))["content"][0]["text"]

    backend = channel.backend()
    backend.add_tool("late", late)
    async with channel.open_client(backend) as client, trio.open_nursery() as calls:
        for number in range(50):
            calls.start_soon(one, client, number)
    assert {number: str(number) for number in range(50)} == got
    assert list(reversed(range(50))) == list(got)


@EVERY_ANSWER
async def test_every_request_has_an_id_of_its_own(channel: Channel, autojump_clock: MockClock) -> None:
    """Whole numbers that count up from 1, also over requests that failed."""
    backend = channel.backend()
    backend.fail("tools/call", Error(1, "x"), times=2)
    async with channel.open_client(backend) as client:
        for _ in range(2):
            with pytest.raises(BackendRejected):
                await call(client)
        await call(client)
    assert [1, 2, 3, 4] == [e.request_id for e in backend.exchanges if e.request_id is not None]


@EVERY_ANSWER
@pytest.mark.parametrize(
    "params",
    [
        {"name": "\ud800", "arguments": {}},
        {"name": "echo", "arguments": {"a": "\ud800"}},
        {"name": "echo", "arguments": {"x": {1}}},
        {"name": "echo", "arguments": {"x": float("nan")}},
    ],
    ids=["surrogate name", "surrogate argument", "set", "NaN"],
)
async def test_params_that_are_no_json_are_not_sent(channel: Channel, params: JSON, autojump_clock: MockClock) -> None:
    """The error is the caller's, and the next call works."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        with pytest.raises(ValueError, match="params of 'tools/call' cannot be sent"):
            await ask(client, "tools/call", params)
        assert [] == backend.received("tools/call")
        await call(client)


# Errors of the backend


@EVERY_ANSWER
async def test_an_error_carries_code_message_and_data(channel: Channel, autojump_clock: MockClock) -> None:
    """As the backend sent them, and the next call works."""
    backend = channel.backend()
    backend.fail("tools/call", Error(-32602, "bad arguments", {"field": "x"}), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendRejected, match=r"rejected 'tools/call': 'bad arguments' \(-32602\)") as caught:
            await call(client)
        error = caught.value
        assert (-32602, "bad arguments", {"field": "x"}) == (error.code, error.message, error.data)
        await call(client)


@EVERY_ANSWER
@pytest.mark.parametrize(
    ("code", "may_have_executed"),
    [(-32601, False), (-32600, False), (-32602, False), (-32603, True), (-32000, True), (-32002, True), (7, True)],
)
async def test_only_some_codes_prove_that_nothing_ran(
    channel: Channel, code: int, may_have_executed: bool, autojump_clock: MockClock
) -> None:
    """JSON-RPC 2.0, section 5.1: -32603 "internal error" may come after half of the work."""
    backend = channel.backend()
    backend.fail("tools/call", Error(code, "x"))
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendRejected) as caught:
            await call(client)
        assert (code, may_have_executed) == (caught.value.code, caught.value.may_have_executed)


@EVERY_ANSWER
async def test_an_error_without_an_id_ends_the_only_call(channel: Channel, autojump_clock: MockClock) -> None:
    """JSON-RPC 2.0, section 5: the id is null where the request could not be read."""
    bad: JSON = {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "parse error"}}
    backend = channel.backend()
    backend.fail("tools/call", Rewrite(lambda message: bad), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendRejected, match="parse error"):
            await call(client)
        await call(client)


# Answers that no call waits for


@EVERY_ANSWER
async def test_a_late_answer_is_dropped(channel: Channel, autojump_clock: MockClock) -> None:
    """Its call has timed out; the next one gets its own answer."""
    backend = channel.backend()
    backend.fail("tools/call", Delay(3), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendTimeout):
            await call(client, arguments={"n": 1}, timeout=1)
        answer = await call(client, arguments={"n": 2})
        assert '{"n": 2}' == answer["content"][0]["text"]
        await trio.sleep(5)
        await call(client)


@EVERY_CHANNEL
@pytest.mark.parametrize("with_id", [lambda own: own + 1, lambda own: own - 1, lambda own: 10**30, lambda own: -own])
async def test_an_answer_to_another_request_is_dropped(
    channel: Channel, with_id: Callable[[int], Any], autojump_clock: MockClock
) -> None:
    """It comes where this call's answer is expected; the right one behind it counts, and later ones do not."""

    async def strays(arguments: JSON, context: CallContext) -> JSON:
        own = context.exchange.request_id
        assert isinstance(own, int)
        await context.send({"jsonrpc": "2.0", "id": with_id(own), "result": {"n": "stray"}})
        await context.send({"jsonrpc": "2.0", "id": own, "result": {"n": "first"}})
        return {"n": "second"}

    backend = channel.backend()
    backend.add_tool("strays", strays)
    async with channel.open_client(backend) as client:
        for _ in range(2):
            assert {"n": "first"} == await call(client, "strays")
        assert {"content": [{"type": "text", "text": "{}"}]}.items() <= (await call(client)).items()


# Answers that are none


MALFORMED: dict[str, Callable[[JSON], object]] = {
    "result and error": lambda m: {**m, "result": {}, "error": {"code": 1, "message": "x"}},
    "neither": lambda m: {"jsonrpc": "2.0", "id": m["id"]},
    "scalar result": lambda m: {**m, "result": 7},
    "null result": lambda m: {**m, "result": None},
    "array result": lambda m: {**m, "result": []},
    "text error": lambda m: {"jsonrpc": "2.0", "id": m["id"], "error": "x"},
    "no code": lambda m: {"jsonrpc": "2.0", "id": m["id"], "error": {"message": "x"}},
    "text code": lambda m: {"jsonrpc": "2.0", "id": m["id"], "error": {"code": "1", "message": "x"}},
    "true code": lambda m: {"jsonrpc": "2.0", "id": m["id"], "error": {"code": True, "message": "x"}},
    "no message": lambda m: {"jsonrpc": "2.0", "id": m["id"], "error": {"code": 1}},
    "NaN": lambda m: {**m, "result": {"n": float("nan")}},
    "infinity": lambda m: {**m, "result": {"n": float("-inf")}},
    "too large a number": lambda m: json.dumps({**m, "result": {"n": 0}}).replace('"n": 0', '"n": 1e999').encode(),
    "too deep": lambda m: {**m, "result": {"deep": json.loads("[" * 200 + "]" * 200)}},
    "version 1": lambda m: {**m, "jsonrpc": "1.0"},
    "no version": lambda m: {"id": m["id"], "result": {}},
}


@EVERY_ANSWER
@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_answer_ends_its_own_call_at_once(
    channel: Channel, name: str, autojump_clock: MockClock
) -> None:
    """The call may have run. Another call goes on waiting for its own answer, and the next one works."""
    backend = channel.backend()
    backend.add_tool("slow", sleeps)
    backend.fail(lambda exchange: exchange.params.get("name") == "echo", Rewrite(MALFORMED[name]), times=1)
    async with channel.open_client(backend) as client:
        async with trio.open_nursery() as calls:
            calls.start_soon(call, client, "slow")
            await wait_all_tasks_blocked()
            started = trio.current_time()
            with pytest.raises(BackendProtocolError, match="backend 'b' sent a message that ") as caught:
                await call(client)
            assert trio.current_time() - started < 1
        assert caught.value.may_have_executed
        assert len(str(caught.value)) < 200
        await call(client)


async def sleeps(arguments: JSON, context: CallContext) -> str:
    await trio.sleep(5)
    return "rested"


@EVERY_ANSWER
async def test_a_null_is_an_absent_member(channel: Channel, autojump_clock: MockClock) -> None:
    """Typed languages write absent members as null: no message is refused for one."""
    nulls = {"result": None, "error": None, "method": None, "params": None}
    spare: JSON = {"resultType": None, "_meta": None, "isError": None, "structuredContent": None, "nextCursor": None}
    backend = channel.backend()

    def with_nulls(message: JSON) -> JSON:
        result = message.get("result")
        more = {"result": spare | result} if isinstance(result, dict) else {}
        return nulls | message | more

    backend.fail(lambda exchange: exchange.request_id is not None, Rewrite(with_nulls))
    async with channel.open_client(backend) as client:
        assert [{"type": "text", "text": "{}"}] == (await call(client))["content"]
        with pytest.raises(BackendRejected, match="-32601"):
            await ask(client, "nothing/known")


@EVERY_MODERN_ANSWER
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"resultType": "input_required"}, "for input"),
        ({"resultType": "input_required", "inputRequests": {}}, "for input, and named none"),
        ({"resultType": "later"}, "unknown resultType"),
        ({"resultType": ["complete"]}, "unknown resultType"),
    ],
)
async def test_a_result_that_is_not_complete_is_an_error(
    channel: Channel, fields: JSON, text: str, autojump_clock: MockClock
) -> None:
    """The call may have run; "complete", or no resultType at all, is the end of a call."""
    backend = channel.backend()
    backend.fail("tools/call", Rewrite(lambda message: {**message, "result": fields}), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendProtocolError, match=text) as caught:
            await call(client)
        assert caught.value.may_have_executed
        await call(client)


# Limits

SMALL = FactorySettings(max_message_bytes=4000, max_json_depth=16)


def padded(message: JSON, *, to: int) -> bytes:
    """The message as JSON of exactly so many bytes."""
    data = json.dumps(message | {"result": {"content": [], "filler": ""}})
    return data.replace('"filler": "', '"filler": "' + "y" * (to - len(data))).encode()


@EVERY_ANSWER
async def test_an_answer_over_the_limit_fails_its_call_alone(channel: Channel, autojump_clock: MockClock) -> None:
    """What is just within the limit is an answer. Another call goes on waiting, and the next one works."""
    backend = channel.backend()
    backend.add_tool("slow", sleeps)
    echoes: Callable[[Any], bool] = lambda exchange: exchange.params.get("name") == "echo"  # noqa: E731
    backend.fail(echoes, Rewrite(lambda message: padded(message, to=3900)), times=1)
    backend.fail(echoes, Rewrite(lambda message: padded(message, to=4001)), times=1)
    async with channel.open_client(backend, settings=SMALL) as client:
        assert [] == (await call(client))["content"]
        async with trio.open_nursery() as calls:
            calls.start_soon(call, client, "slow")
            with pytest.raises(MessageTooLarge, match=r"\(max_message_bytes\)") as caught:
                await call(client)
        assert caught.value.may_have_executed
        await call(client)


@EVERY_ANSWER
async def test_the_depth_of_an_answer_is_limited(channel: Channel, autojump_clock: MockClock) -> None:
    """The message and its result count as levels."""

    def nested(levels: int) -> Callable[[JSON], object]:
        return lambda message: {**message, "result": {"a": json.loads("[" * (levels - 2) + "]" * (levels - 2))}}

    backend = channel.backend()
    backend.fail("tools/call", Rewrite(nested(16)), times=1)
    backend.fail("tools/call", Rewrite(nested(17)), times=1)
    async with channel.open_client(backend, settings=SMALL) as client:
        await call(client)
        with pytest.raises(BackendProtocolError, match=r"deeper than 16 \(max_json_depth\)"):
            await call(client)
        await call(client)


# Texts of the backend


@EVERY_ANSWER
@pytest.mark.parametrize("text", ["x" * 100_000, "%s %d {0} {secret}", "\x1b[31m\r\nfake log line", "\ud800", "\0"])
async def test_a_backends_own_words_are_quoted_and_cut(channel: Channel, text: str, autojump_clock: MockClock) -> None:
    """They are whole in `message` only, which is said to be untrusted; never a format, never a control character."""
    backend = channel.backend()
    backend.fail("tools/call", Error(-1, text))
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendRejected) as caught:
            await call(client)
    assert text == caught.value.message
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@EVERY_ANSWER
@pytest.mark.parametrize("code", [2**63, -(2**200), 0])
async def test_any_integer_is_a_code(channel: Channel, code: int, autojump_clock: MockClock) -> None:
    """Only those that JSON-RPC and MCP define mean something."""
    backend = channel.backend()
    backend.fail("tools/call", Error(code, "", [1]))
    async with channel.open_client(backend) as client:
        with pytest.raises(BackendRejected) as caught:
            await call(client)
    assert (code, [1], True) == (caught.value.code, caught.value.data, caught.value.may_have_executed)


@EVERY_HTTP
@pytest.mark.parametrize("body", [b"", b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no"}}'])
@pytest.mark.parametrize("status", [401, 403, 413, 429])
async def test_a_status_that_proves_something_beats_the_body(
    status: int, body: bytes, channel: Channel, autojump_clock: MockClock
) -> None:
    """Such a request was not taken, whatever error is in the body; and `Retry-After` is told."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        backend.fail("tools/call", Status(status, body, {"Retry-After": "7"}))
        with pytest.raises(BackendUnauthorized if status in (401, 403) else BackendRejected) as caught:
            await call(client)
        assert (False, 7.0) == (caught.value.may_have_executed, caught.value.retry_after)


FEW_VALUES = FactorySettings(max_json_values=100)


def with_values(count: int, message: JSON) -> JSON:
    """The message with a result, in all of so many values: the message has three, the result two."""
    return {**message, "result": {"content": [], "structuredContent": [[]] * (count - 5)}}


@EVERY_ANSWER
async def test_the_values_of_an_answer_are_limited(channel: Channel, autojump_clock: MockClock) -> None:
    """An answer with more values than allowed fails its call alone, and is not parsed; brackets in strings are free."""
    backend = channel.backend()
    backend.add_tool("slow", sleeps)
    echoes: Callable[[Any], bool] = lambda exchange: exchange.params.get("name") == "echo"  # noqa: E731
    backend.fail(echoes, Rewrite(partial(with_values, 100)), times=1)
    backend.fail(echoes, Rewrite(partial(with_values, 101)), times=1)
    async with channel.open_client(backend, settings=FEW_VALUES) as client:
        assert 95 == len((await call(client))["structuredContent"])
        async with trio.open_nursery() as calls:
            calls.start_soon(call, client, "slow")
            with pytest.raises(MessageTooLarge, match=r"holds over 100 values \(max_json_values\)") as caught:
                await call(client)
        assert caught.value.may_have_executed
        await call(client, arguments={"text": "[],{}," * 100})


@EVERY_ANSWER
@pytest.mark.parametrize("digits", [5_000, 60_000], ids=["short", "long"])
async def test_the_digits_of_an_answer_are_limited(channel: Channel, digits: int, autojump_clock: MockClock) -> None:
    """Numbers of many digits take quadratic time to parse, so they are no answer."""
    backend = channel.backend()
    head, tail = b'{"jsonrpc":"2.0","id":', b',"result":{"content":[],"a":%s,"b":%s}}' % (b"7" * 200, b"7" * digits)
    backend.fail("tools/call", Rewrite(lambda message: b"%s%d%s" % (head, message["id"], tail)), times=1)
    async with channel.open_client(backend) as client:
        with pytest.raises(MessageTooLarge, match="digits"):
            await call(client)
        await call(client)


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18"])
@pytest.mark.parametrize("channel", [c for c in ANSWERS if not c.is_modern], ids=str)
async def test_a_batch_is_unpacked_where_the_version_has_them(
    channel: Channel, version: str, autojump_clock: MockClock
) -> None:
    """MCP 2025-03-26, basic: clients "MUST support receiving JSON-RPC batches". 2025-06-18 removed them."""
    backend = channel.backend(protocol_version=version)
    log = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
    backend.fail(
        "tools/call", Rewrite(lambda message: f" [{json.dumps(log)} ,{json.dumps(message)}, 7] ".encode()), times=1
    )
    async with channel.open_bench(backend) as bench:
        client = await bench.connect()
        if version == "2025-03-26":
            assert [{"type": "text", "text": "{}"}] == (await call(client))["content"]
            assert ("notifications/message", log["params"]) in bench.events
        else:
            with pytest.raises(BackendError):
                await call(client, timeout=5)
            assert ("notifications/message", log["params"]) not in bench.events
        await call(client)


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18"])
async def test_a_restored_session_has_batches_if_its_version_has_them(version: str, autojump_clock: MockClock) -> None:
    """The version is that of the stored record: there is no other handshake."""
    backend = Channel("streamable-http", "legacy").backend(protocol_version=version)
    async with Channel("streamable-http", "legacy").open_bench(backend) as bench:
        first = await bench.connect()
        await first.aclose(terminate=False)
        client = await bench.connect(resume=first.record)
        backend.fail("tools/call", Rewrite(lambda message: f"[{json.dumps(message)}]".encode()), times=1)
        if version == "2025-03-26":
            assert [{"type": "text", "text": "{}"}] == (await call(client))["content"]
        else:
            with pytest.raises(BackendError):
                await call(client, timeout=5)
    assert 1 == len(backend.received("initialize"))


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18"])
@EVERY_LEGACY_CHANNEL
async def test_a_batch_on_a_held_stream_is_unpacked_where_the_version_has_them(
    channel: Channel, version: str, autojump_clock: MockClock
) -> None:
    """Its notifications come in order, what is no message in it is skipped, and the stream goes on."""
    backend = channel.backend(protocol_version=version, listens=True)
    first, second = (notification(f"notifications/{kind}/list_changed") for kind in ("tools", "prompts"))
    async with channel.open_bench(backend) as bench:
        await bench.connect()
        await trio.sleep(1)
        backend.send(f" [{json.dumps(first)} , 7, {json.dumps(second)}] ".encode())
        backend.send(b"[]")
        backend.notify("notifications/resources/list_changed")
        await trio.sleep(1)
        unpacked = ["notifications/tools/list_changed", "notifications/prompts/list_changed"]
        heard = [method for method, _ in bench.events]
        assert [*(unpacked if version == "2025-03-26" else ()), "notifications/resources/list_changed"] == heard
