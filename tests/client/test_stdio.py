"""Backends that are child processes: real ones. However a connection ends, no process is left.

These tests run in real time, since a mock clock does not wait for processes. Limits are far from the measured times.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.clients import Bench, ask, call, no_progress, sole_error
from support.processes import Children, marked_children, zombies
from trio.testing import wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ClientHandlers,
    FactorySettings,
    FailureReason,
    LocalStorage,
    MessageTooLarge,
    ServerRequest,
    Session,
    SessionChange,
    open_session_factory,
)
from trio_vmcp._client.built_in import BuiltInConnector
from trio_vmcp._client.channels.process import child_environment, given_environment
from trio_vmcp._protocol.eras import Verdict

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

QUICK = FactorySettings(teardown_timeout=0.4)
STRIDE = 8  # tests that share the steps of a sweep


@pytest.fixture
def children() -> Iterator[Children]:
    with marked_children() as children:
        yield children


@asynccontextmanager
async def open_children(
    children: Children, *flags: str, settings: FactorySettings = QUICK, **options: Any
) -> AsyncIterator[Bench]:
    """A bench for one backend. At its end every client is closed and no process is left."""
    connector = BuiltInConnector(settings)
    with sole_error():
        async with trio.open_nursery() as nursery:
            bench = Bench(connector, children.backend(*flags, **options), nursery)
            yield bench
            for client in bench.clients:
                await client.aclose(terminate=True)
        assert await children.all_gone()


async def pid_of(client: Any) -> int:
    return int((await call(client, "pid"))["content"][0]["text"])


# Normal use


async def test_calls_go_to_a_child_and_its_end_is_ours(children: Children) -> None:
    """Handshake, listing, a call; after the close the process has ended and was waited for."""
    async with open_children(children) as bench:
        client = await bench.connect()
        assert "echo" == (await ask(client, "tools/list"))["tools"][0]["name"]
        assert '{"a": 1}' == (await call(client, arguments={"a": 1}))["content"][0]["text"]
        assert ("legacy", None) == (client.record.era, client.record.session_id)
        (pid,) = children.alive()
        assert pid == await pid_of(client)
        await client.aclose(terminate=False)
        assert [] == children.alive() + zombies()
        with pytest.raises(BackendUnavailable, match="is not connected: it was closed"):
            await call(client)


async def test_it_leads_a_group_of_its_own(children: Children) -> None:
    """The child leads a process group: Ctrl-C at our terminal does not reach it, and one signal reaches all that it
    starts.
    """
    async with open_children(children) as bench:
        pid = await pid_of(await bench.connect())
        assert pid == os.getpgid(pid) == os.getsid(pid) != os.getpgrp()


async def test_calls_of_many_callers_share_it(children: Children) -> None:
    """Also large messages, which fill the pipe in either direction."""
    async with open_children(children) as bench:
        client = await bench.connect()

        async def caller(number: int) -> None:
            size = 300_000 if number % 5 == 0 else 10
            arguments = {"n": number, "filler": "x" * size}
            assert arguments == json.loads((await call(client, arguments=arguments))["content"][0]["text"])

        async with trio.open_nursery() as callers:
            for number in range(40):
                callers.start_soon(caller, number)


async def test_progress_and_cancel_work_over_pipes(children: Children) -> None:
    """Progress comes in order, and a cancelled call is cancelled at the server."""
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with open_children(children) as bench:
        client = await bench.connect()
        await call(client, "steps", on_progress=on_progress)
        assert [1, 2, 3] == heard
        with pytest.raises(BackendTimeout):
            await call(client, "hang", timeout=0.05)
        with trio.move_on_after(0.05):
            await call(client, "hang", on_progress=no_progress)
        seen = json.loads((await call(client, "seen"))["content"][0]["text"])
        assert 2 == sum(isinstance(method, list) for method in seen)


# Its environment


async def test_the_environment_is_not_inherited(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a safe list is inherited; the variables in the configuration are added, and replace inherited ones."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("TERM", "ours")
    async with open_children(children, env={"TOKEN": "t", "TERM": "theirs"}) as bench:
        client = await bench.connect()
        found = json.loads((await call(client, "env"))["content"][0]["text"])
    assert ("t", "theirs", "C") == (found["TOKEN"], found["TERM"], found["LC_TIME"])
    assert os.environ["PATH"] == found["PATH"]
    assert "canary" not in found.values()
    known = {"HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER", "TOKEN", "TEST_MARK"}
    assert set() == {name for name in found if name not in known and not name.startswith("LC_")}


def test_the_safe_list_is_exact() -> None:
    """No other variable of a large environment is passed."""
    names = ["HOME", "PATH", "LC_ALL", "LANG", "PYTHONPATH", "SSH_AUTH_SOCK", "LD_PRELOAD", "HTTP_PROXY", "home"]
    assert {"HOME", "PATH", "LC_ALL", "LANG", "X"} == set(child_environment(dict.fromkeys(names, "v"), {"X": "1"}))


@pytest.mark.parametrize(
    ("inherit_env", "more"),
    [
        ((), set()),
        (["PYTHONPATH"], {"PYTHONPATH"}),
        (["MY_*"], {"MY_A", "MY_B"}),
        (["MY_?", "X"], {"MY_A", "MY_B", "X"}),
        (["MY_[!A]", "my_a"], {"MY_B", "my_a"}),
        (["my_*"], {"my_a"}),
        (["G[0]"], {"G[0]"}),
        (["absent", "HOME"], set()),
        (["*"], {"PYTHONPATH", "MY_A", "MY_B", "my_a", "X", "G[0]"}),
    ],
)
def test_what_a_child_inherits_by_name(inherit_env: Sequence[str], more: set[str]) -> None:
    """Exact names and globs, where upper and lower case differ, beside the safe list; `env` wins."""
    backend = Backend(id="b", transport="stdio", command="x", inherit_env=inherit_env, env={"X": "1", "HOME": "own"})
    process = dict.fromkeys(["HOME", "PATH", "PYTHONPATH", "MY_A", "MY_B", "my_a", "X", "G[0]"], "inherited")
    found = child_environment(process, given_environment(process, backend))
    expected = dict.fromkeys({"PATH", *more}, "inherited") | {"X": "1", "HOME": "own"}
    assert expected == found


async def test_a_child_inherits_what_it_is_given(
    children: Children, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the variable is when the child starts. Its value is not shown: the child's last words have the name."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.client.stdio")
    options: dict[str, Any] = {"inherit_env": ["MY_*"], "env": {"MY_OWN": "mine"}}
    async with open_children(children, **options) as bench:
        for value in ("canary-first", "canary-second"):
            monkeypatch.setenv("MY_TOKEN", value)
            monkeypatch.setenv("MY_OWN", "inherited")
            client = await bench.connect()
            found = json.loads((await call(client, "env"))["content"][0]["text"])
            assert (value, "mine") == (found["MY_TOKEN"], found["MY_OWN"])
    monkeypatch.setenv("MY_TOKEN", "cannot find the config")  # the child's last words
    async with open_children(children, "dead", **options) as bench:
        with pytest.raises(BackendUnavailable) as caught:
            await bench.connect()
    assert caught.value.detail.endswith("'$MY_TOKEN'")
    assert "canary" not in repr(bench.backend) + caplog.text
    assert "cannot find the config" not in caplog.text


async def test_it_runs_where_it_is_told_to(children: Children, tmp_path: Path) -> None:
    """In `cwd`, also for a command that is relative to it."""
    script = tmp_path / "server"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S {children.backend().args[2]}\n")
    script.chmod(0o755)
    async with open_children(children, command="./server", args=(), cwd=str(tmp_path)) as bench:
        pid = await pid_of(await bench.connect())
        assert str(tmp_path) == os.readlink(f"/proc/{pid}/cwd")


# What cannot be started


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"command": "no-such-command"}, "could not be started: command 'no-such-command': No such file or directory"),
        ({"command": "/"}, "could not be started: command '/': Permission denied"),
        ({"cwd": "/no/such/place"}, "could not be started: directory '/no/such/place': No such file or directory"),
    ],
)
async def test_what_cannot_be_started_is_unreachable(options: dict[str, Any], detail: str, children: Children) -> None:
    """The error names the missing file; the session opens without the backend."""
    backend = children.backend(**options)
    async with open_session_factory(settings=QUICK) as factory, factory.open_session([backend]) as session:
        (failure,) = session.failures
        assert (FailureReason.UNREACHABLE, detail) == (failure.reason, failure.detail)
    assert await children.all_gone()


@pytest.mark.parametrize("flags", [["dead"], ["flood", "dead"]])
async def test_one_that_dies_at_once_says_why(
    flags: list[str], children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    """The error has the exit status and the end of stderr, however much was in the pipe; the log has it at DEBUG."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.client.stdio")
    async with open_children(children, *flags) as bench:
        with pytest.raises(BackendUnavailable) as caught:
            await bench.connect()
    assert "ended with status 3 before it answered 'initialize'; its last words" in caught.value.detail
    assert caught.value.detail.endswith("'cannot find the config'")
    assert "flood" in flags or "backend 'b': cannot find the config" in caplog.messages


async def test_a_silent_one_is_given_up(children: Children) -> None:
    """The caller's deadline for the connection holds."""
    async with open_children(children, "silent") as bench:
        with trio.move_on_after(0.2) as scope:
            await bench.connect()
        assert scope.cancelled_caught


# Eras


async def test_the_modern_era_is_found_and_its_opposite(children: Children) -> None:
    """`server/discover` first; a server that does not know it gets the handshake. The verdict is cached."""
    for flags, era in ((["modern"], "modern"), ([], "legacy")):
        async with open_children(children, *flags, era="auto") as bench:
            client = await bench.connect()
            assert era == client.record.era
            await call(client)
            if era == "legacy":
                again = await bench.connect()
                seen = json.loads((await call(again, "seen"))["content"][0]["text"])
                assert "initialize" == seen[0]


@pytest.mark.parametrize("flags", [["mute"], ["fragile"], ["fragile", "late"]])
async def test_a_question_that_is_not_answered_is_no_obstacle(flags: list[str], children: Children) -> None:
    """The probe's time runs out and the handshake follows; a server that exits at the probe, however late, is started
    once more, and the verdict is cached.
    """
    patience = 30.0 if flags == ["fragile"] else 0.6
    settings = FactorySettings(backend_init_timeout=patience, teardown_timeout=0.4)
    async with open_children(children, *flags, era="auto", settings=settings) as bench:
        client = await bench.connect()
        assert "legacy" == client.record.era
        await call(client)
        if "fragile" in flags:
            assert [Verdict.LEGACY] == list(bench.connector.verdicts._verdicts.values())
            seen = json.loads((await call(await bench.connect(), "seen"))["content"][0]["text"])
            assert "initialize" == seen[0]


async def test_one_that_dies_of_everything_is_unreachable(children: Children) -> None:
    """After two attempts."""
    async with open_children(children, "dead", era="auto") as bench:
        with pytest.raises(BackendUnavailable, match="ended with status 3"):
            await bench.connect()


async def test_a_pinned_era_is_not_discussed(children: Children) -> None:
    """A server of the other era is refused."""
    async with open_children(children, era="modern") as bench:
        with pytest.raises(BackendRejected, match="no server/discover"):
            await bench.connect()
    async with open_children(children, "modern", era="legacy") as bench:
        with pytest.raises(BackendRejected, match="no initialize"):
            await bench.connect()
    async with open_children(children, "modern", era="modern") as bench:
        assert "2026-07-28" == (await bench.connect()).record.protocol_version


async def test_a_verdict_that_proves_wrong_is_corrected(children: Children) -> None:
    """The same command line ran a legacy server before and a modern one now, and the other way round."""
    async with open_children(children, era="auto") as bench:
        flags = children.backend("modern", era="auto")
        endpoint_of_both = bench.connector
        assert "legacy" == (await bench.connect()).record.era
        (endpoint,) = endpoint_of_both.verdicts._verdicts
        new = await bench.connect(backend=flags)
        (other,) = set(endpoint_of_both.verdicts._verdicts) - {endpoint}
        verdicts = endpoint_of_both.verdicts._verdicts
        verdicts[endpoint], verdicts[other] = verdicts[other], verdicts[endpoint]
        assert "modern" == new.record.era
        assert "modern" == (await bench.connect(backend=flags)).record.era
        assert "legacy" == (await bench.connect()).record.era


# The end of the process


async def test_the_end_of_its_stdin_is_enough(children: Children) -> None:
    """A server that exits at the end of its stdin is not waited for, whatever the time limit."""
    async with open_children(children, settings=FactorySettings(teardown_timeout=60)) as bench:
        client = await bench.connect()
        started = trio.current_time()
        await client.aclose(terminate=True)
        assert trio.current_time() - started < 2


@pytest.mark.parametrize("flags", [["stubborn"], ["deaf"], ["fork"], ["stubborn", "fork"], ["flood"]])
async def test_a_process_that_does_not_exit_is_killed(flags: list[str], children: Children) -> None:
    """A server that ignores the end of its stdin, or SIGTERM, too, or a grandchild that holds the pipes, is ended in
    bounded time.
    """
    async with open_children(children, *flags) as bench:
        client = await bench.connect()
        await call(client)
        assert len(children.alive()) == (2 if "fork" in flags else 1)
        started = trio.current_time()
        await client.aclose(terminate=True)
        assert trio.current_time() - started < 3
        assert await children.all_gone()


async def test_a_grandchild_that_moved_away_does_not_hold_up_the_end(children: Children) -> None:
    """A grandchild in another session holds the pipes: the close waits for the exit of the child, not for the end of
    its output.
    """
    async with open_children_session(children, "fork", "detached") as session:
        pid = await session_pid(session)
        started = trio.current_time()
        with pytest.raises(BackendUnavailable, match="ended with status 7"):
            await session.call_tool("b_die")
        await session.aclose()
        assert trio.current_time() - started < 2
        assert pid not in children.alive()
        children.kill_all()  # it is neither in the group nor reachable by a pipe


async def test_a_cancelled_close_kills(children: Children) -> None:
    """A cancelled close kills the process group at once."""
    settings = FactorySettings(teardown_timeout=60)
    async with open_children(children, "stubborn", settings=settings) as bench:
        client = await bench.connect()
        started = trio.current_time()
        with trio.move_on_after(0.1):
            await client.aclose(terminate=True)
        await client.aclose(terminate=True)
        assert trio.current_time() - started < 2


async def test_a_cancel_of_its_nursery_ends_it(children: Children) -> None:
    """Cancelling the nursery that owns the process ends the process, although the client was not closed."""
    async with trio.open_nursery() as nursery:
        bench = Bench(BuiltInConnector(QUICK), children.backend("deaf"), nursery)
        await bench.connect()
        nursery.cancel_scope.cancel()
    assert await children.all_gone()


@pytest.mark.parametrize("first", range(STRIDE))
async def test_cancelled_anywhere_it_leaves_nothing(first: int, children: Children) -> None:
    """Cancelled after each step of connecting, calling and closing, it leaves no process."""

    async def live(bench: Bench) -> None:
        client = await bench.connect()
        await call(client)
        await client.aclose(terminate=True)

    done = False
    for moment in range(first, 400, STRIDE):
        async with trio.open_nursery() as nursery:
            cut = _CancelAfter(moment, nursery.cancel_scope)
            trio.lowlevel.add_instrument(cut)
            try:
                await live(Bench(BuiltInConnector(QUICK), children.backend(), nursery))
                done = True
            finally:
                trio.lowlevel.remove_instrument(cut)
            nursery.cancel_scope.cancel()
        assert await children.all_gone(), moment
        if done and cut.seen < moment:
            break
    assert done


class _CancelAfter(trio.abc.Instrument):
    def __init__(self, moment: int, scope: trio.CancelScope) -> None:
        self.moment, self.scope, self.seen = moment, scope, 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen += 1
        if self.seen == self.moment:
            self.scope.cancel()


# Failures of the process


@asynccontextmanager
async def open_children_session(
    children: Children,
    *flags: str,
    settings: FactorySettings = QUICK,
    handlers: ClientHandlers | None = None,
    **options: Any,
) -> AsyncIterator[Session]:
    """A session over one child. At its end no process is left."""
    async with open_session_factory(settings=settings, handlers=handlers) as factory:
        async with factory.open_session([children.backend(*flags, **options)]) as session:
            yield session
    assert await children.all_gone()


async def session_pid(session: Session) -> int:
    return int((await session.call_tool("b_pid")).content[0]["text"])


async def test_a_child_may_ask(children: Children) -> None:
    """The handler is told its session, and the child gets the answer."""
    asked: list[ServerRequest] = []

    async def roots(request: ServerRequest) -> JSON:
        asked.append(request)
        return {"roots": [{"uri": "file:///x"}]}

    async with open_children_session(children, handlers=ClientHandlers(roots=roots)) as session:
        answer = await session.call_tool("b_ask")
        assert {"roots": [{"uri": "file:///x"}]} == json.loads(answer.content[0]["text"])
        assert [ServerRequest(session.id, "b", None, {})] == asked


async def test_a_handler_ends_with_the_child_that_asked(children: Children) -> None:
    """The handler is cancelled, since its answer has no receiver; requests of the next process are answered."""
    ended = trio.Event()
    patient = True

    async def roots(request: ServerRequest) -> JSON:
        if patient:
            (pid,) = children.alive()
            os.kill(pid, signal.SIGKILL)
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
        return {"roots": []}

    handlers = ClientHandlers(roots=roots)
    async with open_children_session(children, handlers=handlers) as session, session.changes() as changes:
        with trio.fail_after(20):
            with pytest.raises(BackendUnavailable):
                await session.call_tool("b_ask")
            await ended.wait()
            patient = False
            while session.failures or not children.alive():
                await changes.receive()
            answer = await session.call_tool("b_ask")
        assert {"roots": []} == json.loads(answer.content[0]["text"])


@pytest.mark.parametrize(
    ("tool", "what", "why"),
    [
        ("die", "ended with status 7", "; its last words on stderr: 'about to die', 'of $SECRET'"),
        ("crash", "was ended by signal SIGKILL", ""),
        ("close", "closed its stdout", ""),
    ],
)
async def test_its_end_fails_every_call_in_flight(tool: str, what: str, why: str, children: Children) -> None:
    """Every call in flight fails with the reason, with configured secrets replaced by their names. The session reports
    the failure, and refuses the next call at once.
    """
    errors: list[BackendError] = []

    async def caller(session: Session, name: str) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            await session.call_tool(name)
        errors.append(caught.value)

    async with open_children_session(children, env={"SECRET": "s3cret-value"}) as session:
        async with session.changes() as changes:
            async with trio.open_nursery() as callers:
                callers.start_soon(caller, session, "b_hang")
                callers.start_soon(caller, session, "b_hang")
                await wait_all_tasks_blocked()  # both calls are written
                callers.start_soon(caller, session, f"b_{tool}")
            assert [f"{what} before it answered 'tools/call'{why}"] * 3 == [error.detail for error in errors]
            assert all(error.may_have_executed for error in errors)
            with trio.fail_after(2):
                assert SessionChange("backend", "b") == await changes.receive()
        (failure,) = session.failures
        assert (FailureReason.UNREACHABLE, what + why) == (failure.reason, failure.detail)
        with pytest.raises(BackendUnavailable, match=f"is not connected: it {what}") as caught:
            await session.call_tool("b_echo")
        assert not caught.value.may_have_executed


async def test_killed_from_outside_between_calls_it_is_missed(children: Children) -> None:
    """The session reports the failure although no call runs."""
    async with open_children_session(children) as session, session.changes() as changes:
        os.kill(await session_pid(session), signal.SIGKILL)
        with trio.fail_after(2):
            assert SessionChange("backend", "b") == await changes.receive()
        assert "was ended by signal SIGKILL" == session.failures[0].detail


async def test_what_a_program_of_the_modern_era_changes_is_heard(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new tool is listed, notified and called; after a restart the program is subscribed to again."""
    monkeypatch.setattr("trio_vmcp._session.refresh.REFETCH_INTERVAL", 0.05)  # in real time, like the rest of this file
    delays = FactorySettings(reconnect_delay=0.05, teardown_timeout=0.4)
    options: dict[str, Any] = {"era": "modern", "settings": delays}
    async with open_children_session(children, "modern", "telling", **options) as session, session.changes() as changes:
        for name in ("first", "second"):
            await session.call_tool("b_grow", {"name": name})
            with trio.fail_after(5):
                while f"b_{name}" not in [tool.name for tool in session.tools]:
                    await changes.receive()
            assert not (await session.call_tool(f"b_{name}")).is_error
            os.kill(await session_pid(session), signal.SIGKILL)
            with trio.fail_after(5):
                while await changes.receive() != SessionChange("backend", "b") or not session.failures:
                    pass
                while f"b_{name}" in [tool.name for tool in session.tools]:  # the next process does not have it
                    await changes.receive()


@pytest.mark.parametrize("listens", [True, False])
async def test_a_program_is_subscribed_to_once(children: Children, listens: bool) -> None:
    """One subscription, unless `listen=False`."""
    options: dict[str, Any] = {"era": "modern", "listen": listens}
    async with open_children_session(children, "modern", "telling", **options) as session:
        seen = json.loads((await session.call_tool("b_seen")).content[0]["text"])
        assert int(listens) == seen.count("subscriptions/listen")


async def test_one_that_dies_while_it_is_listed_is_one_failure(
    children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is reported once, with the reason, and the session opens without the backend."""
    async with open_children_session(children, "unlisted") as session:
        (failure,) = session.failures
        assert "ended with status 4 before it answered 'tools/list'" == failure.detail
    assert 1 == sum("is missing" in message for message in caplog.messages)


async def test_a_line_without_end_ends_it(children: Children) -> None:
    """After four times the limit the connection fails with the reason; memory does not grow with the line."""
    settings = FactorySettings(max_message_bytes=100_000, teardown_timeout=0.4)
    async with open_children_session(children, settings=settings) as session, session.changes() as changes:
        with pytest.raises(MessageTooLarge, match=r"\(max_message_bytes\)"):
            await session.call_tool("b_endless")
        with trio.fail_after(3):
            assert SessionChange("backend", "b") == await changes.receive()
        assert r"sent a line of over 4 x 100000 bytes (max_message_bytes)" == session.failures[0].detail


async def test_an_answer_over_the_limit_costs_its_call_alone(children: Children) -> None:
    """The next call works, on the same process."""
    settings = FactorySettings(max_message_bytes=100_000, teardown_timeout=0.4)
    async with open_children_session(children, settings=settings) as session:
        pid = await session_pid(session)
        with pytest.raises(MessageTooLarge, match=r"sent a message of 150\d\d\d bytes \(max_message_bytes\)"):
            await session.call_tool("b_large", {"size": 150_000})
        assert pid == await session_pid(session)


async def test_noise_on_stdout_is_skipped_and_never_shown(children: Children, caplog: pytest.LogCaptureFixture) -> None:
    """A banner before the first message is skipped and not logged, since it may hold secrets."""
    caplog.set_level(logging.DEBUG, "trio_vmcp")
    async with open_children_session(children, "banner") as session:
        await session.call_tool("b_echo")
    assert "backend 'b': skipped a message that is not JSON at character 0" in caplog.messages
    assert "secrets" not in caplog.text


async def test_a_flood_on_stderr_delays_nothing(children: Children, caplog: pytest.LogCaptureFixture) -> None:
    """Three megabytes before the first answer delay nothing."""
    caplog.set_level(logging.DEBUG, "trio_vmcp.client.stdio")
    async with open_children_session(children, "flood") as session:
        assert () == session.failures
        await session.call_tool("b_echo")
    assert 0 < len(caplog.messages) < 1000


# In a session


async def test_a_restored_session_has_a_new_process(children: Children) -> None:
    """The row has no session id of such a backend, and the old process ended at the suspension."""
    storage = LocalStorage()
    backend = children.backend()
    async with open_session_factory(settings=QUICK, storage=storage) as factory:
        session = await factory.make_session([backend])
        first = await session_pid(session)
        (record,) = session.metadata.backends
        assert (None, "legacy") == (record.session_id, record.era)
        assert {} == dict(session.backend_sessions)
        await session.suspend()
        assert await children.all_gone()
        session = await factory.restore_session(session.id, [backend])
        assert first != await session_pid(session)
        await session.aclose()
    assert await children.all_gone()
    await storage.aclose()


async def test_a_close_takes_no_longer_than_its_time(children: Children) -> None:
    """Ten children end side by side within the bounds of the close, however they behave."""
    backends = [children.backend("stubborn", "fork", backend_id=f"b{number}") for number in range(10)]
    async with open_session_factory(settings=FactorySettings(teardown_timeout=0.5)) as factory:
        session = await factory.make_session(backends)
        assert () == session.failures
        started = trio.current_time()
        await session.aclose()
        assert trio.current_time() - started < 1.0
    assert await children.all_gone()


async def test_a_cancelled_factory_leaves_no_process(children: Children) -> None:
    """While one child is in its handshake and another in a call."""
    with trio.move_on_after(0.3):
        async with open_session_factory(settings=QUICK) as factory:
            backends = [children.backend(), children.backend("silent", backend_id="s")]
            session = await factory.make_session(backends)
            await session.call_tool("b_hang")
    assert await children.all_gone()


# A scripted backend as a process


@pytest.mark.parametrize("era", ["legacy", "modern", "both"])
async def test_a_scripted_backend_runs_as_a_process(era: str, children: Children) -> None:
    """`python -m trio_vmcp.testing.stdio` works with this client."""
    command: dict[str, Any] = {
        "command": sys.executable,
        "args": ["-m", "trio_vmcp.testing.stdio", "--era", era, "now", "then"],
    }
    async with open_children_session(
        children, settings=FactorySettings(), **command, era="auto", env={"PYTHONPATH": os.pathsep.join(sys.path)}
    ) as session:
        assert ["b_now", "b_then"] == [tool.name for tool in session.tools]
        assert '{"a": 1}' == (await session.call_tool("b_now", {"a": 1})).content[0]["text"]
        (record,) = session.metadata.backends
        assert ("legacy" if era == "legacy" else "modern") == record.era
