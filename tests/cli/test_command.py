"""The command: what it prints, what it never prints, and how it exits."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.processes import PYTHON_OPTIONS, SERVER
from trio.testing import MockClock

from trio_vmcp._cli.arguments import parse_plan
from trio_vmcp._cli.command import until_interrupted
from trio_vmcp._cli.demo import build_servers, run_demo
from trio_vmcp._cli.output import write_text
from trio_vmcp._cli.plain_view import PlainView
from trio_vmcp._cli.requests import CommandOutcome, run_plan
from trio_vmcp._cli.rich_view import RichView
from trio_vmcp._cli.sanitizer import Sanitizer
from trio_vmcp._cli.sources import Found
from trio_vmcp._cli.view import View
from trio_vmcp.cli import main
from trio_vmcp.models import JSON, Backend
from trio_vmcp.testing import CallContext, Error, Hang, MemoryNetwork, ScriptedBackend, open_memory_network

SECRET, PASSWORD, KEY = "c4nary-s3cret", "c4nary-passw0rd", "c4nary-k3y"


@pytest.fixture(autouse=True)
def any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal of the machine that runs the suite must not matter."""
    monkeypatch.setenv("TERM", "xterm")


@attrs.define(eq=False)
class Terminal:
    """Collects the output of a plain view."""

    safe: Sanitizer = attrs.field(factory=Sanitizer)
    out: io.StringIO = attrs.field(factory=io.StringIO)
    log: io.StringIO = attrs.field(factory=io.StringIO)

    @property
    def view(self) -> PlainView:
        return PlainView(self.out, self.log, self.safe)

    @property
    def both(self) -> str:
        return self.out.getvalue() + self.log.getvalue()


def build_time_server() -> ScriptedBackend:
    server = ScriptedBackend(name="time", era="modern", answers="sse")
    server.add_tool("now", _tell_time, description="What time it is\nand much more")
    server.add_tool("break", _break)
    server.add_tool("nap", _nap)
    return server


async def _tell_time(arguments: JSON, context: CallContext) -> str:
    await context.progress(1, 2, "asking")
    return f"noon in {arguments['zone']}"


async def _break(arguments: JSON, context: CallContext) -> str:
    raise ValueError("no time today")


async def _nap(arguments: JSON, context: CallContext) -> str:
    await trio.sleep(600)
    return "rested"


async def run(network: MemoryNetwork, view: View, backends: Sequence[Backend], *words: str) -> CommandOutcome:
    """A command of these words over these backends, as if they stood in a file."""
    plan = parse_plan([*words, "--config", "file"])
    return await run_plan(plan, Found(tuple(backends)), view, transport=network.transport())


async def call(
    network: MemoryNetwork, view: View, backend: Backend, tool: str, arguments: JSON, *options: str
) -> CommandOutcome:
    return await run(network, view, [backend], "call", tool, json.dumps(arguments), *options)


# --- check


async def test_check_shows_connected_and_missing_backends(autojump_clock: MockClock) -> None:
    """One backend answers, one hangs: a tree of both, the reason, and status 1."""
    hangs = ScriptedBackend(name="hangs")
    hangs.fail("POST", Hang())
    terminal = Terminal()
    async with open_memory_network() as network:
        backends = [
            Backend(id="time", url=network.attach("http://time.test/path?key=x", build_time_server())),
            Backend(id="hangs", url=network.attach("hangs.test", hangs)),
        ]
        outcome = await run(network, terminal.view, backends, "check", "--timeout=3")
    expected = """\
1 of 2 backends connected in 3.0 s
  time: modern 2026-07-28, http://time.test, 0 ms
    tool      time_now                      What time it is
    tool      time_break
    tool      time_nap
  hangs: missing after 3.0 s, TIMEOUT: it did not answer 'initialize' within 3.0 s (--timeout)
"""
    assert expected == terminal.out.getvalue()
    live = ["time: connecting", "hangs: connecting", "time: connected in 0 ms", "hangs: missing after 3.0 s"]
    assert live == terminal.log.getvalue().splitlines()
    assert 1 == outcome.status
    assert (False, ["connected", "failed"]) == (
        outcome.document["ok"],
        [backend["state"] for backend in outcome.document["backends"]],
    )


@pytest.mark.parametrize(
    ("init_timeout", "timeout", "told"),
    [
        (9.0, 3.0, "3.0 s (--timeout)"),
        (9.0, None, "9.0 s (the entry's time to start)"),
        (None, None, "30.0 s (--timeout)"),
    ],
)
async def test_a_limit_is_told_with_the_users_own_knob(
    init_timeout: float | None, timeout: float | None, told: str, autojump_clock: MockClock
) -> None:
    """--timeout wins over the file; where neither says anything, --timeout is what to turn."""
    hangs, terminal = ScriptedBackend(name="hangs"), Terminal()
    hangs.fail("POST", Hang())
    async with open_memory_network() as network:
        backend = Backend(id="hangs", url=network.attach("hangs.test", hangs), init_timeout=init_timeout)
        given = [] if timeout is None else [f"--timeout={timeout}"]
        outcome = await run(network, terminal.view, [backend], "check", *given)
    assert f"did not answer 'initialize' within {told}\n" in terminal.out.getvalue()
    assert outcome.document["backends"][0]["failure"]["detail"].endswith(told)


async def test_check_waits_for_every_backend(autojump_clock: MockClock) -> None:
    """Thirty backends that hang take three turns of ten; an ordinary session would open before the last."""
    hangs = ScriptedBackend(name="hangs")
    hangs.fail("POST", Hang())
    async with open_memory_network() as network:
        url = network.attach("hangs.test", hangs)
        outcome = await run(network, Terminal().view, [Backend(id=f"b{n}", url=url) for n in range(30)], "check")
    assert {"timeout"} == {backend["failure"]["reason"] for backend in outcome.document["backends"]}
    assert 90 == pytest.approx(outcome.document["opened_in"], abs=1)


async def test_check_succeeds_when_all_are_connected(autojump_clock: MockClock) -> None:
    """Status 0, and a document with everything that the backends declared."""
    server = build_time_server()
    server.add_resource("time://zones", title="Zones")
    server.add_prompt("ask")
    async with open_memory_network() as network:
        backend = Backend(id="time", url=network.attach("time.test", server))
        outcome = await run(network, Terminal().view, [backend], "check")
    (document,) = outcome.document["backends"]
    assert (0, True, []) == (outcome.status, outcome.document["ok"], outcome.document["conflicts"])
    assert ["time_now", "time_break", "time_nap"] == [tool["name"] for tool in document["tools"]]
    assert server.tools == [tool["definition"] for tool in document["tools"]]
    assert server.resources == document["resources"]
    assert ["time_ask"] == [prompt["name"] for prompt in document["prompts"]]
    json.dumps(outcome.document)


async def test_check_shows_conflicts(autojump_clock: MockClock) -> None:
    """Two backends with the same advertised name: the tree says that the longest prefix owns it."""
    terminal = Terminal()
    async with open_memory_network() as network:
        backends = []
        for backend_id, tool in (("a", "b_c"), ("a_b", "c")):
            server = ScriptedBackend(name=backend_id)
            server.add_tool(tool)
            backends.append(Backend(id=backend_id, url=network.attach(f"{backend_id}.test", server)))
        outcome = await run(network, terminal.view, backends, "check")
    assert "  conflict: tool a_b_c is offered by a, a_b: a_b has it\n" in terminal.out.getvalue()
    conflict = {"kind": "tool", "name": "a_b_c", "backend_ids": ("a", "a_b"), "owner": "a_b"}
    assert [conflict] == outcome.document["conflicts"]


# --- call


async def test_a_call_prints_its_result_and_shows_its_progress(autojump_clock: MockClock) -> None:
    """Only the result goes to stdout; progress goes to stderr."""
    terminal = Terminal()
    async with open_memory_network() as network:
        backend = Backend(id="time", url=network.attach("time.test", build_time_server()))
        outcome = await call(network, terminal.view, backend, "time_now", {"zone": "UTC"})
    assert "noon in UTC\n" == terminal.out.getvalue()
    assert "time_now: done in 0 ms" == terminal.log.getvalue().splitlines()[-1]
    assert (0, True, "time") == (outcome.status, outcome.document["ok"], outcome.document["backend_id"])
    assert [{"type": "text", "text": "noon in UTC"}] == outcome.document["result"]["content"]


async def test_progress_is_a_line_when_it_changes(autojump_clock: MockClock) -> None:
    """Progress is printed once per quarter, however often the tool reports it."""

    async def count(arguments: JSON, context: CallContext) -> str:
        for step in range(100):
            await context.progress(step, 100, "steps")
            await trio.sleep(1)
        return "counted"

    server, terminal = ScriptedBackend(name="a", answers="sse"), Terminal()
    server.add_tool("count", count)
    async with open_memory_network() as network:
        backend = Backend(id="a", url=network.attach("a.test", server))
        await call(network, terminal.view, backend, "a_count", {})
    lines = [line for line in terminal.log.getvalue().splitlines() if line.startswith("a_count")]
    shown = ["running", "0/100 steps", "25/100 steps", "50/100 steps", "75/100 steps", "done in 100.0 s"]
    assert [f"a_count: {text}" for text in shown] == lines


async def test_a_tool_that_reports_an_error_is_status_1(autojump_clock: MockClock) -> None:
    """The tool's text is the result on stdout, and stderr says that it is an error."""
    terminal = Terminal()
    async with open_memory_network() as network:
        backend = Backend(id="time", url=network.attach("time.test", build_time_server()))
        outcome = await call(network, terminal.view, backend, "time_break", {})
    assert "ValueError: no time today\n" == terminal.out.getvalue()
    assert "trio-vmcp: time_break reported an error" == terminal.log.getvalue().splitlines()[-1]
    assert (1, False) == (outcome.status, outcome.document["ok"])


async def test_a_call_that_fails_is_one_plain_line(autojump_clock: MockClock) -> None:
    """The library's own text, status 1, and nothing on stdout."""
    terminal = Terminal()
    async with open_memory_network() as network:
        backend = Backend(id="time", url=network.attach("time.test", build_time_server()))
        outcome = await call(network, terminal.view, backend, "time_nap", {}, "--timeout=5")
    (line,) = [line for line in terminal.log.getvalue().splitlines() if line.startswith("trio-vmcp")]
    assert line.startswith("trio-vmcp: backend 'time' did not answer 'tools/call' within 5.0 s (--timeout)")
    assert ("", 1, "BackendTimeout") == (terminal.out.getvalue(), outcome.status, outcome.document["error"]["type"])


@pytest.mark.parametrize(
    ("name", "hint"), [("time_nwo", "; closest: 'time_now'"), ("xyz", "; `trio-vmcp check` lists them")]
)
async def test_an_unknown_tool_is_told_with_a_way_out(name: str, hint: str, autojump_clock: MockClock) -> None:
    """The error has the closest names; if there are none, the command that lists all names."""
    terminal = Terminal()
    async with open_memory_network() as network:
        backend = Backend(id="time", url=network.attach("time.test", build_time_server()))
        outcome = await call(network, terminal.view, backend, name, {})
    assert f"no tool {name!r} in this session{hint}" in terminal.log.getvalue().splitlines()[-1]
    assert (1, "ToolNotFound") == (outcome.status, outcome.document["error"]["type"])


async def test_a_tool_of_a_missing_backend_names_what_is_missing(autojump_clock: MockClock) -> None:
    """The error names the missing backend, since a typo would otherwise look the same."""
    terminal = Terminal()
    async with open_memory_network() as network:
        backend = Backend(id="time", url="http://nowhere.test/mcp")
        outcome = await call(network, terminal.view, backend, "time_now", {})
    assert "no tool 'time_now' in this session; missing: 'time' " in terminal.log.getvalue().splitlines()[-1]
    assert (1, "ToolNotFound") == (outcome.status, outcome.document["error"]["type"])


async def test_a_call_connects_only_backends_that_can_own_the_name(autojump_clock: MockClock) -> None:
    """A backend with another prefix that hangs costs the call no time."""
    hangs = ScriptedBackend(name="hangs")
    hangs.fail("POST", Hang())
    async with open_memory_network() as network:
        backends = [
            Backend(id="hangs", url=network.attach("hangs.test", hangs)),
            Backend(id="time", url=network.attach("time.test", build_time_server())),
        ]
        outcome = await run(network, Terminal().view, backends, "call", "time_now", "zone=UTC")
    assert (0, 0.0) == (outcome.status, trio.current_time())
    assert [] == hangs.exchanges


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb\n"),
        ([{"type": "image", "data": "AAAA", "mimeType": "image/png"}], "[image image/png, 3 bytes]\n"),
        ([{"type": "resource", "resource": {"uri": "a:b", "text": "inside"}}], "inside\n"),
        ([{"type": "resource", "resource": {"uri": "a:b", "blob": "AAAA"}}], "[resource a:b]\n"),
        ([{"type": "resource_link", "uri": "a:b"}], "[resource a:b]\n"),
        ([{"type": "smell"}, 3], "[smell]\n[content of no type]\n"),
        ([{"type": "text", "text": "\x1b[31mred\x07 \u202eback\r\nnext"}], "\\x1b[31mred\\x07 \\u202eback\nnext\n"),
    ],
)
async def test_results_are_for_a_reader(content: list[object], text: str, autojump_clock: MockClock) -> None:
    """Text is printed as it is, other content is named, and no control sequence reaches the terminal."""

    async def answer(arguments: JSON, context: CallContext) -> JSON:
        return {"content": content}

    server, terminal = ScriptedBackend(name="a"), Terminal()
    server.add_tool("b", answer)
    async with open_memory_network() as network:
        await call(network, terminal.view, Backend(id="a", url=network.attach("a.test", server)), "a_b", {})
    assert text == terminal.out.getvalue()


async def test_structured_content_is_shown_where_there_is_no_other(autojump_clock: MockClock) -> None:
    """As indented JSON."""

    async def answer(arguments: JSON, context: CallContext) -> JSON:
        return {"content": [], "structuredContent": {"city": "Málaga"}}

    server, terminal = ScriptedBackend(name="a"), Terminal()
    server.add_tool("b", answer)
    async with open_memory_network() as network:
        await call(network, terminal.view, Backend(id="a", url=network.attach("a.test", server)), "a_b", {})
    assert '{\n  "city": "Málaga"\n}\n' == terminal.out.getvalue()


# --- secrets


def test_a_secret_that_a_program_inherits_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its value stood in the file."""
    monkeypatch.setenv("MY_TOKEN", SECRET)
    backend = Backend(id="a", transport="stdio", command="x", inherit_env=["MY_*"])
    assert "it said [secret]" == Sanitizer.of([backend]).line(f"it said {SECRET}")


async def test_a_secret_is_not_shown_even_if_backends_repeat_it(autojump_clock: MockClock) -> None:
    """A token that a backend echoes is replaced in all that is shown, and in the errors of the JSON document."""

    async def echo_headers(arguments: JSON, context: CallContext) -> str:
        return f"you sent {dict(context.exchange.headers)}"

    echoes, refuses = ScriptedBackend(name="echoes"), ScriptedBackend(name="refuses")
    echoes.add_tool("headers", echo_headers, description="x" * 50 + f" token {SECRET}")
    refuses.fail("POST", Error(-32000, f"bad token {SECRET}, {PASSWORD}, {KEY}"))
    async with open_memory_network() as network:
        for server in (echoes, refuses):
            network.attach(f"{server.name}.test", server)
        backends = [
            Backend(id="echoes", url="http://echoes.test/mcp", headers={"Authorization": f"Bearer {SECRET}"}),
            Backend(id="refuses", url=f"http://user:{PASSWORD}@refuses.test/{PASSWORD}?x=1&key={KEY}", era="legacy"),
        ]
        terminal = Terminal(Sanitizer.of(backends))
        outcomes = [
            await run(network, terminal.view, backends, "check"),
            await call(network, terminal.view, backends[0], "echoes_headers", {}),
            await call(network, terminal.view, backends[1], "refuses_x", {}),
        ]
    check, echoed, refused = (terminal.safe.document(outcome.document) for outcome in outcomes)
    assert outcomes[1].document == echoed  # a result is for programs: it stays as it came
    shown = [terminal.both, json.dumps(refused), json.dumps(check["backends"][1]), json.dumps(check["conflicts"])]
    for secret in (SECRET, PASSWORD, KEY):
        # Some document held the secret before it was replaced; those of the url are replaced in the error itself.
        assert secret != SECRET or any(secret in json.dumps(outcome.document) for outcome in outcomes)
        assert [False] * 4 == [secret in text for text in shown]
    assert "[authorization], [query]" in json.dumps(outcomes[2].document)
    assert "'authorization': '[secret]'" in terminal.out.getvalue()


def test_a_secret_of_a_command_line_is_not_shown() -> None:
    """A program may repeat how it was started."""
    backend = Backend(id="b", transport="stdio", command="server", args=("--root", "/srv/files", "--token", SECRET))
    said = f"usage: server --root /srv/files --token {SECRET}"
    assert "usage: server --root /srv/files --token [secret]" == Sanitizer.of([backend]).line(said)


@given(st.text(), st.text(min_size=6))
def test_a_line_is_one_line_and_holds_no_secret(text: str, secret: str) -> None:
    """Whatever a backend says: no control characters, no line breaks, and no secret that is cut in the middle and then
    missed.
    """
    line = Sanitizer((secret,)).line(f"{text}{secret}{text}", limit=60)
    assert len(line) <= 60
    assert line == line.strip() or line.isprintable()
    assert secret not in line or secret in "[secret]"
    line.encode()


# --- the demo


@asynccontextmanager
async def open_in_memory(network: MemoryNetwork) -> AsyncIterator[list[Backend]]:
    backends = [
        Backend(id=server.name, url=network.attach(f"{server.name}.test", server)) for server in build_servers()
    ]
    yield [*backends, Backend(id="refuses", url="http://refuses.test/mcp")]


async def test_the_demo_goes_as_it_says(autojump_clock: MockClock) -> None:
    """The claims that the demo prints hold: the missing backend, calls side by side, a refusal while a call in flight
    ends, the times.
    """
    terminal = Terminal()
    async with open_memory_network() as network:
        document = await run_demo(terminal.view, lambda: open_in_memory(network), network.transport())
    assert [] == document["problems"]
    assert document["ok"]
    assert 1.2 == pytest.approx(document["calls_took"])
    assert 0.8 == pytest.approx(document["closing_took"])
    assert 3.5 == pytest.approx(document["took"])
    out = terminal.out.getvalue()
    assert "  1.2 s together; one after another 4.2 s\n" in out
    assert "  after 100 ms: a new call is refused (the session is closing or closed and admits no new calls)\n" in out
    assert "  after 800 ms: the call in flight has its answer\n" in out


async def test_the_demo_says_so_when_something_else_happened(autojump_clock: MockClock) -> None:
    """A backend is missing against expectation: the demo fails, and names the claim that did not hold."""
    terminal = Terminal()

    @asynccontextmanager
    async def open_without_weather() -> AsyncIterator[list[Backend]]:
        async with open_in_memory(network) as backends:
            yield [Backend(id="weather", url="http://nowhere.test/mcp"), *backends[1:]]

    async with open_memory_network() as network:
        document = await run_demo(terminal.view, open_without_weather, network.transport())
    assert not document["ok"]
    assert "'weather': 'unreachable'" in document["problems"][0]
    assert "weather_forecast Oslo: no tool 'weather_forecast'" in document["problems"][1]
    assert "trio-vmcp: not as expected: " in terminal.log.getvalue()


@pytest.mark.parametrize("width", [60, 80])
async def test_a_terminal_is_drawn_within_its_width(width: int, autojump_clock: MockClock) -> None:
    """Every frame of the demo fits, a call in one line, and no reason is cut off."""
    drawn = io.StringIO()
    view = RichView(_terminal(drawn, width), _terminal(drawn, width))
    async with open_memory_network() as network:
        await run_demo(view, lambda: open_in_memory(network), network.transport())
    lines = [_without_escapes(line) for line in drawn.getvalue().splitlines()]
    assert width >= max(map(len, lines))
    assert any(re.fullmatch("✓ weather_forecast Oslo +━+ 300 ms *", line) for line in lines)
    assert any(re.fullmatch(r". notes_summarize 8 pages +━+ +480 ms [45]/8 pages *", line) for line in lines)
    assert "✗ hangs   missing   1.5 s" in lines
    assert "├── ✓ search  modern 2026-07-28, http://search.test, 0 ms" in lines
    reason = "missing after 1.5 s, TIMEOUT: it did not answer 'initialize' within 1.5 s"
    assert reason in re.sub("[ │]+", " ", " ".join(lines))
    assert "\x1b[?25h" in drawn.getvalue()[-4000:]  # the cursor is shown again


def _terminal(drawn: io.StringIO, width: int = 80) -> Console:
    return Console(file=drawn, width=width, force_terminal=True, no_color=True, highlight=False, legacy_windows=False)


def _without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


async def test_a_terminal_shows_calls_errors_and_conflicts(autojump_clock: MockClock) -> None:
    """A backend's text is printed as text, not interpreted as markup."""
    drawn, errors = io.StringIO(), io.StringIO()
    view = RichView(_terminal(drawn), _terminal(errors))
    servers = [build_time_server(), ScriptedBackend(name="time_now")]
    servers[1].add_tool("x")
    servers[1].add_tool("y", description="[red]alert[/red] \x1b[31m " + "long " * 20)
    servers[0].add_tool("now_x")
    async with open_memory_network() as network:
        backends = [Backend(id=server.name, url=network.attach(f"{server.name}.test", server)) for server in servers]
        await run(network, view, backends, "check")
        await call(network, view, backends[0], "time_break", {})
        await call(network, view, backends[0], "time_now", {"zone": "[b]UTC"})
        await call(network, view, backends[0], "time_nap", {}, "--timeout=1")
    shown = _without_escapes(drawn.getvalue())
    assert "── conflict: tool time_now_x is offered by time, time_now: time_now has it" in shown
    assert "\nValueError: no time today\n" in shown
    assert "\nnoon in [b]UTC\n" in shown
    (alert,) = [line for line in shown.splitlines() if "time_now_y" in line]
    assert "[red]alert[/red] \\x1b[31m long" in alert
    assert alert.rstrip().endswith("…")
    assert "trio-vmcp: time_break reported an error\n" in _without_escapes(errors.getvalue())


# --- the process


async def test_an_interrupt_closes_the_session_in_order(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Status 130; the call is cancelled, the backend session is deleted, and the cursor is shown again."""
    server, drawn = ScriptedBackend(name="a"), io.StringIO()
    server.add_tool("nap", _nap)

    async with open_memory_network() as network:
        backend = Backend(id="a", url=network.attach("a.test", server))

        async def call_and_interrupt() -> CommandOutcome:
            nursery.start_soon(_interrupt_after, 1.0)
            return await call(network, RichView(_terminal(drawn), _terminal(drawn)), backend, "a_nap", {})

        outcome = await until_interrupted(call_and_interrupt)
        assert (130, {}) == (outcome.status, server.sessions)
    assert ["a-session-1"] == server.deleted_sessions
    assert drawn.getvalue().rindex("\x1b[?25h") > drawn.getvalue().rindex("\x1b[?25l")


async def _interrupt_after(seconds: float) -> None:
    await trio.sleep(seconds)
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """A URL of a port without a listener, which no other program can get."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/mcp"


def write_config(directory: Path, text: str) -> str:
    path = directory / "mcp.json"
    path.write_text(text)
    return str(path)


def test_check_exits_with_1_when_a_backend_is_missing(
    refusing_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json, stdout is one document and the progress is on stderr. Without, plain text goes to a pipe."""
    config = write_config(tmp_path, json.dumps({"mcpServers": {"time": {"url": refusing_url}}}))
    assert 1 == main(["check", "--config", config, "--json"])
    printed = capsys.readouterr()
    assert (False, "unreachable") == (
        json.loads(printed.out)["ok"],
        json.loads(printed.out)["backends"][0]["failure"]["reason"],
    )
    assert printed.err.startswith("time: connecting\n")
    assert 1 == main(["check", "--config", config])
    assert capsys.readouterr().out.startswith("0 of 1 backends connected in ")


def test_the_command_uses_the_proxies_of_the_environment(
    refusing_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure names the variable and the proxy, without its credentials; NO_PROXY is respected."""
    port = urlsplit(refusing_url).port
    monkeypatch.setenv("http_proxy", f"http://canary:canary@127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    entries = {"far": {"url": "http://b.test/mcp"}, "near": {"url": refusing_url}}
    assert 1 == main(["check", "--config", write_config(tmp_path, json.dumps({"mcpServers": entries}))])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the proxy 'http://127.0.0.1:{port}' (HTTP_PROXY) could not be reached: Connection refused" in shown
    assert 1 == shown.count("the proxy")
    assert "canary" not in shown


def test_the_commands_of_a_file_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of the file are checked and called. The program's name is shown; a secret of its environment is not,
    even if it repeats the secret.
    """
    monkeypatch.setenv("TOKEN", "s3cret-value")
    entry = {"command": sys.executable, "args": [*PYTHON_OPTIONS, str(SERVER), "modern"], "env": {"SECRET": "${TOKEN}"}}
    config = write_config(tmp_path, json.dumps({"mcpServers": {"plain": entry}}))
    assert 0 == main(["check", "--config", config])
    assert f"plain: modern 2026-07-28, {Path(sys.executable).name}, " in capsys.readouterr().out
    assert 0 == main(["call", "plain_echo", '{"a": 1}', "--config", config])
    assert '{"a": 1}' in capsys.readouterr().out
    assert 0 == main(["call", "plain_env", "--config", config])
    printed = capsys.readouterr().out
    assert "SECRET" in printed
    assert "s3cret-value" not in printed
    assert 1 == main(["call", "plain_die", "--config", config])
    assert "its last words on stderr: 'about to die', 'of $SECRET'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": {"url": "x"}}', "FILE: a.url: is not an http:// or https:// URL with a host"),
        ('{\n"a": }', "FILE:2:6: not JSON: Expecting value"),
        ("{}", "FILE: enables no server"),
        ('{"a": {"command": "npx", "args": "-y"}}', "FILE: a.args: is a string, not a list"),
        ('{"a": {"url": "${NOT_SET_HERE}"}}', "FILE: a.url: needs the environment variable NOT_SET_HERE, which is"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for check and call; with --json the line is in the document, too."""
    config = write_config(tmp_path, text)
    assert 2 == main(["check", "--config", config])
    printed = capsys.readouterr()
    assert ("", 1) == (printed.out, len(printed.err.splitlines()))
    assert printed.err.startswith(f"trio-vmcp: {line.replace('FILE', config)}")
    assert 2 == main(["call", "a_b", "{}", "--json", "--config", config])
    assert "ConfigError" == json.loads(capsys.readouterr().out)["error"]["type"]


def test_a_file_that_cannot_be_read_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing, a directory, or not UTF-8."""
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'{"\xe4": 1}')
    assert [2, 2, 2] == [main(["check", "--config", str(path)]) for path in (tmp_path / "none", tmp_path, latin)]
    assert [
        f"trio-vmcp: {tmp_path}/none: cannot be read: {os.strerror(2)}",
        f"trio-vmcp: {tmp_path}: cannot be read: {os.strerror(21)}",
        f"trio-vmcp: {latin}: is not UTF-8 at byte 2",
    ] == capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["check"], "--config"),
        (["call", "a", "[1", "--config", "x"], "argument JSON: not JSON: Expecting ',' delimiter at 1:3"),
        (["call", "a", "[1]", "--config", "x"], "argument JSON: not a JSON object, such as {}"),
        (["call", "a", '{"a": NaN}', "--config", "x"], "argument JSON: not JSON that can be sent"),
        (["call", "a", "[" * 100_000, "--config", "x"], "argument JSON: not JSON that can be sent"),
        (["check", "--config", "x", "--timeout", "0"], "argument --timeout: '0' is not a number of seconds above 0"),
        (["check", "--config", "x", "--timeout", "x"], "argument --timeout: 'x' is not a number of seconds above 0"),
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the option and the reason."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert 2 == exited.value.code
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert "" == shown.out


@pytest.mark.parametrize("arguments", [["check"], ["check", "--timeout", "0", "--config", "x"], ["call", "a", "[1"]])
def test_bad_usage_is_one_json_document_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With --json, a program that reads stdout learns of bad usage as of any other failure."""
    with pytest.raises(SystemExit) as exited:
        main([*arguments, "--json"])
    assert 2 == exited.value.code
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (False, "UsageError") == (document["ok"], document["error"]["type"])
    assert document["error"]["message"] in shown.err


@pytest.mark.parametrize(
    ("term", "rich_is_there", "drawn"), [("xterm", True, True), ("dumb", True, False), ("xterm", False, False)]
)
def test_a_terminal_is_drawn_on_if_it_can_be(
    term: str,
    rich_is_there: bool,
    drawn: bool,
    refusing_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `rich` and a terminal that can move its cursor, a tree; else plain ASCII lines."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not rich_is_there:
        monkeypatch.setitem(sys.modules, "rich", None)
    config = write_config(tmp_path, json.dumps({"time": {"url": refusing_url}}))
    assert 1 == main(["check", "--config", config])
    out = capsys.readouterr().out
    assert (drawn, not drawn) == ("└── ✗ time" in _without_escapes(out), out.isascii())


@pytest.mark.parametrize("command", [[], ["check"], ["call"], ["demo"]])
def test_the_help_has_the_exit_statuses(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A script that runs the command needs them."""
    with pytest.raises(SystemExit) as exited:
        main([*command, "--help"])
    assert 0 == exited.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "exit status: 0 success; 1 a server is missing" in shown
    assert "130, 143, 129 ended by SIGINT (Ctrl-C), SIGTERM, SIGHUP" in shown


def test_the_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is for bug reports."""
    with pytest.raises(SystemExit) as exited:
        main(["--version"])
    assert 0 == exited.value.code
    assert capsys.readouterr().out.startswith("trio-vmcp ")


def test_a_closed_pipe_is_no_error() -> None:
    """`trio-vmcp check | head -1` ends without a traceback, neither at once nor when Python flushes at exit."""
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        os.close(reading)
        write_text(stream, "the first line that nobody reads\n")
        write_text(stream, "another\n")


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", ">&- 2>&-"])
def test_a_closed_standard_stream_is_no_traceback(closed: str, tmp_path: Path) -> None:
    """With stdin, stdout or stderr closed by the shell, output to it is dropped."""
    config = tmp_path / "mcp.json"
    config.write_text('{"off": {"url": "http://a.test/", "disabled": true}}')
    program = "from trio_vmcp.cli import main; raise SystemExit(main())"
    command = f'"{sys.executable}" -c "{program}" check --config "{config}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": "\\ud800"}', '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"])
def test_arguments_that_are_not_json_are_status_2(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that are no JSON are bad usage: one line and status 2, before any server is asked."""
    with pytest.raises(SystemExit) as caught:
        main(["call", "a_echo", text, "--config", "no such file"])
    assert 2 == caught.value.code
    assert "not JSON that can be sent" in capsys.readouterr().err


def test_an_entry_without_its_variable_costs_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are checked, the entry is named, and the status is 1. A call of another entry is not affected."""
    program = {"command": sys.executable, "args": [*PYTHON_OPTIONS, str(SERVER), "modern"], "envFile": ".env"}
    servers = {"good": program, "bad": {"url": "https://x.test", "headers": {"X": "${SURELY_NOT_SET}"}}}
    config = write_config(tmp_path, json.dumps({"mcpServers": servers}))
    assert 1 == main(["check", "--config", config, "--json"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    line = "mcpServers.bad.headers.X: needs the environment variable SURELY_NOT_SET, which is not set"
    assert (False, ["good"]) == (document["ok"], [backend["id"] for backend in document["backends"]])
    assert line in document["skipped"][0]
    assert 1 == main(["check", "--config", config])
    plain = capsys.readouterr()
    first, *others = plain.out.splitlines()
    assert re.fullmatch(r"1 of 2 backends connected in .*, 1 skipped", first)
    assert f"  bad: skipped, {config}: {line}" in others
    assert line in plain.err
    assert line in printed.err
    assert "mcpServers.good.envFile: is not understood" in printed.err
    assert 0 == main(["call", "good_echo", '{"a": 1}', "--config", config])


def test_a_result_as_json_stays_as_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json, a value of `env` in a result is no reason to change the result."""
    env = {"NODE_ENV": "production", "API_TOKEN": "c4nary-s3cret"}
    entry = {"command": sys.executable, "args": [*PYTHON_OPTIONS, str(SERVER), "modern"], "env": env}
    config = write_config(tmp_path, json.dumps({"mcpServers": {"plain": entry}}))
    assert 0 == main(["call", "plain_echo", '{"a": "production c4nary-s3cret"}', "--config", config, "--json"])
    assert "production c4nary-s3cret" in json.dumps(json.loads(capsys.readouterr().out)["result"])


# --- without a file, from stdin, to a full disk

PROGRAM = [sys.executable, *PYTHON_OPTIONS, str(SERVER), "modern"]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What the command reads from stdin."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(written))
    return written


def test_a_program_is_checked_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Its tools keep their names, and NAME explains one."""
    assert 0 == main(["check", "echo", "--json", "--", *PROGRAM])
    assert "echo" == json.loads(capsys.readouterr().out)["definition"]["name"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["check", "ftp://a.test"], "the URL is not an http:// or https:// URL with a host"),
        (["check", f"https://{SECRET}@"], "the URL is not an http:// or https:// URL with a host"),
        (["check", "https://a.test", "--header", f"A: {SECRET}\nB: c"], "--header"),
        (["check", "https://a.test", "--header", f"Mcp-Session-Id: {SECRET}"], "--header"),
        (["check", "--", ""], "the program after -- is empty, or holds NUL"),
        (["check", "--", "a\0"], "the program after -- is empty, or holds NUL"),
    ],
)
def test_a_server_that_cannot_be_is_status_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line without the value, before anything is connected or started."""
    assert 2 == main(words)
    shown = capsys.readouterr()
    assert ("", 1) == (shown.out, len(shown.err.splitlines()))
    assert shown.err.startswith(f"trio-vmcp: {line}")
    assert SECRET not in shown.err


def test_headers_are_sent_and_not_shown(capsys: pytest.CaptureFixture[str], refusing_url: str) -> None:
    """The token of --bearer and values of --header with a secret's name are blotted, as those of a file are."""
    assert 1 == main(
        ["check", f"{refusing_url}?key={SECRET}", "--bearer", KEY, "--header", f"X-Token: {PASSWORD}", "-v"]
    )
    shown = capsys.readouterr()
    assert "0 of 1 backends connected" in shown.out
    assert not [secret for secret in (SECRET, KEY, PASSWORD) if secret in shown.out + shown.err]


COMMANDS = [["check"], ["call", "x_echo"], ["read", "a:b"], ["prompt", "x_y"], ["complete", "x_y", "a=b"]]
every_command = pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])


@every_command
def test_only_the_servers_that_are_wanted(
    command: list[str], tmp_path: Path, refusing_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """--server leaves the others out: they are not connected, skipped or shown."""
    servers = {"x": {"url": refusing_url}, "y": {"url": refusing_url}, "z": {"url": "https://${SURELY_NOT_SET}"}}
    config = write_config(tmp_path, json.dumps(servers))
    assert 1 == main([*command, "--config", config, "--server", "x", "--json"])
    shown = capsys.readouterr()
    assert "x: missing" in shown.err
    assert not re.search("^y:|SURELY", shown.err, re.MULTILINE)
    assert "skipped" not in json.loads(shown.out)


@every_command
@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (["x", "w"], "FILE: enables no server 'w' (--server); it has x, z"),
        (["off"], "FILE: enables no server 'off' (--server); it has x, z"),
        (["z"], "FILE: z.url: needs the environment variable SURELY_NOT_SET, which is not set"),
    ],
)
def test_a_server_that_is_not_in_the_file_is_status_2(
    command: list[str], ids: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says which there are. A server that cannot be used is no success if it is the only one wanted."""
    servers = {
        "x": {"url": "https://a.test"},
        "off": {"url": "https://a.test", "disabled": True},
        "z": {"url": "https://${SURELY_NOT_SET}"},
    }
    config = write_config(tmp_path, json.dumps(servers))
    assert 2 == main([*command, "--config", config, *(f"--server={each}" for each in ids)])
    assert f"trio-vmcp: {line.replace('FILE', config)}\n" == capsys.readouterr().err


def test_the_file_or_the_arguments_from_stdin(
    stdin: io.BytesIO, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--config -` reads the servers, `-` the arguments, `@FILE` the arguments from a file."""
    servers = json.dumps({"plain": {"command": PROGRAM[0], "args": PROGRAM[1:]}})
    config, arguments = write_config(tmp_path, servers), tmp_path / "arguments.json"
    arguments.write_text('{"a": "from a file"}')
    stdin.write(servers.encode())
    stdin.seek(0)
    assert 0 == main(["call", "plain_echo", f"@{arguments}", "--config", "-"])
    assert '{"a": "from a file"}' in capsys.readouterr().out
    stdin.seek(0)
    stdin.truncate()
    stdin.write(b'{"a": "from stdin"}')
    stdin.seek(0)
    assert 0 == main(["call", "plain_echo", "-", "--config", config])
    assert '{"a": "from stdin"}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "text", "line"),
    [
        ("-", b"[1]", "stdin: not a JSON object, such as {}"),
        ("-", b'{\n"a": }', "stdin: not JSON: Expecting value at 2:6"),
        ("-", b"\xff", "stdin: is not UTF-8 at byte 0"),
        ("@none.json", b"", "none.json: cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("command", ["call", "prompt"])
def test_arguments_that_cannot_be_read_are_status_2(
    command: str,
    place: str,
    text: bytes,
    line: str,
    stdin: io.BytesIO,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, before a server is connected."""
    stdin.write(text)
    stdin.seek(0)
    config = write_config(tmp_path, json.dumps({"x": {"url": "https://a.test"}}))
    assert 2 == main([command, "x_y", place, "--config", config, "--json"])
    shown = capsys.readouterr()
    assert f"trio-vmcp: {line}\n" == shown.err
    assert "UsageError" == json.loads(shown.out)["error"]["type"]


def test_a_closed_stdin_is_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The parent process may have closed it."""
    monkeypatch.setattr(sys, "stdin", None)
    assert 2 == main(["check", "--config", "-"])
    assert "trio-vmcp: stdin: cannot be read: it is closed\n" == capsys.readouterr().err


def test_verbose_shows_the_log_and_the_servers_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, one line each; without -v neither is there."""
    noisy = [sys.executable, *PYTHON_OPTIONS, "-c", "import sys; print('my last \\x1b[31m words', file=sys.stderr)"]
    level = logging.getLogger("trio_vmcp").level
    assert 1 == main(["check", "--", *noisy])
    quiet = capsys.readouterr()
    assert 1 == main(["check", "-v", "--", *noisy])
    shown = capsys.readouterr()
    assert "debug client.stdio: backend 'server': my last \\x1b[31m words" in shown.err.splitlines()
    assert re.search("^warning session: .* backend 'server' is missing", shown.err, re.MULTILINE)
    assert not re.search("^(debug|warning) ", quiet.err, re.MULTILINE)
    assert level == logging.getLogger("trio_vmcp").level


FULL = Path("/dev/full")


on_linux = pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")


@on_linux
@pytest.mark.parametrize("words", [["--help"], ["check", "--help"], ["check", "--json"], ["check", "URL", "--json"]])
def test_a_full_disk_is_one_line(
    words: list[str], refusing_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and the reason, of help and of results."""
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert 1 == main([refusing_url if word == "URL" else word for word in words])
    assert "trio-vmcp: cannot write to stdout: No space left on device" == capsys.readouterr().err.splitlines()[-1]


@on_linux
@pytest.mark.parametrize(("stdout", "stderr"), [("/dev/full", "log"), ("out", "/dev/full")])
def test_a_full_disk_in_a_process(stdout: str, stderr: str, refusing_url: str, tmp_path: Path) -> None:
    """No traceback when Python flushes at exit. Under stderr a full disk costs no result."""
    program = "from trio_vmcp.cli import main; raise SystemExit(main())"
    with (tmp_path / stdout).open("w") as out, (tmp_path / stderr).open("w") as log:
        done = subprocess.run(
            [sys.executable, "-c", program, "check", refusing_url], stdout=out, stderr=log, check=False
        )
    assert 1 == done.returncode
    if stdout == "out":
        assert (tmp_path / "out").read_text().startswith("0 of 1 backends connected")
    else:
        assert (tmp_path / "log").read_text().endswith("\ntrio-vmcp: cannot write to stdout: No space left on device\n")
