"""`trio-vmcp serve`: the lines that it prints, its exit statuses, and what its options ask for."""

from __future__ import annotations

import gc
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from support.front_http import INITIALIZE, call, get, post
from support.harness import echo_backend
from support.jwt_issuer import make_key, make_token
from support.processes import PYTHON_OPTIONS, SERVER
from support.redis_server import serve_redis
from trio.testing import MockClock, memory_stream_one_way_pair

import trio_vmcp.storage.redis  # noqa: F401  # its client takes as long to import as a test may take
from trio_vmcp._cli.arguments import parse_plan
from trio_vmcp._cli.collector import MOST_YOUNG
from trio_vmcp._cli.plain_view import PlainView
from trio_vmcp._cli.requests import CommandOutcome
from trio_vmcp._cli.serve import Setup, prepare, run_server
from trio_vmcp._cli.sources import Found, find_servers
from trio_vmcp._cli.view import Skipped
from trio_vmcp.cli import main
from trio_vmcp.models import Backend
from trio_vmcp.routing import Bare, Prefix, Priority
from trio_vmcp.serve import server as http_server
from trio_vmcp.testing import Hang, MemoryNetwork, ScriptedBackend, open_memory_network

KEY = "k" * 32
every_signal = pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clients do not read, and some servers hang: ends that wait for them take half a second each."""
    monkeypatch.setattr(http_server, "GRACE", 0.05)


class Screen(io.StringIO):
    """What a server prints. `at_listening` is called with the url of its last line."""

    def __init__(self, at_listening: Callable[[str], object] = lambda url: None) -> None:
        super().__init__()
        self.at_listening = at_listening

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.startswith("listening on "):
            self.at_listening(text.split()[-1])
        return written

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


def setup_of(*words: str, environment: dict[str, str] | None = None, init_timeout: float = 35.0) -> Setup:
    plan = parse_plan(["serve", "--config", "file", "--port", "0", *words])
    assert plan.serve is not None
    setup = prepare(plan.serve, environment or {})
    return attrs.evolve(setup, factory=attrs.evolve(setup.factory, session_init_timeout=init_timeout))


@attrs.define(eq=False)
class Running:
    """A server in this process."""

    url: str
    out: Screen
    log: io.StringIO
    view: PlainView


@asynccontextmanager
async def running(setup: Setup, found: Found, network: MemoryNetwork) -> AsyncIterator[Running]:
    """A server from its line "listening" on; afterwards it is cancelled, as by a signal."""
    listening, urls = trio.Event(), list[str]()

    def note(url: str) -> None:
        urls.append(url)
        listening.set()

    out, log = Screen(note), io.StringIO()
    async with trio.open_nursery() as nursery:
        view = PlainView(out, log)
        transport = network.transport()
        nursery.start_soon(lambda: run_server(setup, found, view, transport=transport))
        await listening.wait()
        yield Running(urls[0], out, log, view)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def echo_network() -> AsyncIterator[tuple[MemoryNetwork, Found]]:
    async with open_memory_network() as network:
        yield network, Found((Backend("a", network.attach("http://a.test/mcp", echo_backend())),))


async def test_a_line_for_each_backend_and_then_the_url(autojump_clock: MockClock) -> None:
    """Those that connect, fail, take too long and cannot be used each have one line on stdout; the last line is the
    url, at which clients are served. What a client needs to be told stands on stderr.
    """
    hangs, modern = ScriptedBackend(), echo_backend("modern")
    modern.add_tool("other")
    hangs.fail("POST", Hang())
    async with open_memory_network() as network:
        found = Found(
            (
                Backend("old", network.attach("http://old.test/mcp", echo_backend())),
                Backend("new", network.attach("http://new.test/mcp", modern)),
                Backend("hangs", network.attach("http://hangs.test/mcp", hangs)),
                Backend("gone", "http://gone.test/mcp"),
            ),
            (Skipped("unset", "file: needs the environment variable X, which is not set"),),
        )
        async with running(setup_of(init_timeout=5.0), found, network) as server:
            *lines, last = server.out.lines
            assert f"listening on {server.url}" == last
            assert {
                "old: connected (legacy, 1 tools)",
                "new: connected (modern, 2 tools)",
                "hangs: still connecting",
                "unset: skipped, file: needs the environment variable X, which is not set",
            } == {line for line in lines if not line.startswith("gone: ")}
            (gone,) = (line for line in lines if line.startswith("gone: "))
            assert gone.startswith("gone: UNREACHABLE: it ")
            assert 200 == (await call(server.url, "old_echo")).status
            snippet = json.loads(server.log.getvalue().partition("for the file of a client: ")[2])
            assert {"mcpServers": {"trio-vmcp": {"type": "http", "url": server.url}}} == snippet


async def test_the_collector_is_patient_while_clients_are_served() -> None:
    """As it was before, afterwards: the process may go on."""
    before = gc.get_threshold()
    async with echo_network() as (network, found), running(setup_of(), found, network):
        assert MOST_YOUNG == gc.get_threshold()[0]
    assert before == gc.get_threshold()


async def test_lines_come_as_backends_connect() -> None:
    """A backend that hangs does not hold up the line of another, nor the requests of clients; a balancer is told to
    wait meanwhile.
    """
    hangs, seen = ScriptedBackend(), trio.Event()
    hangs.fail("POST", Hang())

    class Watched(Screen):
        def write(self, text: str) -> int:
            if text.startswith("a: connected"):
                seen.set()
            return super().write(text)

    async with echo_network() as (network, found), trio.open_nursery() as nursery:
        hanging = Backend("hangs", network.attach("http://hangs.test/mcp", hangs))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        setup, view = setup_of("--port", str(port)), PlainView(Watched(), io.StringIO())
        both = Found((hanging, *found.backends))
        nursery.start_soon(lambda: run_server(setup, both, view, transport=network.transport()))
        await seen.wait()
        for path, status in (("healthz", 200), ("readyz", 503)):
            assert status == (await get(f"http://127.0.0.1:{port}/{path}")).status
        with trio.move_on_after(0.2) as wait:  # the client's own session waits for the backend that hangs
            await post(f"http://127.0.0.1:{port}/mcp", INITIALIZE)
        assert wait.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_what_operators_are_told(autojump_clock: MockClock) -> None:
    """Ready from the last line on. The metrics count calls and the memory of the process; each server has its own."""
    async with echo_network() as (network, found):
        for _ in range(2):
            async with running(setup_of(), found, network) as server:
                home = server.url.removesuffix("/mcp")
                assert 200 == (await get(f"{home}/readyz")).status
                assert 200 == (await call(server.url, "a_echo")).status
                metrics = (await get(f"{home}/metrics")).body.decode()
                calls = 'trio_vmcp_calls_total{backend="a",method="tools/call",name="a_echo",outcome="ok"} 1.0'
                assert calls in metrics
                assert "process_resident_memory_bytes" in metrics
                (session,) = json.loads((await get(f"{home}/status")).body)["sessions"]
                assert ("modern", "a") == (session["client_era"], session["backends"][0]["id"])


async def test_without_the_extra_there_are_no_metrics(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server runs all the same."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with echo_network() as (network, found), running(setup_of(), found, network) as server:
        home = server.url.removesuffix("/mcp")
        assert 404 == (await get(f"{home}/metrics")).status
        assert 200 == (await call(server.url, "a_echo")).status


async def test_the_session_of_the_lines_with_an_authenticator(tmp_path: Path) -> None:
    """It has no principal, so it is ended; clients need a token."""
    key = make_key()
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [key.jwk()]}))
    words = ["--jwt-issuer", "https://id.test", "--jwt-audience", "front", "--jwks", str(tmp_path / "jwks.json")]
    claims = {"iss": "https://id.test", "aud": "front", "sub": "alice", "exp": time.time() + 60}
    async with open_memory_network() as network:
        backend = echo_backend()
        found = Found((Backend("a", network.attach("http://a.test/mcp", backend)),))
        async with running(setup_of(*words), found, network) as server:
            assert ["a: connected (legacy, 1 tools)", f"listening on {server.url}"] == server.out.lines
            assert (1, {}) == (len(backend.deleted_sessions), backend.sessions)
            assert 401 == (await post(server.url, INITIALIZE)).status
            token = {"authorization": f"Bearer {make_token(key, claims)}"}
            assert 200 == (await post(server.url, INITIALIZE, token)).status
            assert "Bearer ${TOKEN}" in server.log.getvalue()


async def test_another_instance_goes_on_with_sessions(tmp_path: Path) -> None:
    """With --redis sessions are only suspended; ids begin with the instance."""
    with serve_redis(tmp_path) as redis:
        async with echo_network() as (network, found):
            async with running(setup_of("--redis", redis.url, "--instance", "one"), found, network) as server:
                session_id = (await post(server.url, INITIALIZE)).headers["mcp-session-id"]
            assert session_id.startswith("one.")
            headers = {"mcp-session-id": session_id}
            async with running(setup_of("--redis", redis.url, "--instance", "two"), found, network) as server:
                ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
                assert {} == (await post(server.url, ping, headers)).result
                assert 404 == (await post(server.url, ping, {"mcp-session-id": "one.other"})).status


async def test_changes_of_the_file_reach_clients(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With --watch a session that is live gets the servers that the file has now; a bad file changes nothing, and the
    secrets of a new entry are not shown.
    """
    async with echo_network() as (network, _):
        other = network.attach("http://b.test/mcp", echo_backend())
        config = config_of(tmp_path, {"mcpServers": {"a": {"url": "http://a.test/mcp"}}})
        plan = parse_plan(["serve", "--config", config, "--watch", "--port", "0"])
        assert plan.serve is not None
        found = find_servers(plan.servers, {})
        async with running(prepare(plan.serve, {}), found, network) as server:
            session = {"mcp-session-id": (await post(server.url, INITIALIZE)).headers["mcp-session-id"]}

            async def tools() -> list[str]:
                listed = await post(server.url, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, session)
                return sorted(tool["name"] for tool in listed.result["tools"])

            assert ["a_echo"] == await tools()
            headers = {"authorization": "Bearer c4nary-s3cret"}
            config_of(tmp_path, {"mcpServers": {"b": {"url": other, "headers": headers}}})
            await trio.sleep(3)
            assert ["b_echo"] == await tools()
            config_of(tmp_path, "{ c4nary")
            await trio.sleep(3)
            assert ["b_echo"] == await tools()
            assert "mcp.json: added b; removed a" in server.log.getvalue()
            assert "nothing is changed: " in server.log.getvalue()
            assert "c4nary" not in server.log.getvalue()
            assert "[secret]" == server.view.safe.line("c4nary-s3cret")
        assert server.url in server.out.lines[-1]


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "::1"])
async def test_the_given_host_may_be_named(host: str) -> None:
    """Requests to the url of the last line are taken, and those that name another host are not."""
    async with echo_network() as (network, found):
        async with running(setup_of("--host", host, "--allowed-host", "gateway.test"), found, network) as server:
            assert 200 == (await post(server.url, INITIALIZE)).status
            assert 200 == (await post(server.url, INITIALIZE, {"host": "gateway.test:80"})).status
            assert 403 == (await post(server.url, INITIALIZE, {"host": "evil.test"})).status


async def test_a_port_in_use() -> None:
    """Status 1 and one line, before any backend is connected."""
    async with echo_network() as (network, found):
        out, log = Screen(), io.StringIO()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            outcome = await run_server(
                setup_of("--port", str(port)), found, PlainView(out, log), transport=network.transport()
            )
        assert (1, []) == (outcome.status, out.lines)
        assert [
            f"trio-vmcp: cannot listen on 127.0.0.1, port {port}: Address already in use"
        ] == log.getvalue().splitlines()


def config_of(folder: Path, content: object = None) -> str:
    path = folder / "mcp.json"
    entry = {"command": sys.executable, "args": [*PYTHON_OPTIONS, str(SERVER)]}
    path.write_text(content if isinstance(content, str) else json.dumps(content or {"mcpServers": {"a": entry}}))
    return str(path)


JWT = ["--jwt-issuer", "https://id.test", "--jwt-audience", "front", "--jwks", "https://id.test/jwks"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "65536"], "--port: '65536' is not"),
        (["--path", "mcp"], "--path: 'mcp' is not a path"),
        (["--path", "/a b"], "path='/a b'"),
        (["--path", "/healthz"], "path='/healthz'"),
        (["--allowed-host", "http://gateway.test/"], "allowed_hosts='http://gateway.test/'"),
        (["--redis", ""], "--redis: is empty"),
        (["--keys", ""], "--keys: is empty"),
        (["--instance", " "], "--instance: is empty"),
        (["--jwt-issuer", "", "--jwt-audience", "", "--jwks", ""], "--jwt-issuer: is empty"),
        (["--naming", "best"], "--naming: invalid choice"),
        (["--host", "0.0.0.0"], "--insecure-no-auth"),
        (["--host", "gateway.test"], "--insecure-no-auth"),
        (["--jwt-issuer", "https://id.test"], "go together"),
        ([*JWT[:-1], "http://id.test/jwks"], "https"),
        ([*JWT[:-1], "no-such-file"], "no-such-file"),
        (["--redis", "redis://127.0.0.1", *JWT], "TRIO_VMCP_KEYS"),
        (["--redis", "http://127.0.0.1"], "redis://"),
        (["--keys", "no-such-file"], "--keys no-such-file: cannot be read"),
        (["--instance", "a.b"], "instance='a.b'"),
        (["--config", "-", "--watch"], "--watch"),
        (["--config", "-", "--stdio"], "--stdio"),
        (["--stdio", "--port", "1"], "--port has no effect"),
        (["--stdio", *JWT], "--jwt-issuer has no effect"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_bad_arguments(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and one line that says what is wrong."""
    statuses: list[object] = []
    try:
        statuses.append(main(["serve", "--config", config_of(tmp_path), *words]))
    except SystemExit as end:
        statuses.append(end.code)
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert ([2], "") == (statuses, captured.out)
    assert line.startswith("trio-vmcp")
    assert told in line


@pytest.mark.parametrize(
    ("package", "words", "told"),
    [
        ("cryptography", [], "serve needs cryptography: pip install 'trio-vmcp[serve]'"),
        ("hypercorn", [], "serve needs hypercorn: pip install 'trio-vmcp[serve]'"),
        ("jwt", JWT, "JwtAuthenticator needs PyJWT and cryptography: pip install 'trio-vmcp[serve]'"),
    ],
)
def test_an_extra_that_is_not_installed(package: str, words: list[str], told: str, tmp_path: Path) -> None:
    """Status 2, and one line that says what to install. In a process of its own, which has loaded neither."""
    program = f"import sys; sys.modules[{package!r}] = None; from trio_vmcp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", "--config", config_of(tmp_path), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (2, "", f"trio-vmcp: {told}\n") == (ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("key", ["", KEY[1:], f"{KEY}\nshort"])
@pytest.mark.parametrize("place", ["file", "environment"])
def test_bad_keys(
    key: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too short a key, or none in a file, is status 2, and no key is shown."""
    words = ["serve", "--config", config_of(tmp_path, {})]
    if place == "file":
        (tmp_path / "keys").write_text(key)
        words += ["--keys", str(tmp_path / "keys")]
    else:
        monkeypatch.setenv("TRIO_VMCP_KEYS", key or " ")
    assert 2 == main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert KEY[1:] not in line


@pytest.mark.parametrize("text", ["{", "[]", '{"mcpServers": {"a": 1}}', '{"mcpServers": {"a": {"url": "ftp://x"}}}'])
def test_a_bad_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No JSON, or a malformed entry: status 2 and one line."""
    assert 2 == main(["serve", "--config", config_of(tmp_path, text)])
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, len(captured.err.splitlines()))


def test_a_stdin_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and status 2: another file of the program may have its number by now."""
    monkeypatch.setattr(sys, "stdin", None)
    assert 2 == main(["serve", "--stdio", "--config", config_of(tmp_path, {})])
    captured = capsys.readouterr()
    assert ("", "trio-vmcp: --stdio needs stdin, which is closed\n") == (captured.out, captured.err)


def test_what_options_ask_for(tmp_path: Path) -> None:
    """Keys come from the file or else from the environment; sessions outlive the process with --redis alone."""
    (tmp_path / "keys").write_text(f"{KEY}\n\n{KEY[::-1]}x\n")
    setup = setup_of("--keys", str(tmp_path / "keys"), environment={"TRIO_VMCP_KEYS": "y" * 32})
    assert (KEY.encode(), f"{KEY[::-1]}x".encode()) == setup.factory.identity_keys
    shared = setup_of("--redis", "redis://127.0.0.1", *JWT, environment={"TRIO_VMCP_KEYS": f"{KEY} {'y' * 32}"})
    assert (KEY.encode(), b"y" * 32) == shared.factory.identity_keys
    assert ("terminate", "suspend") == (setup.factory.on_exit, shared.factory.on_exit)
    assert "/other" == setup_of("--path", "/other/").front.path
    namings = [setup_of("--naming", name).factory.conflict_resolution for name in ("prefix", "bare", "priority")]
    assert [Prefix(), Bare(), Priority()] == namings
    assert "0.0.0.0" in setup_of("--host", "0.0.0.0", "--insecure-no-auth").front.allowed_hosts


def test_a_file_without_usable_entries_is_served(tmp_path: Path) -> None:
    """Other commands have nothing to do then; a server may get entries later, and says which it cannot use."""
    plan = parse_plan(["serve", "--config", config_of(tmp_path, {"mcpServers": {"a": {"url": "http://x/${NO}"}}})])
    found = find_servers(plan.servers, {}, needs_one=False)
    assert ((), ["a"]) == (found.backends, [each.id for each in found.skipped])


@every_signal
def test_a_signal_ends_the_server(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 0, in every moment from the line "listening" on."""
    screen = Screen(lambda url: signal.raise_signal(getattr(signal, number)))
    monkeypatch.setattr(sys, "stdout", screen)
    assert 0 == main(["serve", "--config", config_of(tmp_path), "--port", "0"])
    assert screen.lines[-1].startswith("listening on http://127.0.0.1:")
    assert "a: connected (legacy, " in screen.lines[0]


async def test_one_client_on_two_streams(autojump_clock: MockClock) -> None:
    """With --stdio: no endpoint and no session but the client's own, which is never too old or idle. The lines of
    backends stand on stderr, and the end of the client's stream is status 0.
    """
    to_server, receive = memory_stream_one_way_pair()
    send, from_server = memory_stream_one_way_pair()
    out, log, outcomes = Screen(), io.StringIO(), list[CommandOutcome]()
    plan = parse_plan(["serve", "--config", "file", "--stdio"])
    assert plan.serve is not None
    setup = prepare(plan.serve, {})

    async def serve() -> None:
        view, transport = PlainView(out, log), network.transport()
        outcomes.append(await run_server(setup, found, view, transport=transport, streams=lambda: (receive, send)))
        await send.aclose()

    async with echo_network() as (network, found), trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await to_server.send_all(json.dumps(INITIALIZE).encode() + b"\n")
        await from_server.receive_some()
        assert MOST_YOUNG == gc.get_threshold()[0]
        await trio.sleep_until(trio.current_time() + 90_000)
        asked = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        await to_server.send_all(json.dumps(asked).encode() + b"\n")
        await to_server.aclose()
        (line,) = b"".join([piece async for piece in from_server]).splitlines()
        assert ["a_echo"] == [tool["name"] for tool in json.loads(line)["result"]["tools"]]
    assert [0] == [outcome.status for outcome in outcomes]
    assert ["a: connected (legacy, 1 tools)"] == out.lines
