"""Calls: routed to the one backend that has the name, executed at most once, ended in time and by one outcome."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support.harness import echo_backend, open_world, slow_backend
from support.plain_connector import PlainClient, PlainConnector, plain_backends
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendClient,
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    FactorySettings,
    MessageTooLarge,
    OnProgress,
    PromptNotFound,
    ResourceNotFound,
    Session,
    SessionNotFound,
    ToolNotFound,
    note_written,
    open_session_factory,
)
from trio_vmcp.testing import (
    CallContext,
    Disconnect,
    Drip,
    Error,
    Fault,
    Hang,
    Raw,
    Reset,
    Rewrite,
    ScriptedBackend,
    Status,
)

BOTH_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
BOTH_ANSWERS = pytest.mark.parametrize("answers", ["json", "sse"])


def full_backend(era: str = "legacy", answers: str = "json", mark: str = "") -> ScriptedBackend:
    backend = echo_backend(era, answers, completions={"city": ["Oslo", "Osaka", "Rome"]})
    backend.add_resource(f"memo://{mark}/one", f"text of {mark}")
    backend.add_resource_template(f"memo://{mark}/day/{{day}}", f"a day of {mark}")
    backend.add_prompt("greet", f"{mark} greets {{who}}")
    return backend


# Routing


@BOTH_ERAS
@BOTH_ANSWERS
async def test_calls_reach_the_backend_that_has_the_name(era: str, answers: str, autojump_clock: MockClock) -> None:
    """Tools, listed resources, templates, prompts and completions, each under its own name there."""
    backends = {mark: full_backend(era, answers, mark) for mark in "ab"}
    async with open_world(backends) as world, world.open_session() as session:
        tool = await session.call_tool("b_echo", {"x": [1, None, "é"]})
        assert ("b", '{"x": [1, null, "\\u00e9"]}') == (tool.backend_id, tool.content[0]["text"])
        assert "text of b" == (await session.read_resource("memo://b/one")).contents[0]["text"]
        assert "a day of b" == (await session.read_resource("memo://b/day/monday")).contents[0]["text"]
        prompt = await session.get_prompt("b_greet", {"who": "Ada"})
        assert ("b", "b greets Ada") == (prompt.backend_id, prompt.messages[0]["content"]["text"])
        argument = {"name": "city", "value": "Os"}
        for ref in (
            {"type": "ref/prompt", "name": "b_greet"},
            {"type": "ref/resource", "uri": "memo://b/day/{day}"},
            {"type": "ref/resource", "uri": "memo://b/one"},
        ):
            completion = await session.complete(ref, argument, context={"arguments": {"country": "NO"}})
            assert ("b", ("Oslo", "Osaka"), 2, False) == (
                completion.backend_id,
                completion.values,
                completion.total,
                completion.has_more,
            )
        sent = [exchange.params for exchange in backends["b"].received("completion/complete")]
        assert ["greet", None, None] == [params["ref"].get("name") for params in sent]
        assert {"arguments": {"country": "NO"}} == sent[0]["context"]
        calls = ("tools/call", "resources/read", "prompts/get", "completion/complete")
        assert [0] * 4 == [len(backends["a"].received(method)) for method in calls]


@BOTH_ERAS
async def test_results_are_as_received(era: str, autojump_clock: MockClock) -> None:
    """Results keep every field and gain none; a tool's own error is a result."""
    sent: JSON = {
        "content": [{"type": "future", "x": 1}],
        "structuredContent": [1, {"é": None}],
        "isError": True,
        "_meta": {"trace": "t"},
        "unknown": 1.5,
        "": 1,
    }

    async def answer(arguments: JSON, context: CallContext) -> JSON:
        return sent

    backend = ScriptedBackend(era=era)  # type: ignore[arg-type]
    backend.add_tool("answer", answer)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        result = await session.call_tool("a_answer")
    assert sent == {key: value for key, value in result.raw.items() if key != "resultType"}
    assert (({"type": "future", "x": 1},), [1, {"é": None}], True, {"trace": "t"}) == (
        result.content,
        result.structured_content,
        result.is_error,
        result.meta,
    )


async def test_an_unknown_name_contacts_no_backend(autojump_clock: MockClock) -> None:
    """The error names it and the closest advertised names."""
    backend = full_backend(mark="a")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        requests = len(backend.exchanges)
        with pytest.raises(ToolNotFound, match=r"^no tool 'a_ecko' in this session; closest: 'a_echo'$"):
            await session.call_tool("a_ecko")
        with pytest.raises(ResourceNotFound, match=r"no resource 'memo://a/two'.*closest: 'memo://a/one'"):
            await session.read_resource("memo://a/two")
        with pytest.raises(ResourceNotFound):
            await session.subscribe_resource("memo://a/two")
        with pytest.raises(PromptNotFound, match=r"no prompt 'greet'.*closest: 'a_greet'"):
            await session.get_prompt("greet")
        with pytest.raises(PromptNotFound):
            await session.complete({"type": "ref/prompt", "name": "greet"}, {})
        with pytest.raises(ResourceNotFound):
            await session.complete({"type": "ref/resource", "uri": "memo://z"}, {})
        assert requests == len(backend.exchanges)


@pytest.mark.parametrize("ref", [{}, {"type": "ref/prompt"}, {"type": "ref/tool", "name": "x"}, {"type": 7}])
async def test_a_ref_of_neither_form_is_refused(ref: JSON, autojump_clock: MockClock) -> None:
    """ValueError says what forms there are."""
    async with open_session_factory() as factory, factory.open_session([]) as session:
        with pytest.raises(ValueError, match="ref is neither"):
            await session.complete(ref, {})


async def test_completions_need_the_capability(autojump_clock: MockClock) -> None:
    """A backend that did not declare completions is not asked."""
    backend = ScriptedBackend()
    backend.add_prompt("greet")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        with pytest.raises(BackendRejected, match="backend 'a' does not offer completions") as caught:
            await session.complete({"type": "ref/prompt", "name": "a_greet"}, {"name": "x", "value": ""})
        assert -32601 == caught.value.code  # JSON-RPC 2.0 §5.1, "Method not found"
        assert [] == backend.received("completion/complete")


async def test_a_completion_goes_to_the_backend_that_lists_the_template(autojump_clock: MockClock) -> None:
    """The very template that is named, though another one matches its text as well."""
    backends = {name: echo_backend(completions={"b": ["Rome"]}) for name in "ab"}
    backends["a"].add_resource_template("x://{a}")
    backends["b"].add_resource_template("x://{b}")
    async with open_world(backends) as world, world.open_session() as session:
        await session.complete({"type": "ref/resource", "uri": "x://{b}"}, {"name": "b", "value": ""})
        assert [0, 1] == [len(backend.received("completion/complete")) for backend in backends.values()]


async def test_a_refused_subscription_leaves_an_earlier_one(autojump_clock: MockClock) -> None:
    """A new backend session subscribes again to what was subscribed to before; to unsubscribe twice is no error."""
    backend = echo_backend(listens=True)
    backend.add_resource("file:///x")
    async with open_world({"a": backend}) as world, world.open_session() as session:
        await session.subscribe_resource("file:///x")
        backend.fail("resources/subscribe", Error(-32000, "no"), times=1)
        with pytest.raises(BackendRejected):
            await session.subscribe_resource("file:///x")
        backend.restart()
        await session.call_tool("a_echo")
        await wait_all_tasks_blocked()
        assert 3 == len(backend.received("resources/subscribe"))
        for _ in range(2):
            await session.unsubscribe_resource("file:///x")
        backend.restart()
        await session.call_tool("a_echo")
        await wait_all_tasks_blocked()
        assert 3 == len(backend.received("resources/subscribe"))


async def test_calls_run_side_by_side(autojump_clock: MockClock) -> None:
    """Twenty at once to two backends take as long as one; `in_flight` counts them."""
    async with open_world({"a": slow_backend(3), "b": slow_backend(3)}) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(session.call_tool, f"{'ab'[number % 2]}_slow")
            await wait_all_tasks_blocked()
            assert 20 == session.in_flight
        assert 0 == session.in_flight
        assert 3.0 == trio.current_time()


async def test_two_sessions_with_the_same_ids_get_their_own_answers(autojump_clock: MockClock) -> None:
    """JSON-RPC ids repeat from session to session; an answer goes to the request that it came for."""

    async def slow_echo(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(arguments["for"])
        return str(arguments["for"])

    backend = ScriptedBackend()
    backend.add_tool("slow_echo", slow_echo)
    async with open_world({"a": backend}) as world, world.open_session() as one, world.open_session() as other:
        answers: dict[str, str] = {}

        async def call(name: str, session: Session, seconds: int) -> None:
            result = await session.call_tool("a_slow_echo", {"for": seconds})
            answers[name] = result.content[0]["text"]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "one", one, 2)
            nursery.start_soon(call, "other", other, 1)
    assert {"one": "2", "other": "1"} == answers


# Meta and progress


@BOTH_ERAS
async def test_meta_is_forwarded_without_reserved_keys(era: str, autojump_clock: MockClock) -> None:
    """The caller's own keys arrive; MCP's keys and the caller's progress token do not; the caller's object is not
    changed.
    """
    backend = full_backend(era, mark="a")
    meta = {"trace": "t", "io.modelcontextprotocol/protocolVersion": "evil", "progressToken": "theirs"}
    async with open_world({"a": backend}) as world, world.open_session() as session:
        before = dict(meta)
        await session.call_tool("a_echo", meta=meta)
        await session.read_resource("memo://a/one", meta=meta)
        await session.get_prompt("a_greet", meta=meta)
        await session.complete({"type": "ref/prompt", "name": "a_greet"}, {"name": "city", "value": ""}, meta=meta)
        assert before == meta
        for exchange in backend.exchanges[-4:]:
            own = {key: value for key, value in exchange.meta.items() if not key.startswith("io.model")}
            assert {"trace": "t"} == own
            assert "evil" not in exchange.meta.values()


@BOTH_ERAS
async def test_progress_reaches_the_callers_task(era: str, autojump_clock: MockClock) -> None:
    """In order, with total and message where there are any, in the task that called."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await context.progress(1.5, 3, "half")
        return "done"

    backend = ScriptedBackend(era=era, answers="sse")  # type: ignore[arg-type]
    backend.add_tool("work", work)
    seen: list[tuple[object, ...]] = []
    task = trio.lowlevel.current_task()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message, trio.lowlevel.current_task() is task))

    async with open_world({"a": backend}) as world, world.open_session() as session:
        result = await session.call_tool("a_work", on_progress=on_progress)
        assert "done" == result.content[0]["text"]
    assert [(1, None, None, True), (1.5, 3, "half", True)] == seen


@BOTH_ERAS
@pytest.mark.parametrize("error", [KeyError("mine"), trio.TooSlowError(), BackendUnavailable("other", "is away")])
async def test_an_error_of_the_callback_cancels_the_call(era: str, error: Exception, autojump_clock: MockClock) -> None:
    """The error comes out as itself; the backend sees the cancellation, and the next call works."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        await trio.sleep(60)
        return "done"

    backend = echo_backend(era, "sse")
    backend.add_tool("work", work)

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        raise error

    async with open_world({"a": backend}) as world, world.open_session() as session:
        with pytest.raises(type(error)) as caught:
            await session.call_tool("a_work", on_progress=on_progress)
        assert error is caught.value
        await session.call_tool("a_echo")
        assert 1 == backend.cancelled["work"]
        assert trio.current_time() < 1


async def test_a_callback_may_call_another_tool(autojump_clock: MockClock) -> None:
    """Also of the same backend with one connection allowed: a nested call shares the outer call's connection slot."""

    async def work(arguments: JSON, context: CallContext) -> str:
        await context.progress(1)
        return "done"

    backend = echo_backend("legacy", "sse")
    backend.add_tool("work", work)

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await session.call_tool("a_echo")

    async with open_world({"a": backend}, settings=FactorySettings(max_connections_per_backend=1)) as world:
        async with world.open_session() as session:
            await session.call_tool("a_work", on_progress=on_progress)
            assert trio.current_time() < 1


# Deadlines and cancellation


@pytest.mark.parametrize(
    ("configured", "given", "expected"),
    [(None, None, 7.0), (5.0, None, 5.0), (5.0, 3.0, 3.0), (None, 9.0, 9.0), (0.5, math.inf, 60.0), (None, 0, 0.0)],
)
@BOTH_ERAS
async def test_the_nearest_timeout_wins(
    era: str, configured: float | None, given: float | None, expected: float, autojump_clock: MockClock
) -> None:
    """The call's, else the backend's, else the factory's; to the instant, naming the limit and the knob."""

    def configure(backend: Backend) -> Backend:
        return attrs.evolve(backend, request_timeout=configured)

    backend = slow_backend(60, era)
    async with open_world({"a": backend}, settings=FactorySettings(request_timeout=7), configure=configure) as world:
        async with world.open_session() as session:
            call = partial(session.call_tool, "a_slow", timeout=given)
            if expected == 60.0:
                await call()
            else:
                with pytest.raises(BackendTimeout, match=r"did not answer 'tools/call' within .* s \(") as late:
                    await call()
                assert (expected > 0) is late.value.may_have_executed
            assert expected == trio.current_time()
        assert int(expected > 0) == backend.executed["slow"]
        assert int(0 < expected < 60) == backend.cancelled["slow"]


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_timeout_is_not_negative(timeout: float, autojump_clock: MockClock) -> None:
    """ValueError names the value."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        with pytest.raises(ValueError, match=f"timeout={timeout!r} is not 0 s or more"):
            await session.call_tool("a_echo", timeout=timeout)
        assert 0 == world["a"].executed["echo"]


async def test_waiting_for_a_connection_counts(autojump_clock: MockClock) -> None:
    """The whole exchange has one deadline; a call that never had a connection was not executed."""
    limits = FactorySettings(max_connections_per_backend=1, request_timeout=5)
    async with open_world({"a": slow_backend(60)}, settings=limits) as world, world.open_session() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_timeout, session, True)
            await wait_all_tasks_blocked()
            nursery.start_soon(expect_timeout, session, False)
        assert 5.0 == trio.current_time()
        assert 1 == world["a"].executed["slow"]


async def expect_timeout(session: Session, may_have_executed: bool) -> None:
    with pytest.raises(BackendTimeout) as late:
        await session.call_tool("a_slow")
    assert may_have_executed is late.value.may_have_executed


@BOTH_ERAS
@BOTH_ANSWERS
async def test_a_callers_cancel_reaches_the_backend(era: str, answers: str, autojump_clock: MockClock) -> None:
    """It surfaces as the caller's own cancel, at once; the backend stops working; the next call works."""
    backend = slow_backend(60, era, answers)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        with trio.move_on_after(2) as patience:
            await session.call_tool("a_slow")
        assert patience.cancelled_caught
        assert 2.0 == trio.current_time()
        await wait_all_tasks_blocked()
        assert 1 == backend.cancelled["slow"]
        await session.call_tool("a_echo")
        assert 2.0 == trio.current_time()
        assert 0 == session.in_flight


async def test_a_callers_own_deadline_stays_its_own(autojump_clock: MockClock) -> None:
    """`fail_after` around a call raises TooSlowError, not an error of ours."""
    async with open_world({"a": slow_backend(60)}) as world, world.open_session() as session:
        with pytest.raises(trio.TooSlowError):
            await call_within(session, 2)


async def call_within(session: Session, seconds: float) -> None:
    with trio.fail_after(seconds):
        await session.call_tool("a_slow")


# What goes wrong


def deep(depth: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * depth + b"]" * depth + b"}"


JSON_HEADERS = {"content-type": "application/json"}


@BOTH_ERAS
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(200, b"x" * 3000, JSON_HEADERS), MessageTooLarge),
        (Status(200, deep(200), JSON_HEADERS), BackendProtocolError),
        (Status(200, b"{}", {**JSON_HEADERS, "content-encoding": "gzip"}), BackendProtocolError),
        (Status(200, b'{"jsonrpc":"2.0","id":1,"result":{"x":NaN}}', JSON_HEADERS), BackendProtocolError),
        (Status(200, b'{"jsonrpc":"2.0","id":1,"result":{"x":1e999}}', JSON_HEADERS), BackendProtocolError),
        (Status(200, b'{"jsonrpc":"2.0","id":true,"result":{}}', JSON_HEADERS), BackendProtocolError),
        (Status(202), BackendProtocolError),
        (Rewrite(lambda answer: {**answer, "id": "other"}), BackendProtocolError),
        (Rewrite(lambda answer: {**answer, "result": {"content": "text"}}), BackendProtocolError),
        (Rewrite(lambda answer: [answer]), BackendProtocolError),
        (Disconnect(40), BackendUnavailable),
        (Reset(0), BackendUnavailable),
        (Disconnect(100), BackendError),
        (Raw(), BackendError),
        (Status(401), BackendUnauthorized),
        (Status(503), BackendRejected),
        (Error(-32603, "broken"), BackendRejected),
        (Hang("body"), BackendTimeout),
    ],
)
async def test_a_bad_answer_is_a_typed_error_and_the_next_call_works(
    era: str, fault: Fault, error: type[BackendError], autojump_clock: MockClock
) -> None:
    """It names the backend, comes in time, is not tried again, and leaves session and backend usable."""
    backend = echo_backend(era)
    limits = FactorySettings(max_message_bytes=2000, request_timeout=5)
    async with open_world({"a": backend}, settings=limits) as world, world.open_session() as session:
        backend.fail("tools/call", fault, times=1)
        with pytest.raises(error, match=r"^backend 'a' ") as failed:
            await session.call_tool("a_echo")
        assert "a" == failed.value.backend_id
        assert trio.current_time() <= 5
        assert 1 == len(backend.received("tools/call"))
        await session.call_tool("a_echo")
        assert 2 == len(backend.received("tools/call"))


@BOTH_ERAS
@pytest.mark.parametrize("fault", [Hang("body"), Disconnect(40), Reset(0)])
async def test_a_call_that_may_have_run_is_not_sent_again(era: str, fault: Fault, autojump_clock: MockClock) -> None:
    """The tool ran, its answer was lost: executed once, and the error says that it may have been."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", fault)
        with pytest.raises(BackendError) as failed:
            await session.call_tool("a_echo", timeout=5)
        assert failed.value.may_have_executed
        assert 1 == backend.executed["echo"]


async def test_a_rejection_carries_what_the_backend_said(autojump_clock: MockClock) -> None:
    """Code, message and data as received; codes that say "not run" clear `may_have_executed`."""
    backend = echo_backend()
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", Error(-32602, "bad x", {"x": 1}), times=1)
        backend.fail("tools/call", Error(-32000, "fell over"), times=1)
        rejections: list[BackendRejected] = []
        for _ in range(2):
            with pytest.raises(BackendRejected) as rejected:
                await session.call_tool("a_echo")
            rejections.append(rejected.value)
    assert [(-32602, "bad x", {"x": 1}, False), (-32000, "fell over", None, True)] == [
        (r.code, r.message, r.data, r.may_have_executed) for r in rejections
    ]


async def test_a_completion_that_is_none_is_a_protocol_error(autojump_clock: MockClock) -> None:
    """Where MCP has an object there must be one."""
    async with open_world({"a": full_backend(mark="a")}) as world, world.open_session() as session:
        world["a"].fail("completion/complete", Rewrite(lambda answer: {**answer, "result": {"completion": []}}))
        with pytest.raises(BackendProtocolError, match="without an object 'completion'"):
            await session.complete({"type": "ref/prompt", "name": "a_greet"}, {"name": "city", "value": ""})


async def test_a_result_without_its_array_may_have_run(autojump_clock: MockClock) -> None:
    """The tool has run: "send it again" would run it twice."""
    async with open_world({"a": echo_backend()}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Rewrite(lambda answer: {**answer, "result": {"content": {}}}))
        with pytest.raises(BackendProtocolError, match="without an array 'content'") as caught:
            await session.call_tool("a_echo")
        assert caught.value.may_have_executed


async def test_a_backend_that_went_away_keeps_its_names(autojump_clock: MockClock) -> None:
    """Its tools stay listed; calls end in BackendUnavailable until the backend is back."""
    backends: dict[str, Any] = {"a": echo_backend("modern"), "b": echo_backend("modern")}
    async with open_world(backends) as world, world.open_session() as session:
        backends["a"].crash()
        with pytest.raises(BackendUnavailable, match="backend 'a'"):
            await session.call_tool("a_echo")
        assert ["a_echo", "b_echo"] == [tool.name for tool in session.tools]
        await session.call_tool("b_echo")
        backends["a"].restart()
        await session.call_tool("a_echo")


async def test_a_session_over_a_connector_of_ones_own(autojump_clock: MockClock) -> None:
    """Calls go through `BackendClient.request` with what the caller gave."""
    connector = PlainConnector()
    async with open_session_factory(connector=connector) as factory, factory.open_session(plain_backends(1)) as session:
        result = await session.call_tool("b0_echo", {"x": 1}, meta={"k": "v"})
        assert {"name": "echo", "arguments": {"x": 1}, "_meta": {"k": "v"}} == result.structured_content


OWN_CRASHES = [
    RuntimeError("secret-7"),
    ValueError("secret-7"),
    ExceptionGroup("g", [OSError("secret-7")]),
    SessionNotFound("secret-7"),
]


@pytest.mark.parametrize("is_written", [True, False])
@pytest.mark.parametrize("error", OWN_CRASHES, ids=lambda error: type(error).__name__)
async def test_a_client_of_ones_own_that_crashes(error: Exception, is_written: bool, autojump_clock: MockClock) -> None:
    """Its backend has failed. Where nothing was sent, a ValueError is about what the caller gave."""

    async def crash() -> None:
        if is_written or not fails:  # else the client counts as one that does not tell
            note_written()
        if fails:
            raise error

    connector, fails = PlainConnector(on_request={"b0": crash}), False
    async with open_session_factory(connector=connector) as factory, factory.open_session(plain_backends(1)) as session:
        await session.call_tool("b0_echo", timeout=5)
        fails = True
        if isinstance(error, ValueError) and not is_written:
            with pytest.raises(ValueError, match="secret-7"):
                await session.call_tool("b0_echo")
        else:
            with pytest.raises(BackendError, match=r"b0' could not be asked 'tools/call': its client raised") as caught:
                await session.call_tool("b0_echo")
            assert error is caught.value.__cause__
            assert is_written is caught.value.may_have_executed
            assert "secret-7" not in str(caught.value)
            assert 1 == session.backends["b0"].errors
        fails = False
        await session.call_tool("b0_echo")


async def test_a_callback_that_fails_under_a_client_of_ones_own(autojump_clock: MockClock) -> None:
    """Its error comes out as itself, as it does from under a client of ours."""

    class Progressing(PlainClient):
        async def request(self, method: str, params: JSON, *, on_progress: OnProgress | None, **more: Any) -> JSON:
            if on_progress is not None:
                await on_progress(1, None, None)
            return await super().request(method, params, on_progress=on_progress, **more)

    async def connect(backend: Backend, **wanted: Any) -> BackendClient:
        plain = await PlainConnector()(backend, **wanted)
        return Progressing(plain.record, plain.server_capabilities)

    async def fail(progress: float, total: float | None, message: str | None) -> None:
        raise KeyError(progress)

    async with open_session_factory(connector=connect) as factory, factory.open_session(plain_backends(1)) as session:
        with pytest.raises(KeyError, match="1"):
            await session.call_tool("b0_echo", on_progress=fail)


async def test_a_call_returns_at_its_deadline_though_its_stream_goes_on(autojump_clock: MockClock) -> None:
    """An answer that came in time counts; the rest of its event stream is read until the call's deadline, and no
    longer.
    """
    async with open_world({"a": echo_backend(answers="sse")}) as world, world.open_session() as session:
        world["a"].fail("tools/call", Drip(bytes_per_step=64, step_seconds=0.4))
        for _ in range(2):
            began_at = trio.current_time()
            await session.call_tool("a_echo", timeout=1.65)  # the answer is whole after 1.6 s, the stream after 2.0 s
            assert 1.65 == pytest.approx(trio.current_time() - began_at)
