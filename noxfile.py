"""Every check of the project. `nox -s tests` is what a newcomer runs; `.ci/run` runs them all.

What is tested is the wheel: it is built once per run and installed into every environment that imports trio_vmcp.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"  # what is present is what is tested
nox.options.error_on_external_run = True

CI = os.environ.get("CI") == "true"
nox.options.error_on_missing_interpreters = CI

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# With what runs nox among them, so that a machine that has none of the three tests something all the same.
PYTHONS = sorted({"3.11", "3.12", "3.13", HERE}, key=lambda version: int(version.partition(".")[2]))

ROOT = Path(__file__).parent
WORK = ROOT / ".nox"
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
COVERAGE_DATA = WORK / "coverage-data"

# Decisions without I/O: no line or branch of theirs has an excuse for not being run.
FULLY_COVERED = (
    "_session/admission.py",
    "_protocol/uri_template.py",
    "metadata.py",
    "routing.py",
    "_protocol/headers.py",
    "_protocol/jsonrpc.py",
    "_http/response.py",
    "_protocol/sse.py",
)

ASYNC_IGNORES = (
    "ASYNC109",  # `timeout=` is part of the public calls: the deadline's message names it as the knob
    "ASYNC124",  # who implements an async interface need not wait
    # Off by default, and `--disable` replaces the default: a checkpoint on every path. We have them where one waits.
    "ASYNC910",
    "ASYNC911",
    "ASYNC912",
    "ASYNC913",
    "ASYNC127",  # wants httpx2 for httpx, whose pool wedges: it is our seam only, its transport and pool are not used
)

# Exact: which servers we speak with changes by a commit, not by somebody's release.
INTEROP_PACKAGES = {
    # The reference servers are programs on that SDK.
    "mcp2": ("mcp==2.3.0", "uvicorn==0.54.0", "mcp-server-time==2026.10.19", "mcp-server-git==2026.10.19"),
    "mcp1": ("mcp==1.30.0",),
    "fastmcp": ("fastmcp==4.1.2",),
}
INTEROP_NODE = (
    "@modelcontextprotocol/server-everything@2026.8.31",
    "@modelcontextprotocol/server-memory@2026.8.31",
    "@modelcontextprotocol/server-filesystem@2026.8.31",
)
# The suite, the SDK that its servers are built on (it asks for ^1), and the node that it needs.
CONFORMANCE_NODE = (
    "@modelcontextprotocol/conformance@0.2.0-alpha.12",
    "@modelcontextprotocol/sdk@1.32.2",
    "node@22.23.3",
)

ESCAPE = "\x1b["  # begins a terminal's colours and cursor movements

ALL_CORES = "--numprocesses=auto"

built: list[Path] = []


def wheel(session: nox.Session) -> Path:
    """The wheel under test, built by the first session that asks."""
    if not built:
        dist = WORK / "dist"
        shutil.rmtree(dist, ignore_errors=True)
        session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), str(ROOT))
        built.extend(dist.glob("*.whl"))
    (path,) = built
    return path


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


def run_suite(session: nox.Session, *command: str, **env: str) -> None:
    """pytest over tests/, with trio_vmcp from the wheel.

    PYTHONSAFEPATH keeps the working directory and the tree's trio_vmcp off sys.path; `--installed-only` proves it.
    """
    session.run(*command, "--installed-only", *session.posargs, env={"PYTHONSAFEPATH": "1", **env})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, on every Python that is present; in CI on all three. Then the coverage, measured on one of them."""
    session.install(f"{wheel(session)}[cli,oauth]", *group("test"))
    if session.python != HERE:
        run_suite(session, "python", "-m", "pytest", ALL_CORES)
        return
    COVERAGE_DATA.mkdir(parents=True, exist_ok=True)
    data = COVERAGE_DATA / "all.run"  # `combine` goes by the first part
    for stale in COVERAGE_DATA.glob(f"{data.name}*"):
        stale.unlink()
    run_suite(session, "coverage", "run", "-m", "pytest", ALL_CORES, COVERAGE_FILE=str(data))
    if not session.posargs:  # a part of the suite says nothing about coverage
        session.notify("coverage")


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches: 95 % of everything, 100 % of what decides without I/O. Runs by itself after `tests`."""
    session.install(*group("coverage"))
    env = {"COVERAGE_FILE": str(COVERAGE_DATA / "all")}
    session.run("coverage", "combine", str(COVERAGE_DATA), env=env)
    session.run("coverage", "report", env=env)
    for module in FULLY_COVERED:  # one by one: a module that is not in the data at all is an error, too
        session.run("coverage", "report", "--fail-under=100", f"--include=trio_vmcp/{module}", env=env, silent=True)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The suite on the oldest dependencies that pyproject.toml promises to work with; no test takes over a second."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    promised = [*project["dependencies"], *extras["cli"], *extras["oauth"]]
    session.install(
        str(wheel(session)), *group("test"), *(re.sub(r">=([\d.]+).*", r"==\1", entry) for entry in promised)
    )
    run_suite(session, "python", "-m", "pytest", "--max-seconds=1")  # one core stays free for what tests start


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and flake8-async."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--diff", ".")
    sources = str(session.run("git", "ls-files", "*.py", external=True, silent=True, log=False)).split()
    startable = "--startable-in-context-manager=serve_loopback"
    session.run("flake8-async", f"--disable={','.join(ASYNC_IGNORES)}", startable, *sources)


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright over the code, then pyright over what users see of it."""
    session.install(f"{wheel(session)}[cli,oauth]", *group("test"), *group("types"))
    session.run("mypy", "trio_vmcp", "tests", "noxfile.py")
    session.run("pyright")
    session.chdir(session.create_tmp())  # away from the tree: users have the installed package and its py.typed
    session.run("pyright", "--verifytypes", "trio_vmcp", "--ignoreexternal")


@nox.session
def simulation(session: nox.Session) -> None:
    """Random histories in virtual time, each judged. `-- --seed N` replays one, `-- --histories N` runs so many."""
    session.install(str(wheel(session)), *group("test"))
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    session.run("python", "-m", "simulation", *session.posargs, env=env)


@nox.session
def soak(session: nox.Session) -> None:
    """A virtual hour with twenty backends that crash, hang, restart, forget and change."""
    session.install(str(wheel(session)), *group("test"))
    command = ("python", "-m", "pytest", "--installed-only", "--verbose")
    session.run(*command, "tests/soak", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session
def sweeps(session: nox.Session) -> None:
    """One fault at every possible place, and hostile answers. A finding prints what runs its one case again."""
    session.install(str(wheel(session)), *group("test"), *group("sweeps"))
    command = ("python", "-m", "pytest", "--installed-only", "--verbose", "--numprocesses=auto")
    patience = "--override-ini=faulthandler_timeout=300"  # a sweep is a minute's work on a busy machine
    session.run(*command, patience, "tests/sweeps", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session
def mutation(session: nox.Session) -> None:
    """Lines of admission, close, recovery and transport, gone or inverted one by one: a test must notice.

    `-- --only TEXT` runs a part, and so does CI: admission and close.
    """
    session.install(str(wheel(session)), *group("test"))
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    session.run("python", "-m", "pytest", "--installed-only", "tests/mutation", env=env)
    session.run("python", "-m", "mutation", *(("--core",) if CI else ()), *session.posargs, env=env)


@nox.session(python="3.12")  # atheris comes built for some Pythons only
def fuzz(session: nox.Session) -> None:
    """Parsers under a fuzzer, for 60 s or `-- --seconds N`. Not part of CI: what it finds is luck, and takes long."""
    session.install(str(wheel(session)), "atheris==3.1.0")
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    findings = WORK / "fuzz-findings"
    session.run("python", "-m", "fuzz.fuzz_parsers", f"--findings={findings}", *session.posargs, env=env)


@nox.session
def interop(session: nox.Session) -> None:
    """Servers by other authors: killed, started again, changed under a session; and the official client beside ours."""
    for program in ("node", "npm", "git"):
        if not shutil.which(program):
            session.error(f"the servers need node (18 or newer), npm and git on PATH: {program} is missing")
    session.install(str(wheel(session)), *group("test"))
    homes = Path(session.create_tmp()).resolve()
    for name, packages in INTEROP_PACKAGES.items():
        # Without a pip of its own: ours does it, and unpacking one takes as long as some of the servers.
        session.run("python", "-m", "venv", "--without-pip", str(homes / name))
        session.run("python", "-m", "pip", "--python", str(homes / name), "install", "--quiet", *packages)
    quiet = ("--silent", "--no-audit", "--no-fund")
    session.run("npm", "install", *quiet, "--prefix", str(homes / "node"), *INTEROP_NODE, external=True)
    # -P, not PYTHONSAFEPATH: the servers are scripts with a module beside them, and inherit the environment.
    command = ("python", "-P", "-m", "pytest", "--installed-only", "--durations=5")
    patience = "--override-ini=faulthandler_timeout=180"  # real servers start in real time, on a busy machine
    session.run(*command, patience, "tests/interop", *session.posargs, env={"INTEROP_HOMES": str(homes)})


@nox.session
def conformance(session: nox.Session) -> None:
    """The official suite's scenarios for clients, but for OAuth. `-- --only TEXT` runs those whose name has it."""
    session.install(str(wheel(session)))
    home = Path(session.create_tmp()).resolve()
    if not shutil.which("npm"):
        session.error("the suite needs npm (and any node) on PATH: install both and run again")
    quiet = ("--silent", "--no-audit", "--no-fund")
    session.run("npm", "install", *quiet, "--prefix", str(home), *CONFORMANCE_NODE, external=True)
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    session.run("python", "-m", "conformance", f"--home={home}", *session.posargs, env=env)


@nox.session
def readme(session: nox.Session) -> None:
    """The Python blocks of README.md run."""
    session.install(f"{wheel(session)}[oauth]", *group("test"))
    session.run("python", "-P", "-m", "pytest", "--installed-only", "tests/readme", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """`trio-vmcp demo` from the wheel: in a pipe, for machines, on a terminal without rich, and with it."""
    session.install(str(wheel(session)))
    session.run("trio-vmcp", "demo")
    report = Path(session.create_tmp()) / "report.json"
    with report.open("w") as file:
        session.run("trio-vmcp", "demo", "--json", stdout=file, stderr=sys.stderr)
    failed = {entry["id"] for entry in json.loads(report.read_text())["session"]["backends"] if entry["failure"]}
    if failed != {"hangs", "refuses"}:
        session.error(f"{failed} failed in the demo, not 'hangs' and 'refuses'")

    spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    on_terminal = ("python", "-c", spawn, "trio-vmcp", "demo")
    env = {"TERM": "xterm-256color"}
    if ESCAPE in str(session.run(*on_terminal, env=env, silent=True)):
        session.error("the demo without rich writes terminal sequences: is rich installed all the same?")
    session.install(f"{wheel(session)}[cli]")
    if ESCAPE not in str(session.run(*on_terminal, env=env, silent=True)):
        session.error("the demo with rich writes no terminal sequences: it was not rich that drew")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """The library beside hand-written loops, the official client and FastMCP's; in CI short, and printing only."""
    session.install(str(wheel(session)))
    session.run("python", "benchmarks/run.py", *(("--short",) if CI else ()), *session.posargs)
