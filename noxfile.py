"""The checks of the project. `nox -s tests` runs the suite; `.ci/run` runs all checks.

The wheel is tested, not the tree: it is built once per run and installed into every environment that imports trio_vmcp.
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
nox.options.download_python = "never"  # only Pythons that are present are tested
nox.options.error_on_external_run = True

CI = os.environ.get("CI") == "true"
nox.options.error_on_missing_interpreters = CI

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# The Python that runs nox included, so that a machine with none of the three tests with that one.
PYTHONS = sorted({"3.11", "3.12", "3.13", HERE}, key=lambda version: int(version.partition(".")[2]))

ROOT = Path(__file__).parent
WORK = ROOT / ".nox"
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
COVERAGE_DATA = WORK / "coverage-data"
EXTRAS = ",".join(PYPROJECT["project"]["optional-dependencies"])  # the suite tests all of them

# Modules that decide without I/O. Tests can reach each of their lines and branches, so all must be covered.
FULLY_COVERED = (
    "_session/admission.py",
    "_protocol/uri_template.py",
    "metadata.py",
    "routing.py",
    "_protocol/headers.py",
    "_protocol/jsonrpc.py",
    "_http/response.py",
    "_protocol/sse.py",
    "serve/_jwks.py",
    "serve/_tokens.py",
)

ASYNC_IGNORES = (
    "ASYNC109",  # public calls have a `timeout=` parameter, and the deadline's message names it as the knob
    "ASYNC124",  # an implementation of an async interface need not wait
    # A checkpoint on every path: off by default, but `--disable` replaces the default list.
    "ASYNC910",
    "ASYNC911",
    "ASYNC912",
    "ASYNC913",
    "ASYNC127",  # wants httpx2 in place of httpx because of its pool; only httpx's interfaces are used here
)

# Exact versions: a new release of a server must not change the result of a commit that passed.
INTEROP_PACKAGES = {
    # The reference servers are programs on that SDK.
    "mcp2": ("mcp==2.3.0", "uvicorn==0.54.0", "mcp-server-time==2026.10.19", "mcp-server-git==2026.10.19"),
    "mcp1": ("mcp==1.30.0", "mcp-proxy==0.13.0", "fastmcp==2.14.0"),
    "fastmcp": ("fastmcp==4.1.2",),
    # The protocol of 2024-11-05, with what these versions ran on.
    "mcp1-early": (
        *("mcp==1.6.0", "mcp-server-sqlite==2025.4.25"),
        *("pydantic==2.10.6", "uvicorn==0.34.0", "starlette==0.46.2", "sse-starlette==2.2.1"),
    ),
    # Programs in Go and Rust.
    "binaries": ("jmrplens-gitlab-mcp-server==3.3.0", "grok-search-rs==0.4.0"),
}
INTEROP_NODE = (
    "@modelcontextprotocol/server-everything@2026.8.31",
    "@modelcontextprotocol/server-memory@2026.8.31",
    "@modelcontextprotocol/server-filesystem@2026.8.31",
    "@modelcontextprotocol/server-sequential-thinking@2026.8.31",
    "@playwright/mcp@0.0.83",
    "supergateway@4.0.0",
    "@toolbox-sdk/server@1.12.0",  # a program in Go
    "@azure/mcp@2.0.5",  # a program in C#
)
# Clients, and the version of node that the last one needs.
CLIENTS_NODE = (
    "@modelcontextprotocol/client@2.4.0",
    "@modelcontextprotocol/sdk@1.32.2",
    "@modelcontextprotocol/inspector@2.12.0",
    "node@22.23.3",
)
# The suite, the SDK of its servers (the suite asks for ^1), and the version of node that the suite needs.
CONFORMANCE_NODE = (
    "@modelcontextprotocol/conformance@0.2.0-alpha.12",
    "@modelcontextprotocol/sdk@1.32.2",
    "node@22.23.3",
)

HISTORIES: tuple[tuple[str, ...], ...] = ((), ("--managers",), ("--front",))  # the kinds of them

ESCAPE = "\x1b["  # the beginning of a terminal's sequences for colours and cursor movements

ALL_CORES = "--numprocesses=auto"
# In CI one Python draws all examples of a property and sweeps over all steps: not the one that measures coverage, which
# takes twice as long for each. The others and the session `lowest` draw a quarter of the examples, and sweep over half
# of the steps.
FEW_EXAMPLES = ("--few-examples",) if CI else ()

built: list[Path] = []


def wheel(session: nox.Session) -> Path:
    """The wheel under test, built on first use; or the one that TRIO_VMCP_WHEEL names, for several runs of nox."""
    if not built and (given := os.environ.get("TRIO_VMCP_WHEEL")):
        built.append(Path(given))
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
    """Run pytest over tests/, with trio_vmcp from the wheel.

    PYTHONSAFEPATH keeps the working directory and the tree's trio_vmcp off sys.path; `--installed-only` proves it.
    """
    session.run(*command, "--installed-only", *session.posargs, env={"PYTHONSAFEPATH": "1", **env})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, on every Python that is present; in CI on all three. Coverage is measured on one of them."""
    session.install(f"{wheel(session)}[{EXTRAS}]", *group("test"))
    if session.python != HERE:
        draws_all = session.python == next(each for each in reversed(PYTHONS) if each != HERE)
        run_suite(session, "python", "-m", "pytest", ALL_CORES, *(() if draws_all else FEW_EXAMPLES))
        return
    COVERAGE_DATA.mkdir(parents=True, exist_ok=True)
    data = COVERAGE_DATA / "all.run"  # `coverage combine` reads every file that begins with COVERAGE_FILE, `all`
    for stale in COVERAGE_DATA.glob(f"{data.name}*"):
        stale.unlink()
    run_suite(session, "coverage", "run", "-m", "pytest", ALL_CORES, *FEW_EXAMPLES, COVERAGE_FILE=str(data))
    if not session.posargs:  # with arguments only a part of the suite ran, which says nothing about coverage
        session.notify("coverage")


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches: 95 % of all modules, 100 % of FULLY_COVERED. Runs after `tests`, without being named."""
    session.install(*group("coverage"))
    env = {"COVERAGE_FILE": str(COVERAGE_DATA / "all")}
    session.run("coverage", "combine", str(COVERAGE_DATA), env=env)
    session.run("coverage", "report", env=env)
    for module in FULLY_COVERED:  # one by one, since a pattern would skip a module without data
        session.run("coverage", "report", "--fail-under=100", f"--include=trio_vmcp/{module}", env=env, silent=True)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The suite on the oldest dependencies that pyproject.toml allows. A test that takes over two seconds fails:
    the slowest take one, and the machines of CI differ by a half."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    promised = [*project["dependencies"], *(entry for extra in EXTRAS.split(",") for entry in extras[extra])]
    session.install(
        str(wheel(session)), *group("test"), *(re.sub(r">=([\d.]+).*", r"==\1", entry) for entry in promised)
    )
    # Serial: in CI another session has the other core.
    run_suite(session, "python", "-m", "pytest", "--max-seconds=2", *FEW_EXAMPLES)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, flake8-async, and the count of pronouns in prose."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--diff", ".")
    concurrent = ("git", "grep", "-lE", "async |trio[.]", "--", "*.py")  # in other files it finds nothing, in a minute
    sources = str(session.run(*concurrent, external=True, silent=True, log=False)).split()
    startable = "--startable-in-context-manager=serve_loopback,_instance,serve_losing_an_answer,serve_front,serve_stdio"
    session.run("flake8-async", f"--disable={','.join(ASYNC_IGNORES)}", startable, *sources)
    session.run("python", "tests/lint/prose.py")


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright over the code, then pyright over the types that users see."""
    session.install(f"{wheel(session)}[{EXTRAS}]", *group("test"), *group("types"))
    session.run("mypy", "trio_vmcp", "tests", "noxfile.py")
    session.run("pyright")
    session.chdir(session.create_tmp())  # outside of the tree: pyright then reads the installed package and py.typed
    session.run("pyright", "--verifytypes", "trio_vmcp", "--ignoreexternal")


@nox.session
def simulation(session: nox.Session) -> None:
    """Random histories in virtual time, each judged. `-- --seed N` replays one, `-- --histories N` runs N; with
    `--managers` they are those of managers that share a storage, with `--front` those of clients of a front. Without
    arguments all kinds run: 1 000, 300 and 300 of them, in CI 600, 200 and 150.
    """
    session.install(str(wheel(session)), *group("test"))
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    counts = (600, 200, 150) if CI else (1000, 300, 300)
    all_kinds = [(*kind, "--histories", str(count)) for kind, count in zip(HISTORIES, counts, strict=True)]
    for arguments in [session.posargs] if session.posargs else all_kinds:
        session.run("python", "-m", "simulation", *arguments, env=env)


@nox.session
def soak(session: nox.Session) -> None:
    """A virtual hour with twenty backends that crash, hang, restart, lose sessions and change their lists."""
    session.install(str(wheel(session)), *group("test"))
    command = ("python", "-m", "pytest", "--installed-only", "--verbose")
    patience = "--override-ini=faulthandler_timeout=600"  # the hour takes minutes on a busy machine
    session.run(*command, patience, "tests/soak", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session
def load(session: nox.Session) -> None:
    """`trio-vmcp serve` under clients of both eras for ten minutes, in CI for half of one, with backends that crash,
    clients that vanish and SIGTERM in the middle. `-- --seconds N` takes another time.
    """
    session.install(f"{wheel(session)}[serve]", *group("test"))
    # -P, not PYTHONSAFEPATH: the server inherits the environment.
    command = ("python", "-P", "-m", "pytest", "--installed-only", "--capture=no", "tests/load")
    patience = "--override-ini=faulthandler_timeout=1200"
    session.run(*command, patience, f"--seconds={30 if CI else 600}", *session.posargs)


@nox.session
def instances(session: nox.Session) -> None:
    """Instances over a real Redis, killed and frozen under load: 200 times, in CI 30 times; and the deployment of
    tests/deploy behind HAProxy. Needs redis-server and haproxy.
    """
    session.install(f"{wheel(session)}[redis]", *group("test"))
    # -P, not PYTHONSAFEPATH: the instances inherit the environment, and their script imports a module beside it.
    command = ("python", "-P", "-m", "pytest", "--installed-only", "--verbose", f"--points={30 if CI else 200}")
    patience = "--override-ini=faulthandler_timeout=10800"  # a process takes seconds to start on a busy machine
    session.run(*command, patience, "tests/deploy", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The page of `/status` in headless Chromium, on a phone and on a desktop, in light and dark. Screenshots go to
    .nox/artefacts. Needs chromium.
    """
    session.install(f"{wheel(session)}[serve]", *group("test"))
    command = ("python", "-P", "-m", "pytest", "--installed-only", "--verbose", f"--artefacts={WORK / 'artefacts'}")
    session.run(*command, "tests/browser", *session.posargs)


@nox.session
def deploy(session: nox.Session) -> None:
    """Two instances behind HAProxy under load, one of which is killed: figures, and deploy.png. Not part of CI, which
    tests the same deployment in `instances`.
    """
    session.install(f"{wheel(session)}[redis]", *group("test"), "matplotlib")
    picture = WORK / "deploy.png"
    session.run("python", "-P", "-m", "deploy", f"--png={picture}", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def sweeps(session: nox.Session) -> None:
    """One fault at every possible place, in CI at each third, and hostile answers. A finding prints the command that
    repeats its case.
    """
    session.install(str(wheel(session)), *group("test"), *group("sweeps"))
    command = ("python", "-m", "pytest", "--installed-only", "--verbose", "--numprocesses=auto")
    patience = "--override-ini=faulthandler_timeout=300"  # a sweep takes a minute on a busy machine
    short = ("--short",) if CI else ()
    session.run(*command, patience, "tests/sweeps", *short, *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session
def mutation(session: nox.Session) -> None:
    """Lines of admission, close, recovery, channels and transport are deleted or inverted one by one; a test must fail
    each time.

    `-- --module TEXT` and `-- --only TEXT` run a part; CI runs 60 mutants of admission and close, others every day.
    """
    session.install(f"{wheel(session)}[{EXTRAS}]", *group("test"))
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    session.run("python", "-m", "pytest", "--installed-only", "tests/mutation", env=env)
    session.run("python", "-m", "mutation", *(("--core", "--sample=60") if CI else ()), *session.posargs, env=env)


@nox.session(python="3.12")  # atheris has wheels for some Pythons only
def fuzz(session: nox.Session) -> None:
    """Parsers under a fuzzer, for 60 s or `-- --seconds N`. Not part of CI: its findings are random and take long."""
    session.install(str(wheel(session)), "atheris==3.1.0")
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    findings = WORK / "fuzz-findings"
    session.run("python", "-m", "fuzz.fuzz_parsers", f"--findings={findings}", *session.posargs, env=env)


@nox.session
def interop(session: nox.Session) -> None:
    """Servers by other authors in five languages, killed, restarted and changed during sessions, alone and 34 together;
    the official client beside ours; and clients by other authors before the front, also by way of HAProxy and nginx.
    """
    for program in ("node", "npm", "git"):
        if not shutil.which(program):
            session.error(f"the servers need node (18 or newer), npm and git on PATH: {program} is missing")
    session.install(f"{wheel(session)}[serve]", *group("test"))
    homes = Path(session.create_tmp()).resolve()
    for name, packages in INTEROP_PACKAGES.items():
        # Without pip: the pip of this session installs, and unpacking one takes as long as some of the servers.
        session.run("python", "-m", "venv", "--without-pip", str(homes / name))
        session.run("python", "-m", "pip", "--python", str(homes / name), "install", "--quiet", *packages)
    quiet = ("--silent", "--no-audit", "--no-fund")
    for name, modules in {"node": INTEROP_NODE, "node-clients": CLIENTS_NODE}.items():
        session.run("npm", "install", *quiet, "--prefix", str(homes / name), *modules, external=True)
    # -P, not PYTHONSAFEPATH: the servers inherit the environment, and their scripts import a module beside them.
    command = ("python", "-P", "-m", "pytest", "--installed-only", "--durations=5")
    beside = ("--numprocesses=2", "--dist=loadfile")  # much of the time is waiting for servers to start
    patience = "--override-ini=faulthandler_timeout=180"  # real servers take real time to start
    session.run(*command, *beside, patience, "tests/interop", *session.posargs, env={"INTEROP_HOMES": str(homes)})


@nox.session
def conformance(session: nox.Session) -> None:
    """The official suite's scenarios: for clients, except OAuth, and for servers, against the front. `-- --only TEXT`
    selects scenarios by name, `-- --side server` those of one side.
    """
    session.install(f"{wheel(session)}[serve]")
    home = Path(session.create_tmp()).resolve()
    if not shutil.which("npm"):
        session.error("the suite needs npm (and any node) on PATH: install both and run again")
    quiet = ("--silent", "--no-audit", "--no-fund")
    session.run("npm", "install", *quiet, "--prefix", str(home), *CONFORMANCE_NODE, external=True)
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "tests"}
    session.run("python", "-m", "conformance", f"--home={home}", *session.posargs, env=env)


@nox.session
def readme(session: nox.Session) -> None:
    """Run the Python blocks of README.md."""
    session.install(f"{wheel(session)}[oauth]", *group("test"))
    session.run("python", "-P", "-m", "pytest", "--installed-only", "tests/readme", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """`trio-vmcp demo` from the wheel: in a pipe, as JSON, on a terminal without rich, and with rich."""
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
        session.error("the demo without rich writes terminal sequences: is rich installed?")
    session.install(f"{wheel(session)}[cli]")
    if ESCAPE not in str(session.run(*on_terminal, env=env, silent=True)):
        session.error("the demo with rich writes no terminal sequences: it did not draw with rich")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """The library beside hand-written loops, the official client and FastMCP's. In CI: one round, no bar asserted."""
    session.install(f"{wheel(session)}[otel,prometheus,serve]", "opentelemetry-sdk")
    session.run("python", "benchmarks/run.py", *(("--short",) if CI else ()), *session.posargs)
