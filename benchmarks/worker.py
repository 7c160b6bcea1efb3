"""What every contender has in common: a child process that is told what to do, line by line, and answers what it took.

It begins with a line that says what it is made of. A command is one line of JSON, `{"do": "open", "repeat": 3, …}`; its
other fields are the arguments of the function of that name. The answer is one line with the median of every number
that the function returned, or `{"fails": "why"}` to a command that says it may, or `{"cannot": "why"}` where it is the
machine that will not do. Processes live as long as the run, so rounds of different contenders, each in its own
environment, can take turns.
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
    """Put what the block took into `measures`: "wall" and "cpu", s, divided by `per`."""
    gc.collect()  # or one contender pays for the garbage of what came before
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    measures["wall"] = (time.perf_counter() - wall) / per
    measures["cpu"] = (time.process_time() - cpu) / per


class Cannot(Exception):
    """This machine will not do; the message is for the user."""


def raise_descriptor_limit(needed: int = 0) -> None:
    """As far as it goes without asking anybody: a session holds a descriptor or more for each of its backends.

    Raises:
        Cannot: That is less than `needed`.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # macOS calls its limit infinite, and refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < needed:
        raise Cannot(f"it needs {needed} file descriptors and may have {limit} (ulimit -Hn)")


def versions() -> dict[str, str]:
    """What may explain a difference between two runs."""
    found = {"python": platform.python_version()}
    for name in ("trio-vmcp", "trio", "anyio", "httpx", "httpx2", "h11", "mcp", "fastmcp"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def serve(run: Callable[[Callable[[], Awaitable[Measures]]], Measures], workloads: dict[str, Workload]) -> None:
    """Obey stdin until it closes. `run` is `trio.run` or what stands for it on another loop."""
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
