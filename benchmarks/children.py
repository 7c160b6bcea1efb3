"""The processes of a run: each contender in an environment of its own, and the server of all of them.

Needs the standard library only, and a package index for the first run.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import Contender

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".env"
PEERS = {
    "official": ("mcp==2.3.0", "trio==0.35.0"),
    "fastmcp": ("fastmcp==4.1.2",),
    "mcp-proxy": ("mcp-proxy==0.13.0",),
}
START_TIMEOUT = 120.0  # s; importing FastMCP takes 2 of them
SEEN_TIMEOUT = 60.0  # s


class Failed(Exception):
    """The run cannot go on. The message is printed for the user."""


def make_environment(name: str, requirements: Sequence[str], *, fresh: bool = False) -> str:
    """The Python of a virtual environment with `requirements`; `fresh` installs them even if they are there."""
    home = ENVIRONMENTS / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = home / "complete"
    if fresh or not complete.exists() or complete.read_text() != "\n".join(requirements):
        print(f"installing {', '.join(requirements)} into {home.relative_to(HERE.parent)}", file=sys.stderr)
        if not python.exists():
            venv.create(home, with_pip=True)
        pip = (str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check")
        if subprocess.run([*pip, *requirements], check=False).returncode:
            raise Failed(f"pip could not install {', '.join(requirements)}")
        complete.write_text("\n".join(requirements))
    return str(python)


def python_with_library(python: str | None) -> str:
    """The Python that was asked for; else this one, if the library is installed (nox does that); else a new one."""
    if python is None:
        here = sys.executable if importlib.util.find_spec("trio_vmcp") else None
        return here or make_environment(
            "library", [f"{HERE.parent}[otel,prometheus,serve]", "opentelemetry-sdk"], fresh=True
        )
    try:
        has_it = subprocess.run([python, "-c", "import trio_vmcp"], check=False, capture_output=True).returncode == 0
    except OSError as exc:
        raise Failed(f"--python {python!r} does not start: {exc.strerror}") from exc
    if not has_it:
        raise Failed(f"--python {python!r} cannot import trio_vmcp")
    return python


@contextmanager
def child(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its stdin closes."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # the process has died, which the last answer has reported
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Worker:
    """A contender's process. Its first line of output names versions."""

    def __init__(self, contender: Contender, process: subprocess.Popen[str]) -> None:
        self.contender = contender
        self.process = process
        self.versions: dict[str, str] = json.loads(self._answer("start", START_TIMEOUT))

    def ask(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # reported by `_answer`, which then finds the end of stdout
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        shown = {key: value for key, value in command.items() if key not in ("urls", "spare")}
        answer: dict[str, Any] = json.loads(self._answer(shown, timeout))
        if "cannot" in answer:
            raise Failed(f"{self.contender.name!r} cannot be measured here: {answer['cannot']}")
        return answer

    def _answer(self, to: object, timeout: float) -> str:
        assert self.process.stdout
        hung = threading.Timer(timeout, self.process.kill)
        hung.start()
        line = self.process.stdout.readline()
        hung.cancel()
        if not line:
            raise Failed(f"{self.contender.name!r} died or gave no answer within {timeout} s to {to}")
        return line


@contextmanager
def open_worker(contender: Contender, pythons: dict[str, str]) -> Iterator[Worker]:
    with child([pythons[contender.environment], contender.script, *contender.arguments]) as process:
        yield Worker(contender, process)


@dataclass(frozen=True)
class Seen:
    """The server's report since the last one.

    Attributes:
        asked: Number of requests by method, without methods that only some clients use.
        sessions: Sessions without a DELETE.
        connections: The most connections that one backend had open at a time.
    """

    asked: dict[str, int]
    sessions: int
    connections: int


@dataclass(frozen=True)
class Server:
    """`backend_server.py`, running."""

    ports: tuple[int, ...]

    def url(self, backend: int, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[backend]}{path}"

    def seen(self) -> Seen:
        with urllib.request.urlopen(self.url(-1, "/seen"), timeout=SEEN_TIMEOUT) as response:
            seen = json.load(response)
        # GET: the official client asks for a stream. server/discover: a probe. cancelled: a client may send a notice.
        optional = ("GET", "server/discover", "notifications/cancelled")
        asked = {method: count for method, count in seen["asked"].items() if method not in optional}
        return Seen(asked, seen["sessions"], seen["connections"])


@contextmanager
def open_server(python: str, backends: int) -> Iterator[Server]:
    with child([python, "backend_server.py", str(backends)]) as process:
        assert process.stdout
        yield Server(tuple(json.loads(process.stdout.readline())))
