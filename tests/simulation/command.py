"""Run random histories, or one of them again.

nox -s simulation -- --histories 100000
nox -s simulation -- --seed 4711
nox -s simulation -- --managers --histories 500
nox -s simulation -- --front --histories 500
"""
# ruff: noqa: T201  # a command prints

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import attrs

from simulation.checker import judge
from simulation.draw import draw_history
from simulation.front import run_front
from simulation.managers import run_managers
from simulation.trace import Began, Ended, Trace
from simulation.world import run_history

HISTORIES = 1000
PROCESSES = 2
CHUNK = 20  # seeds, that one process takes at a time
LONGEST = 60  # s of real time; a history takes some 50 ms, so this one is in an endless loop
BAR = 40  # characters


class Spins(BaseException):
    """A history ran for LONGEST. A BaseException, so that no `except Exception` on the way catches it."""


@attrs.frozen
class Report:
    """The result of a chunk of seeds.

    Attributes:
        failed: The first seed that failed, and its violations.
        tally: Histories, and operations by kind and outcome.
    """

    failed: tuple[int, str] | None
    tally: Counter[str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description="Random histories of sessions, in virtual time.")
    parser.add_argument("--seed", type=int, help="run this one, show everything about it, and no other")
    parser.add_argument("--histories", type=int, default=HISTORIES, help=f"how many (default: {HISTORIES})")
    parser.add_argument("--first", type=int, default=0, help="the first seed of them (default: 0)")
    parser.add_argument("--managers", action="store_true", help="of managers that share a storage (managers.py)")
    parser.add_argument("--front", action="store_true", help="of clients of a front (front.py)")
    arguments = parser.parse_args()
    kind = "--managers" if arguments.managers else "--front" if arguments.front else ""
    if arguments.seed is not None:
        return replay_kind(kind, arguments.seed) if kind else replay(arguments.seed)
    return explore(range(arguments.first, arguments.first + arguments.histories), kind)


def replay(seed: int) -> int:
    history = draw_history(seed)
    print(f"seed {seed}\n\n{history}\n")
    trace = run_history(history)
    print(trace)
    print(f"\ndigest {digest(trace)}")
    if trace != run_history(history):
        print("\nNOT DETERMINISTIC: a second run of this seed went another way")
        return 1
    violations = judge(history, trace)
    print("\n".join(["", *map(str, violations), f"{len(violations)} violations"]))
    return 1 if violations else 0


def replay_kind(kind: str, seed: int) -> int:
    """Those that have no trace: the traceback says what was broken."""
    report = CHUNKS[kind](range(seed, seed + 1))
    print(f"seed {seed}\n{report.failed[1]}" if report.failed else f"seed {seed}: nothing wrong")
    return 1 if report.failed else 0


def digest(trace: Trace) -> str:
    """Equal for equal traces, in every process."""
    plain = attrs.asdict(trace, filter=lambda attribute, _: bool(attribute.eq))
    return hashlib.blake2s(repr(plain).encode(), digest_size=8).hexdigest()


def explore(seeds: range, kind: str) -> int:
    """Run these seeds until one fails."""
    began_at = time.monotonic()
    tally: Counter[str] = Counter()
    for report in _reports(seeds, CHUNKS[kind]):
        tally += report.tally
        if report.failed is not None:
            seed, wrong = report.failed
            print(f"\nseed {seed} failed:\n{wrong}\nreplay it: nox -s simulation -- {kind} --seed {seed}")
            return 1
        _draw_progress(tally["histories"], len(seeds), time.monotonic() - began_at)
    print(f"\n{len(seeds)} histories, {time.monotonic() - began_at:.0f} s, nothing wrong")
    for name, count in sorted(tally.items()):
        print(f"{count:9} {name}")
    return 0


def _reports(seeds: range, run: Callable[[range], Report]) -> Iterator[Report]:
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        try:
            yield from pool.map(run, chunks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare() -> None:
    gc.freeze()  # each history collects garbage: keep imported modules out of that
    logging.getLogger("trio_vmcp").addHandler(logging.NullHandler())  # else warnings go to stderr

    def cancel(*_: object) -> None:
        raise Spins

    signal.signal(signal.SIGALRM, cancel)


def run_chunk(seeds: range) -> Report:
    tally: Counter[str] = Counter()
    for seed in seeds:
        history = draw_history(seed)
        signal.alarm(LONGEST)
        try:
            trace = run_history(history)
            wrong = "\n".join(map(str, judge(history, trace)))
        except BaseException:  # noqa: ASYNC103, BLE001  # whatever it is, the report names the seed
            return Report((seed, traceback.format_exc()), tally)  # noqa: ASYNC104  # not in a Trio task
        finally:
            signal.alarm(0)
        if wrong:
            return Report((seed, wrong), tally)
        tally["histories"] += 1
        tally += _tally(trace)
    return Report(None, tally)


def run_manager_chunk(seeds: range) -> Report:
    tally: Counter[str] = Counter()
    for seed in seeds:
        try:
            tally["steps"] += run_managers(seed)
        except BaseException:  # noqa: ASYNC103, BLE001  # whatever it is, the report names the seed
            return Report((seed, traceback.format_exc()), tally)  # noqa: ASYNC104  # not in a Trio task
        tally["histories"] += 1
    return Report(None, tally)


def run_front_chunk(seeds: range) -> Report:
    tally: Counter[str] = Counter()
    for seed in seeds:
        signal.alarm(LONGEST)
        try:
            tally.update({f"call: {outcome}": count for outcome, count in run_front(seed).items()})
        except BaseException:  # noqa: ASYNC103, BLE001  # whatever it is, the report names the seed
            return Report((seed, traceback.format_exc()), tally)  # noqa: ASYNC104  # not in a Trio task
        finally:
            signal.alarm(0)
        tally["histories"] += 1
    return Report(None, tally)


CHUNKS: dict[str, Callable[[range], Report]] = {
    "": run_chunk,
    "--managers": run_manager_chunk,
    "--front": run_front_chunk,
}


def _tally(trace: Trace) -> Counter[str]:
    began = [event for event in trace.events if isinstance(event, Began)]
    what = {event.op: event.what if event.answers is None else "answer" for event in began}
    ended = [(what[event.op], event.outcome) for event in trace.events if isinstance(event, Ended)]
    names = (f"{kind}: {'asked' if end.asked is not None else end.error or end.kind}" for kind, end in ended)
    return Counter(names) + Counter(requests=len(trace.seen))


def _draw_progress(done: int, of: int, elapsed: float) -> None:
    if sys.stderr.isatty():
        filled = BAR * done // of
        left = elapsed / done * (of - done)
        bar = "█" * filled + "░" * (BAR - filled)
        print(f"\r{bar} {done}/{of}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
