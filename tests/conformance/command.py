"""Run the suite's scenarios, for clients each in a process of its own, for servers each against a front of its own, and
say what became of them.

nox -s conformance
nox -s conformance -- --only sse-retry
nox -s conformance -- --side server
"""
# ruff: noqa: T201  # a command prints

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import attrs
import trio

import trio_vmcp
from conformance.fronts import NEEDED, OPTIONAL, Front, open_front
from conformance.verdict import Check, Verdict, judge

Side: TypeAlias = Literal["client", "server"]

# What a revision of MCP asks of a client. Left out is what begins with `auth/`: OAuth is not what this library does.
SCENARIOS: Mapping[str, tuple[str, ...]] = {
    "2025-11-25": (
        "initialize",
        "tools_call",
        "elicitation-sep1034-client-defaults",
        "sse-retry",
        "json-schema-2020-12-preservation",  # newer than the frozen set, as below
    ),
    "2026-07-28": (
        "tools_call",
        "request-metadata",
        "sep-2322-client-request-state",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
    ),
}
OAUTH = "auth/"
SIDES: Mapping[Side, Mapping[str, Collection[str]]] = {"client": SCENARIOS, "server": NEEDED}

AT_ONCE = 2
CLIENT_TIMEOUT = 30.0  # s, from the suite to the client, which has a shorter one of its own
PATIENCE = 60.0  # s, from us to the suite, for one scenario
MOST_SHOWN = 4000  # characters of the output of what failed

CLIENT = Path(__file__).with_name("client.py")


@attrs.frozen
class Run:
    """One scenario at one version."""

    scenario: str
    version: str
    side: Side


@attrs.frozen
class Suite:
    """The installed suite.

    Attributes:
        home: Where npm installed it, and the node that it needs.
    """

    home: Path

    def command(self, *arguments: str) -> list[str]:
        modules = self.home / "node_modules"
        script = modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
        return [str(modules / ".bin" / "node"), str(script), *arguments]

    def offers(self, side: Side, version: str) -> set[str]:
        """The scenarios that the suite itself lists for a version."""
        command = self.command("list", f"--{side}", "--spec-version", version)
        listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
        return {line.split()[1] for line in listed.splitlines() if line.startswith("  - ")}

    async def run_client(self, run: Run, results: Path) -> tuple[Verdict, str]:
        """One scenario for clients, in at most PATIENCE s; the verdict, and what there was to read."""
        # exec, or the suite's timeout would end the shell and leave the client.
        client = "exec " + shlex.join([sys.executable, "-P", str(CLIENT)])
        timeout = str(int(CLIENT_TIMEOUT * 1000))
        return await self._run(run, results, "--command", client, "--timeout", timeout)

    async def run_server(self, run: Run, results: Path, front: Front) -> tuple[Verdict, str]:
        """One scenario for servers, likewise."""
        front.backend.exchanges.clear()
        verdict, said = await self._run(run, results, "--url", front.url)
        unused = tuple(
            f"the backend was not asked for {each}"
            for each in NEEDED[run.version][run.scenario]
            if not front.backend.used[each]
        )
        return attrs.evolve(verdict, problems=verdict.problems + unused), said

    async def _run(self, run: Run, results: Path, *options: str) -> tuple[Verdict, str]:
        command = self.command(
            *(run.side, *options, "--scenario", run.scenario, "--spec-version", run.version),
            *("--output-dir", str(results)),
        )
        log = results / "suite.log"
        status: int | None = None
        with log.open("wb") as output, trio.move_on_after(PATIENCE):
            done = await trio.run_process(
                command,
                stdout=output,
                stderr=output,
                check=False,
                start_new_session=True,  # so that there is one group to end, whatever the suite has started
                deliver_cancel=end_group,
            )
            status = done.returncode
        said = log.read_text(errors="replace")
        if status is None:
            return Verdict(0, (f"the suite did not end within {PATIENCE} s",)), said
        return judge(status, read_checks(results)), said


def read_checks(results: Path) -> list[Check]:
    """What the suite wrote down; nothing, where it ran nothing."""
    return [check for path in results.rglob("checks.json") for check in json.loads(path.read_text())]


def make_directory(home: Path, name: str) -> Path:
    made = home / name
    made.mkdir()
    return made


async def end_group(process: trio.Process) -> None:
    os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the id is still its own


async def run_all(suite: Suite, runs: list[Run]) -> dict[Run, Verdict]:
    verdicts: dict[Run, Verdict] = {}
    waiting = deque(enumerate(runs))

    async def run_some(home: Path, front: Front) -> None:
        while waiting:
            number, run = waiting.popleft()
            results = make_directory(home, str(number))
            if run.side == "client":
                verdict, said = await suite.run_client(run, results)
            else:
                verdict, said = await suite.run_server(run, results, front)
            verdicts[run] = verdict
            if not verdict.passed:
                named = f"\n{run.side} {run.scenario} {run.version}"
                print(f"{named}\n{said[-MOST_SHOWN:]}", *verdict.problems, sep="\n  ", flush=True)

    async def run_lane(home: Path) -> None:
        async with open_front(home) as front:  # also where clients alone run: the front takes a second to start
            await run_some(home, front)

    with TemporaryDirectory(prefix="conformance-") as home:
        async with trio.open_nursery() as nursery:
            for lane in range(AT_ONCE):
                nursery.start_soon(run_lane, make_directory(Path(home), f"lane-{lane}"))
    return {run: verdicts[run] for run in runs}


def table(verdicts: Mapping[Run, Verdict]) -> str:
    width = max(len(run.scenario) for run in verdicts)
    lines = [f"{'side':6}  {'scenario':{width}}  {'version':10}  {'result':6}  checks"]
    for run, verdict in verdicts.items():
        result = "passed" if verdict.passed else "FAILED"
        checks = f"{verdict.succeeded} succeeded"
        if verdict.problems:
            checks += f", {len(verdict.problems)} problems"
        lines.append(f"{run.side:6}  {run.scenario:{width}}  {run.version:10}  {result}  {checks}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="where npm installed the suite")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios with this text in their name")
    parser.add_argument("--side", choices=SIDES, help="those for clients, or those for servers; both, if not given")
    arguments = parser.parse_args()
    suite = Suite(arguments.home)
    for side, versions in SIDES.items():
        for version, ours in versions.items():
            theirs = {name for name in suite.offers(side, version) if not name.startswith(OAUTH)} - OPTIONAL
            if theirs != set(ours):
                print(f"at {version} the suite has other scenarios for a {side}: {sorted(theirs ^ set(ours))}")
                return 1
    runs = [
        Run(scenario, version, side)
        for side, versions in SIDES.items()
        for version, scenarios in versions.items()
        for scenario in scenarios
        if arguments.only in scenario and arguments.side in (None, side)
    ]
    if not runs:
        print(f"no scenario has {arguments.only!r} in its name")
        return 1
    print(f"trio_vmcp: {trio_vmcp.__file__}", flush=True)
    verdicts = trio.run(run_all, suite, runs)
    passed = sum(verdict.passed for verdict in verdicts.values())
    print(f"\n{table(verdicts)}\n\n{passed} of {len(runs)} passed")
    return 0 if passed == len(runs) else 1
