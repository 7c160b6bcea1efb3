"""The common part of all contenders: a child process that reads commands, line by line, and answers with figures.

Its first line of output names the versions of its packages. A command is one line of JSON, such as
`{"do": "open", "repeat": 3, …}`; the other fields are arguments of the function of that name. The answer is one line:
the median of every figure that the function returned; or `{"fails": "why"}`, if the command allows that; or
`{"cannot": "why"}`, if a limit of the machine is too low. Processes live as long as the run, so that rounds of
contenders in different environments can take turns.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Measures = dict[str, float]
Workload = Callable[..., Awaitable[Measures]]


@contextmanager
def stopwatch(measures: Measures, *, per: int = 1) -> Iterator[None]:
    """Add the time of the block to `measures`: "wall" and "cpu", s, divided by `per`."""
    gc.collect()  # else the time includes collecting the garbage of earlier blocks
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    measures["wall"] = (time.perf_counter() - wall) / per
    measures["cpu"] = (time.process_time() - cpu) / per


class Cannot(Exception):
    """A limit of this machine is too low. The message is printed for the user."""


def raise_descriptor_limit(needed: int = 0) -> None:
    """Raise the soft limit on file descriptors to the hard one: a session holds one or more for each of its backends.

    Raises:
        Cannot: The hard limit is below `needed`.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # macOS reports an infinite hard limit and refuses to set it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < needed:
        raise Cannot(f"it needs {needed} file descriptors and may have {limit} (ulimit -Hn)")


def versions() -> dict[str, str]:
    """Versions of Python and packages, which may explain a difference between two runs."""
    found = {"python": platform.python_version()}
    for name in ("trio-vmcp", "trio", "anyio", "httpx", "httpx2", "h11", "mcp", "fastmcp", "mcp-proxy", "hypercorn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def serve(run: Callable[[Callable[[], Awaitable[Measures]]], Measures], workloads: dict[str, Workload]) -> None:
    """Run the commands on stdin until it closes. `run` is `trio.run` or its equivalent of another loop."""
    raise_descriptor_limit()
    print(json.dumps(versions()), flush=True)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        workload, repeat = workloads[command.pop("do")], command.pop("repeat", 1)
        may_fail = command.pop("may_fail")
        answer: dict[str, Any]
        try:
            rounds = [run(partial(workload, **command)) for _ in range(repeat)]
            answer = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        except Cannot as exc:
            answer = {"cannot": str(exc)}
        except Exception as exc:
            if not may_fail:
                raise
            answer = {"fails": _reason(exc)}
        print(json.dumps(answer), flush=True)


def _reason(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {exc}"
