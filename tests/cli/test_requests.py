"""What the requests of the command print, on stdout and as JSON, and what they say when they fail."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from rich.console import Console
from trio.testing import MockClock

from trio_vmcp import JSON, Backend, BackendState, BackendStatus, FactorySettings, Latency
from trio_vmcp._cli import conditions
from trio_vmcp._cli.arguments import parse_plan
from trio_vmcp._cli.plain_view import PlainView
from trio_vmcp._cli.requests import CommandOutcome, run_plan
from trio_vmcp._cli.rich_view import RichView
from trio_vmcp._cli.sources import Found, InputError
from trio_vmcp._cli.texts import condition_text
from trio_vmcp._cli.view import BackendCondition, Skipped, View
from trio_vmcp.testing import CONNECT, CallContext, MemoryNetwork, Refuse, Rewrite, ScriptedBackend, open_memory_network

NOW = {
    "type": "object",
    "properties": {
        "format": {"enum": ["short", "long"], "default": "short"},
        "zone": {"type": "string", "description": "An IANA name such as Europe/Oslo.\nUTC is one, too."},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "How often"},
    },
    "required": ["zone"],
}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@attrs.define(eq=False)
class Screen:
    """What a view writes."""

    out: io.StringIO = attrs.field(factory=io.StringIO)
    log: io.StringIO = attrs.field(factory=io.StringIO)

    @property
    def plain(self) -> PlainView:
        return PlainView(self.out, self.log)

    def rich(self, width: int) -> RichView:
        options = {"force_terminal": True, "no_color": True, "highlight": False, "legacy_windows": False}
        return RichView(*(Console(file=file, width=width, **options) for file in (self.out, self.log)))  # type: ignore[arg-type]  # one dict for options of several types

    @property
    def lines(self) -> list[str]:
        return [ESCAPES.sub("", line).replace("\r", "").rstrip() for line in self.out.getvalue().splitlines()]


async def as_json(arguments: JSON, context: CallContext) -> str:
    return json.dumps(arguments)


def time_server() -> ScriptedBackend:
    server = ScriptedBackend(name="time", completions={"zone": [f"UTC{number}" for number in range(3)]})
    server.add_tool("now", as_json, description="What time it is.\nAnd where.", inputSchema=NOW)
    server.add_tool("nothing", as_json)
    server.add_resource("time://zones", "UTC\nEurope/Oslo\n", description="All zones")
    server.add_resource_template("time://zone/{zone}", "one zone")
    server.add_prompt(
        "ask", "What time is it in {zone}?", description="Asks", arguments=[{"name": "zone", "required": True}]
    )
    return server


def answer_with(**result: object) -> Rewrite:
    """An answer with these members in its result."""

    def rewrite(message: JSON) -> JSON:
        return message | {"result": message["result"] | result}

    return Rewrite(rewrite)


@asynccontextmanager
async def network_of(server: ScriptedBackend) -> AsyncIterator[tuple[MemoryNetwork, Backend]]:
    async with open_memory_network() as network:
        yield network, Backend(id=server.name, url=network.attach(f"{server.name}.test", server))


async def run(
    words: list[str], view: View, server: ScriptedBackend | None = None, found: Found | None = None
) -> CommandOutcome:
    async with network_of(server or time_server()) as (network, backend):
        plan = parse_plan([*words, "--config", "file"])
        return await run_plan(plan, found or Found((backend,)), view, transport=network.transport())


@pytest.mark.parametrize(
    ("words", "out", "noun"),
    [
        (["call", "time_now", "zone=UTC", "count=2"], '{"zone": "UTC", "count": 2}\n', "tool"),
        (["call", "time_now", '{"zone": 5}'], '{"zone": 5}\n', "tool"),
        (["call", "time_nothing"], "{}\n", "tool"),
        (["read", "time://zones"], "UTC\nEurope/Oslo\n", "uri"),
        (["read", "time://zone/Oslo"], "one zone\n", "uri"),
        (["prompt", "time_ask", "zone=Oslo"], "user: What time is it in Oslo?\n", "prompt"),
        (["complete", "time_ask", "zone=UTC"], "UTC0\nUTC1\nUTC2\n", "name"),
        (["complete", "time://zone/{zone}", "zone=UTC1"], "UTC1\n", "name"),
        (["complete", "time_ask", "zone=no"], "", "name"),
    ],
)
async def test_a_result_is_bare_text(words: list[str], out: str, noun: str, autojump_clock: MockClock) -> None:
    """stdout holds the result alone, so that it can be piped. The document has it as it came."""
    screen = Screen()
    outcome = await run(words, screen.plain)
    assert (out, 0) == (screen.out.getvalue(), outcome.status)
    assert (True, words[1], "time") == (outcome.document["ok"], outcome.document[noun], outcome.document["backend_id"])
    assert isinstance(outcome.document["result"], dict)


REQUESTS = {
    "call": (["call", "time_no", "a=1"], "no tool 'time_no' in this session; closest: 'time_now'", "ToolNotFound"),
    "read": (["read", "time://zone"], "no resource 'time://zone' in this session", "ResourceNotFound"),
    "prompt": (["prompt", "time_as"], "no prompt 'time_as' in this session; closest: 'time_ask'", "PromptNotFound"),
    "complete": (["complete", "time_as", "a=b"], "no prompt 'time_as' in this session", "PromptNotFound"),
    "check": (["check", "time_no"], "no tool 'time_no' in this session; closest: 'time_now'", "ToolNotFound"),
}


@pytest.mark.parametrize(("words", "line", "kind"), REQUESTS.values(), ids=REQUESTS)
async def test_an_unknown_name(words: list[str], line: str, kind: str, autojump_clock: MockClock) -> None:
    """One line on stderr, nothing on stdout, status 1."""
    screen = Screen()
    outcome = await run(words, screen.plain)
    assert ("", 1, kind) == (screen.out.getvalue(), outcome.status, outcome.document["error"]["type"])
    assert f"trio-vmcp: {line}" in screen.log.getvalue()
    assert not outcome.document["ok"]


@pytest.mark.parametrize(("words", "line", "kind"), REQUESTS.values(), ids=REQUESTS)
async def test_a_name_of_a_missing_backend(words: list[str], line: str, kind: str, autojump_clock: MockClock) -> None:
    """The line says which backends are missing, and why: the name may be one of theirs."""
    screen = Screen()
    outcome = await run(words, screen.plain, found=Found((Backend(id="time", url="http://nowhere.test/mcp"),)))
    assert "missing: 'time' could not be reached" in screen.log.getvalue().splitlines()[-1]
    assert (1, kind) == (outcome.status, outcome.document["error"]["type"])


@pytest.mark.parametrize("words", [words for words, _, _ in REQUESTS.values()], ids=REQUESTS)
async def test_entries_that_were_skipped_are_in_the_document(words: list[str], autojump_clock: MockClock) -> None:
    """Also of a request, which fails for another reason or not at all."""
    async with network_of(time_server()) as (network, backend):
        found = Found((backend,), (Skipped("gone", "why it is gone"),))
        plan = parse_plan([*words, "--config", "file"])
        outcome = await run_plan(plan, found, Screen().plain, transport=network.transport())
    assert ["why it is gone"] == outcome.document["skipped"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["call", "time_now", "zone=UTC", "count=two"], "argument count: the tool wants integer or null"),
        (["prompt", "time_ask", '{"zone": 5}'], "argument zone: is no string, as prompts take them"),
    ],
)
async def test_arguments_that_do_not_fit(words: list[str], message: str, autojump_clock: MockClock) -> None:
    """Bad usage, which the command ends for with status 2; the backend is not asked."""
    server = time_server()
    with pytest.raises(InputError, match=message) as refused:
        await run(words, Screen().plain, server)
    assert "UsageError" == refused.value.kind
    assert {} == server.executed


async def test_more_values_than_were_sent(autojump_clock: MockClock) -> None:
    """A server sends a hundred at most and says how many there are."""
    server, screen = time_server(), Screen()
    completion = {"values": ["a"], "total": 250, "hasMore": True}
    server.fail("completion/complete", answer_with(completion=completion))
    await run(["complete", "time_ask", "zone="], screen.plain, server)
    assert "a\n" == screen.out.getvalue()
    assert "trio-vmcp: these are 1 of 250 values" == screen.log.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ([{"uri": "a:b", "text": "one"}, {"uri": "a:c", "text": "two\n"}], "one\ntwo\n"),
        ([{"uri": "a:b", "blob": "AAAA", "mimeType": "image/png"}], "[image/png, 3 bytes]\n"),
        ([{"uri": "a:b", "blob": "AAAA"}, 3], "[blob, 3 bytes]\n[content of no type]\n"),
        ([{"uri": "a:b", "text": "\x1b[31mred"}], "\\x1b[31mred\n"),
    ],
)
async def test_contents_are_for_a_reader(contents: list[object], text: str, autojump_clock: MockClock) -> None:
    """Text as it is, but for what a terminal would obey; other content is named."""
    server, screen = time_server(), Screen()
    server.fail("resources/read", answer_with(contents=contents))
    await run(["read", "time://zones"], screen.plain, server)
    assert text == screen.out.getvalue()


# --- check NAME


async def test_a_tool_is_explained(autojump_clock: MockClock) -> None:
    """Its description and its arguments: name, type, default, whether required; the required ones first."""
    screen = Screen()
    outcome = await run(["check", "time_now"], screen.plain)
    expected = """\
time_now: tool of time
  What time it is.
  And where.
arguments of time_now:
  zone: string, required
      An IANA name such as Europe/Oslo.
      UTC is one, too.
  format: one of "short", "long", default "short", optional
  count: integer, optional
      How often
"""
    assert expected == screen.out.getvalue()
    assert (0, True, "time_now", "time") == (
        outcome.status,
        *(outcome.document[key] for key in ("ok", "tool", "backend_id")),
    )
    assert NOW == outcome.document["definition"]["inputSchema"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("time_ask", ["time_ask: prompt of time", "  Asks", "arguments of time_ask:", "  zone: string, required"]),
        ("time_nothing", ["time_nothing: tool of time", "time_nothing takes no arguments"]),
    ],
)
async def test_a_prompt_or_a_tool_without_arguments(name: str, lines: list[str], autojump_clock: MockClock) -> None:
    """A prompt's arguments are strings."""
    screen = Screen()
    await run(["check", name], screen.plain)
    assert lines == screen.lines


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"enum": list(range(100)), "description": 3}}, "required": "a"},
        {"properties": {"a": True, "b\x1b[31m": {"title": ["x"], "default": {}}}},
        {"properties": [1]},
        {"properties": {"a": {"$ref": "#"}, "x" * 500: {}}},
    ],
)
async def test_any_schema_can_be_explained(schema: JSON, autojump_clock: MockClock) -> None:
    """Servers send what they like: nothing fails, and no control character reaches the terminal."""
    server, screen = ScriptedBackend(name="a"), Screen()
    server.add_tool("b", inputSchema={"type": "object", **schema}, description="long " * 100)
    assert 0 == (await run(["check", "a_b"], screen.plain, server)).status
    assert "\x1b" not in screen.out.getvalue()


async def test_only_a_possible_owner_is_asked(autojump_clock: MockClock) -> None:
    """As for a call: a backend with another prefix is not connected."""
    async with network_of(time_server()) as (network, backend):
        found = Found((Backend(id="gone", url="http://nowhere.test/mcp"), backend))
        plan = parse_plan(["check", "time_now", "--config", "f"])
        assert 0 == (await run_plan(plan, found, Screen().plain, transport=network.transport())).status


async def test_a_server_without_a_file_keeps_its_names(autojump_clock: MockClock) -> None:
    """There is no other server whose names could be the same."""
    screen = Screen()
    async with network_of(time_server()) as (network, backend):
        for words in ([], ["now"]):
            plan = parse_plan(["check", backend.url, *words])
            found = Found((attrs.evolve(backend, id="server"),))
            assert 0 == (await run_plan(plan, found, screen.plain, transport=network.transport())).status
    assert "    tool      now                           What time it is." in screen.lines
    assert "now: tool of server" in screen.lines


# --- narrow terminals

LONG = "a_name_of_a_tool_that_is_longer_than_half_of_a_narrow_line"


@pytest.mark.parametrize("is_drawn", [True, False], ids=["rich", "plain"])
@pytest.mark.parametrize("width", [40, 60, 80])
async def test_a_narrow_terminal(width: int, is_drawn: bool, autojump_clock: MockClock) -> None:
    """No line is wider than the terminal, unless a name is; names and reasons are whole, descriptions are cut."""
    server = time_server()
    server.add_tool(LONG, description="Never seen beside such a name")
    server.add_tool("then", description="word " * 40)
    screens = []
    async with network_of(server) as (network, backend):
        found = Found((backend, Backend(id="gone", url="http://nowhere.test/mcp")), (Skipped("left", "out " * 20),))
        for words in (["check"], ["check", "time_now"]):
            screens.append(screen := Screen(NarrowTerminal()))
            view = screen.rich(width) if is_drawn else PlainView(screen.out, screen.log, width=width)
            plan = parse_plan([*words, "--config", "f"])
            await run_plan(plan, found, view, transport=network.transport())
    assert all(len(line) <= width or LONG in line for screen in screens for line in screen.lines)
    assert not any(re.match("[│─├└ ]*word", line) for line in screens[0].lines)  # one line for each, or a name's two
    everything, explained = (re.sub("[│─├└ ]", "", "".join(screen.lines)) for screen in screens)
    for text in (f"time_{LONG}", "1of3backendsconnected", "nohost'nowhere.test'inthisnetwork", "out" * 20):
        assert text in everything
    assert "word" * 40 not in everything
    assert "zone:string,requiredAnIANAnamesuchasEurope/Oslo.UTCisone,too." in explained


class NarrowTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# --- check --watch


WATCH = parse_plan(["check", "--watch", "--config", "file"])


@pytest.mark.parametrize("is_drawn", [True, False], ids=["rich", "plain"])
async def test_backends_are_watched(is_drawn: bool, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A backend that is away is seen to be, with the reason, and seen to come back."""
    away, screen = ScriptedBackend(name="away"), Screen()
    away.add_tool("x")
    away.fail(CONNECT, Refuse())

    async def heal_later() -> None:
        await trio.sleep(5)
        away.heal()

    view = screen.rich(60) if is_drawn else screen.plain
    server = time_server()
    async with network_of(server) as (network, backend):
        found = Found((backend, Backend(id="away", url=network.attach("away.test", away))))
        nursery.start_soon(heal_later)
        with trio.move_on_after(20) as watching:
            await run_plan(WATCH, found, view, transport=network.transport())
    assert watching.cancelled_caught
    assert {} == away.sessions == server.sessions
    shown = " ".join(" ".join(screen.lines).split())
    assert re.search("time.{0,9} ready for .{0,9}, legacy 2025-11-25, 2 tools, 0 calls", shown)
    assert "UNREACHABLE: it could not be" in shown
    assert "PENDING" not in shown
    assert re.search("away.{0,9} ready for .{0,9}, [a-z]+ 20[0-9-]+, 1 tool, 0 calls", shown)
    if is_drawn:
        assert all(text in shown for text in ("1 of 2 backends; Ctrl-C ends the watch", "2 of 2 backends"))
        assert all(len(line) <= 60 for line in screen.lines)
    else:
        assert len(screen.lines) < 10  # a line for what changed, not for each second


async def test_a_watch_outlasts_a_session_without_calls(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """Other sessions end after `idle_timeout`."""
    monkeypatch.setattr(conditions, "REDRAW_SECONDS", 1000.0)
    server = time_server()
    async with network_of(server) as (network, backend):
        run_it = partial(run_plan, transport=network.transport())
        nursery.start_soon(run_it, WATCH, Found((backend,)), Screen().plain)
        await trio.sleep(10 * FactorySettings().idle_timeout)
        assert ["time-session-1"] == list(server.sessions)
        nursery.cancel_scope.cancel()


class ProxyTold(io.StringIO):
    """An output that notices when the proxy is named."""

    told: trio.Event

    def write(self, text: str) -> int:
        if "the proxy 'http://127.0.0.1:9' (HTTP_PROXY) could not be reached" in text:
            self.told.set()
        return super().write(text)


async def test_a_watch_uses_the_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """As the other commands do."""
    monkeypatch.setattr(conditions, "REDRAW_SECONDS", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    out = ProxyTold()
    out.told = trio.Event()
    found = Found((Backend(id="far", url="http://far.test/mcp"),))
    nursery.start_soon(run_plan, WATCH, found, PlainView(out, io.StringIO()))
    with trio.fail_after(10):
        await out.told.wait()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ({}, "ready for 5 s, modern 2026-07-28, 1 tool, 0 calls"),
        (
            {"calls": 1, "errors": 1, "in_flight": 2},
            "ready for 5 s, modern 2026-07-28, 1 tool, 1 call, 1 failed, 2 running",
        ),
        (
            {"latency": Latency(0.012, 0.5, 2.0)},
            "ready for 5 s, modern 2026-07-28, 1 tool, 0 calls, latency 12 ms (p90 500 ms)",
        ),
        (
            {"era": None, "protocol_version": None, "state": BackendState.CONNECTING},
            "connecting for 5 s",
        ),
    ],
)
def test_a_condition_is_a_line(condition: dict[str, Any], text: str) -> None:
    """What there is to say, and nothing where there is nothing."""
    status = BackendStatus("a", BackendState.READY, datetime.now(UTC), "modern", "2026-07-28", None, 0, 0, 0, None)
    assert text == condition_text(BackendCondition(attrs.evolve(status, **condition), 5.0, 1, None))
