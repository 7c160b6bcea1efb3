"""Servers by other authors as child processes of a session: listed, called, killed, and never left behind."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
from interop.fleet import Era
from interop.outcomes import Outcomes
from interop.programs import MORE_PROGRAMS, PROGRAMS, Program, text_of
from interop.views import PATIENCE
from support.processes import Children, marked_children, zombies

from trio_vmcp import JSON, BackendState, BackendUnavailable, FactorySettings, Session, open_session_factory

BY_NAME = {program.name: program for program in PROGRAMS}
TIME_ERAS = BY_NAME["time"].eras
GIT_ERAS = BY_NAME["git"].eras
SEED = 20260831
KILLS = 3  # of each process
FIRST_ANSWERS = 3  # before a process is killed that is killed once
MOST_WAIT = 0.05  # s from an answer to a kill: a call takes 1 to 20 ms
KILLED_AT_BIRTH = 0.5  # of the successors
MOST_BIRTH = 1.0  # s from a start to a kill: these take 0.2 s to a second to answer the first time
SETTINGS = FactorySettings(reconnect_delay=0.1, reconnect_max_delay=1.0)
# s after a kill: the longest pause before an attempt with its jitter, and time for a start on a busy machine.
BACK_WITHIN = SETTINGS.reconnect_max_delay * 1.2 + 20.0
RETRY_INTERVAL = 0.02  # s between calls while the program is away


@asynccontextmanager
async def open_program(name: str, place: Path, era: Era | None = None) -> AsyncIterator[Session]:
    """A session over one program alone; afterwards none of its processes is left."""
    program = BY_NAME[name]
    program.prepare(place)
    with marked_children() as children:
        async with (
            open_session_factory(settings=FactorySettings(request_timeout=PATIENCE)) as factory,
            factory.open_session([program.backend("it", place, children.mark, era)]) as session,
        ):
            assert () == session.failures
            (record,) = session.metadata.backends
            assert (era or program.eras[-1]) == record.era
            assert children.alive()
            yield session
        assert await children.all_gone()


@pytest.mark.parametrize("era", [*TIME_ERAS, None])
async def test_time(era: Era | None, tmp_path: Path) -> None:
    """mcp-server-time tells the time and converts it, in both eras and by the probe."""
    async with open_program("time", tmp_path, era) as session:
        assert {"it_get_current_time", "it_convert_time"} == {tool.name for tool in session.tools}
        asked_at = datetime.now(UTC)
        told = json.loads(text_of(await session.call_tool("it_get_current_time", {"timezone": "Europe/Paris"})))
        assert "Europe/Paris" == told["timezone"]
        assert timedelta(seconds=PATIENCE) > abs(datetime.fromisoformat(told["datetime"]) - asked_at)
        noon = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        converted = json.loads(text_of(await session.call_tool("it_convert_time", noon)))
        assert "21:00:00+09:00" == converted["target"]["datetime"].partition("T")[2]
        assert (await session.call_tool("it_convert_time", noon | {"time": "noon"})).is_error


@pytest.mark.parametrize("era", GIT_ERAS)
async def test_git(era: Era, tmp_path: Path) -> None:
    """mcp-server-git tells the state of a repository, and commits to it."""
    async with open_program("git", tmp_path, era) as session:
        (tmp_path / "new.txt").write_text("new")
        here: JSON = {"repo_path": str(tmp_path)}
        assert "new.txt" in text_of(await session.call_tool("it_git_status", here))
        for setting in (("user.name", "nobody"), ("user.email", "nobody@localhost")):
            await trio.run_process(["git", "config", *setting], cwd=tmp_path)
        await session.call_tool("it_git_add", here | {"files": ["new.txt"]})
        text_of(await session.call_tool("it_git_commit", here | {"message": "second ☕"}))
        assert "nothing to commit" in text_of(await session.call_tool("it_git_status", here))
        assert "second ☕" in text_of(await session.call_tool("it_git_log", here))
        assert (await session.call_tool("it_git_status", {"repo_path": str(tmp_path / "missing")})).is_error


async def test_memory(tmp_path: Path) -> None:
    """server-memory keeps what it is told."""
    async with open_program("memory", tmp_path) as session:
        entity = {"name": "Łódź", "entityType": "city", "observations": ["has ☕"]}
        text_of(await session.call_tool("it_create_entities", {"entities": [entity]}))
        graph = json.loads(text_of(await session.call_tool("it_read_graph")))
        assert {"entities": [entity], "relations": []} == graph
    async with open_program("memory", tmp_path) as session:
        assert graph == (await session.call_tool("it_read_graph")).structured_content


async def test_filesystem(tmp_path: Path) -> None:
    """server-filesystem writes, reads and lists in its directory, and nowhere else."""
    place, content = tmp_path / "place", "naïve ☕\u2028second line\n" * 5_000  # more than a pipe holds
    place.mkdir()
    async with open_program("filesystem", place) as session:
        written = {"path": str(place / "a.txt"), "content": content}
        text_of(await session.call_tool("it_write_file", written))
        assert content == (place / "a.txt").read_text()
        assert content == text_of(await session.call_tool("it_read_text_file", {"path": str(place / "a.txt")}))
        assert "a.txt" in text_of(await session.call_tool("it_list_directory", {"path": str(place)}))
        outside = written | {"path": str(tmp_path / "outside")}
        assert (await session.call_tool("it_write_file", outside)).is_error
        assert not (tmp_path / "outside").exists()


async def test_the_command_runs_the_programs_of_a_file(tmp_path: Path) -> None:
    """`trio-vmcp check` and `call` with an `mcpServers` file, as other clients have it; no process stays."""
    with marked_children() as children:
        entries = {}
        for program in PROGRAMS:
            place = tmp_path / program.name
            place.mkdir()
            program.prepare(place)
            command, *args = program.command_line(place)
            environment = program.environment(place, children.mark)
            entries[program.name] = {"command": command, "args": args, "env": environment}
        config = tmp_path / "mcp.json"
        config.write_text(json.dumps({"mcpServers": entries}))

        checked = await run_command("check", f"--config={config}")
        statuses = {entry["id"]: entry for entry in checked["backends"]}
        assert entries.keys() == statuses.keys()
        assert dict.fromkeys(entries) == {name: status["failure"] for name, status in statuses.items()}
        assert not children.alive()

        async def call(program: Program) -> None:
            tool, arguments = program.deed(tmp_path / program.name, "called")
            called = await run_command("call", f"{program.name}_{tool}", json.dumps(arguments), f"--config={config}")
            assert program.name == called["backend_id"]
            assert not called["result"].get("isError")
            if program.done is not None:
                assert 1 == program.done(tmp_path / program.name)["called"]

        async with trio.open_nursery() as nursery:
            for program in PROGRAMS:
                nursery.start_soon(call, program)
        assert not children.alive()
        assert not zombies()


@attrs.define(eq=False)
class Doing:
    """One program under a session, and one task that calls one countable tool after another."""

    session: Session
    program: Program
    backend_id: str
    place: Path
    children: Children
    outcomes: Outcomes = attrs.field(factory=Outcomes, init=False)
    stopped: bool = attrs.field(default=False, init=False)

    async def go_on(self) -> None:
        while not self.stopped:
            name = self.outcomes.new_name(self.backend_id)
            tool, arguments = self.program.deed(self.place, name)
            try:
                with self.outcomes.of(name):
                    result = await self.session.call_tool(f"{self.backend_id}_{tool}", arguments, timeout=PATIENCE)
            except BackendUnavailable:
                await trio.sleep(RETRY_INTERVAL)
            else:
                assert self.program.is_done(result, name), result.content

    async def be_killed(self, chance: random.Random) -> None:
        """Time after time at a random moment, and sometimes again when it is just being started."""
        for _ in range(KILLS):
            await trio.sleep(chance.uniform(0, MOST_WAIT))
            await self.die_and_come_back(chance)
        self.stopped = True

    async def be_killed_once(self) -> None:
        """With a call under way, as a rule."""
        await self.until(lambda: len(self.outcomes.answered) >= FIRST_ANSWERS)
        await self.come_back(self.kill())
        self.stopped = True

    async def die_and_come_back(self, chance: random.Random) -> None:
        killed = self.kill()
        if chance.random() < KILLED_AT_BIRTH:
            await self.until(lambda: self.runs_beside(killed))
            await trio.sleep(chance.uniform(0, MOST_BIRTH))
            killed |= self.kill()
        await self.come_back(killed)

    async def come_back(self, killed: set[int]) -> None:
        await self.until(lambda: self.runs_beside(killed))
        answered = len(self.outcomes.answered)
        await self.until(lambda: len(self.outcomes.answered) > answered)

    def kill(self) -> set[int]:
        """End its process without a warning; returns which one that was."""
        pids = self.children.alive()
        self.children.kill_all()
        return set(pids)

    def runs_beside(self, killed: set[int]) -> bool:
        """Whether it has a process that is none of these."""
        return bool(set(self.children.alive()) - killed)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(BACK_WITHIN):
            while not condition():  # noqa: ASYNC110  # what a process does can only be polled
                await trio.sleep(RETRY_INTERVAL)

    def check(self) -> None:
        status = self.session.backends[self.backend_id]
        assert BackendState.READY is status.state
        assert self.outcomes.answered
        if self.program.done is not None:
            self.outcomes.check(self.program.done(self.place))


async def test_programs_that_are_killed_come_back(tmp_path: Path) -> None:
    """Killed at random moments, in calls and while they start, programs are started anew; the session goes on under the
    same names, nothing is done twice, and no process is left: not of those that were killed, nor of their successors.
    """
    with ExitStack() as stack:
        doings, backends = [], []
        async with open_session_factory(settings=SETTINGS) as factory:
            for program in PROGRAMS:
                for era in program.eras:
                    place = tmp_path / f"{program.name}-{era}"
                    place.mkdir()
                    program.prepare(place)
                    children = stack.enter_context(marked_children())
                    backends.append(program.backend(place.name, place, children.mark, era))
                    doings.append((program, place.name, place, children))
            async with factory.open_session(backends) as session:
                assert () == session.failures
                before, names = session.metadata, [tool.name for tool in session.tools]
                at_work = [Doing(session, *doing) for doing in doings]
                async with trio.open_nursery() as nursery:
                    for doing in at_work:
                        nursery.start_soon(doing.go_on)
                        nursery.start_soon(doing.be_killed, random.Random(f"{SEED} {doing.backend_id}"))
                for doing in at_work:
                    doing.check()
                assert any(doing.outcomes.uncertain for doing in at_work), "nobody was killed in a call"
                assert () == session.failures
                assert names == [tool.name for tool in session.tools]
                assert before.session_id == session.id == session.metadata.session_id
                assert [record.backend_id for record in before.backends] == [
                    record.backend_id for record in session.metadata.backends
                ]
        for doing in at_work:
            assert await doing.children.all_gone()


@pytest.mark.parametrize("program", [pytest.param(program, id=program.name) for program in MORE_PROGRAMS])
async def test_a_program_of_another_kind_comes_back(program: Program, tmp_path: Path) -> None:
    """Found by the probe, called, killed once under calls, started anew and closed: nothing is done twice, and no
    process is left.
    """
    program.prepare(tmp_path)
    with marked_children() as children:
        async with (
            open_session_factory(settings=SETTINGS) as factory,
            factory.open_session([program.backend("it", tmp_path, children.mark)]) as session,
        ):
            assert () == session.failures
            assert [program.eras[-1]] == [record.era for record in session.metadata.backends]
            names = [tool.name for tool in session.tools]
            doing = Doing(session, program, "it", tmp_path, children)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(doing.go_on)
                nursery.start_soon(doing.be_killed_once)
            doing.check()
            assert names == [tool.name for tool in session.tools]
        assert await children.all_gone()


async def run_command(*arguments: str) -> JSON:
    """The document of a `trio-vmcp` that went well."""
    command = [str(Path(sys.executable).with_name("trio-vmcp")), *arguments, "--json"]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert 0 == done.returncode, done.stderr.decode() + done.stdout.decode()
    document: JSON = json.loads(done.stdout)
    assert document["ok"]
    return document
