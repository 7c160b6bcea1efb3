"""The signals that end the command: exit statuses, a close in order, and no server process left behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import trio
from support.processes import PYTHON_OPTIONS, Children
from trio.testing import MockClock

from trio_vmcp import JSON, Backend, FactorySettings, open_session_factory
from trio_vmcp._cli.command import until_interrupted
from trio_vmcp._cli.requests import CommandOutcome
from trio_vmcp._cli.signals import EndingSignals, catching_signals
from trio_vmcp.cli import main
from trio_vmcp.testing import CallContext, Hang, ScriptedBackend, open_memory_network

SETTINGS = FactorySettings()
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
every_signal = pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.kill_all()


def config_of(folder: Path, children: Children, code: str) -> str:
    """A file with one server, a Python program of this code."""
    server = {"command": sys.executable, "args": [*PYTHON_OPTIONS, "-c", code], "env": {"TEST_MARK": children.mark}}
    path = folder / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"a": server}}))
    return str(path)


SIGNALS_AT_ONCE = "import os, sys; os.kill(os.getppid(), {number}); sys.stdin.read()"


@pytest.mark.parametrize("command", [["check"], ["call", "a_echo", "{}"]], ids=lambda command: str(command[0]))
@every_signal
def test_a_signal_while_the_session_opens(
    number: signal.Signals,
    command: list[str],
    children: Children,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server has started and has not answered yet. It is ended, the status names the signal, and with --json stdout
    is one document; afterwards the handlers of the process are as they were.
    """
    before = [signal.getsignal(each) for each in STATUSES]
    config = config_of(tmp_path, children, SIGNALS_AT_ONCE.format(number=int(number)))
    assert STATUSES[number] == main([*command, "--config", config, "--json"])
    assert not json.loads(capsys.readouterr().out)["ok"]
    assert [] == children.alive()
    assert before == [signal.getsignal(each) for each in STATUSES]


@every_signal
def test_a_signal_while_the_file_is_read(number: signal.Signals, tmp_path: Path) -> None:
    """No session is open yet: the file is a pipe that no process writes to, and the signal ends the wait for it."""
    pipe = tmp_path / "mcp.json"
    os.mkfifo(pipe)
    pid = os.getpid()
    killer = subprocess.Popen([sys.executable, *PYTHON_OPTIONS, "-c", _KILL_READER, str(pipe), str(pid), str(number)])
    try:
        assert STATUSES[number] == main(["check", "--config", str(pipe)])
    finally:
        killer.wait()


# Opening a pipe for writing waits until it is open for reading.
_KILL_READER = "import os, sys; pipe = open(sys.argv[1], 'w'); os.kill(int(sys.argv[2]), int(sys.argv[3]))"


@pytest.mark.parametrize("moment", ["call", "close"])
@every_signal
async def test_a_signal_later(
    number: signal.Signals, moment: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """During a call, and while the close waits for a call: the backend session is deleted, within a close's bounds."""
    server = ScriptedBackend(name="a")

    async def nap(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(3600)
        return "rested"

    async def raise_after(seconds: float) -> None:
        await trio.sleep(seconds)
        signal.raise_signal(number)

    async def call_for_an_hour(url: str) -> CommandOutcome:
        async with (
            open_session_factory(settings=SETTINGS, transport=network_transport) as factory,
            factory.open_session([Backend(id="a", url=url)]) as session,
            trio.open_nursery() as calls,
        ):
            calls.start_soon(session.call_tool, "a_nap")
            await trio.sleep(0.5)
            if moment == "close":
                await session.aclose(drain_timeout=3600)
            else:
                await trio.sleep_forever()
        return CommandOutcome(0, {})

    server.add_tool("nap", nap)
    async with open_memory_network() as network:
        network_transport = network.transport()
        url = network.attach("a.test", server)
        nursery.start_soon(raise_after, 1.0)
        begun_at = trio.current_time()
        outcome = await until_interrupted(lambda: call_for_an_hour(url))
        assert STATUSES[number] == outcome.status
        assert (
            trio.current_time() - begun_at <= 1 + FactorySettings().drain_timeout + FactorySettings().teardown_timeout
        )
        assert ["a-session-1"] == server.deleted_sessions


async def test_a_signal_after_the_work_counts(autojump_clock: MockClock) -> None:
    """A signal in the last step of the work still is what ended the command."""

    async def work() -> CommandOutcome:
        await trio.lowlevel.checkpoint()
        signal.raise_signal(signal.SIGTERM)
        return CommandOutcome(0, {})

    assert 143 == (await until_interrupted(work)).status


# A module in front of the real one, which takes its own place again.
SIGNALS_WHEN_IMPORTED = """
import importlib, os, sys
os.kill(os.getpid(), {number})
del sys.path[sys.path.index(os.path.dirname(__file__))], sys.modules["attrs"]
importlib.import_module("attrs")
"""


ENTRIES = {"module": ["-m", "trio_vmcp"], "script": ["-c", "from trio_vmcp.cli import main; raise SystemExit(main())"]}


@pytest.mark.parametrize(
    ("entry", "number"), [("module", signal.SIGINT), ("script", signal.SIGINT), ("script", signal.SIGTERM)]
)
def test_a_signal_while_modules_are_imported(entry: str, number: signal.Signals, tmp_path: Path) -> None:
    """The first 0.3 s of the command are imports: of the library's first dependency, here. No traceback is printed."""
    (tmp_path / "attrs.py").write_text(SIGNALS_WHEN_IMPORTED.format(number=int(number)))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, *ENTRIES[entry], "check", "--config", str(tmp_path / "none"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (STATUSES[number], "") == (done.returncode, done.stderr)
    assert not json.loads(done.stdout)["ok"]


@pytest.mark.parametrize("moment", ["call", "opening"])
@every_signal
async def test_a_close_after_a_signal_is_told(
    number: signal.Signals, moment: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """One line when the close begins, which says how it is cut short: a close may take as long as its timeouts."""
    server, told, at = ScriptedBackend(name="a"), list[str](), list[float]()

    async def nap(arguments: JSON, context: CallContext) -> str:
        await trio.sleep(3600)
        return "rested"

    async def raise_after(seconds: float) -> None:
        await trio.sleep(seconds)
        signal.raise_signal(number)

    def tell(text: str) -> None:
        told.append(text)
        at.append(trio.current_time())

    async def work() -> CommandOutcome:
        async with (
            open_session_factory(settings=SETTINGS, transport=network.transport()) as factory,
            factory.open_session([Backend(id="a", url=url)]) as session,
        ):
            await session.call_tool("a_nap", timeout=math.inf)
        return CommandOutcome(0, {})

    server.add_tool("nap", nap)
    if moment == "opening":
        server.fail("POST", Hang())
    async with open_memory_network() as network:
        url = network.attach("a.test", server)
        nursery.start_soon(raise_after, 1.0)
        assert STATUSES[number] == (await until_interrupted(work, tell=tell)).status
    name = "Ctrl-C" if number is signal.SIGINT else number.name
    assert ([f"closing the session after {name}; {name} again ends at once"], [1.0]) == (told, at)


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(os.getppid(), signal.SIGINT)
sys.stdin.read()  # Ends when the command closes its session, so after the first signal.
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


def test_a_second_signal_ends_the_command_at_once(children: Children, tmp_path: Path) -> None:
    """The server stays when its stdin ends, and at SIGTERM: a close would wait for it. It is killed instead."""
    config = config_of(tmp_path, children, STUBBORN)
    program = f"from trio_vmcp.cli import main; raise SystemExit(main(['check', '--config', {config!r}]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=30)
    assert (143, b"") == (done.returncode, done.stdout)
    assert b"trio-vmcp: closing the session after Ctrl-C; Ctrl-C again ends at once\n" in done.stderr
    assert trio.run(children.all_gone)


def test_a_second_signal_within_the_handler_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs handlers between any two steps, also of a handler. Such a signal, too, ends the command at once."""
    signals = EndingSignals(on_first=list)
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    second = [signal.SIGTERM]

    def interrupt(frame: FrameType, event: str, argument: object) -> None:
        if second and event == "call" and frame.f_code is not EndingSignals.handle.__code__:
            signals.handle(second.pop(), None)

    sys.setprofile(interrupt)
    try:
        signals.handle(signal.SIGINT, None)
    finally:
        sys.setprofile(None)
    assert [143] == statuses


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup` starts a command with SIGHUP ignored, so that it outlives the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catching_signals():
            assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
            assert signal.SIG_IGN is not signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_terminal_is_lost_with_its_window() -> None:
    """After SIGHUP a write to the closed terminal would be an error, and end the close half-way."""
    window, terminal = os.openpty()
    try:
        signals = EndingSignals(on_first=list, outputs=(terminal,))
        os.close(window)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(terminal, b"x")
        signals.handle(signal.SIGHUP, None)
        assert 1 == os.write(terminal, b"x")
    finally:
        os.close(terminal)
