"""The command, from its arguments to its exit status.

Exit statuses: 0 success; 1 a backend, a tool or the demo failed; 2 bad usage or a bad file; 130, 143, 129 ended by
SIGINT, SIGTERM, SIGHUP, after the session was closed. Results go to stdout and everything else to stderr; with --json,
stdout holds one JSON document, also after bad usage. Neither shows secrets of the file.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import TextIO

import attrs
import trio

from trio_vmcp._cli.arguments import USAGE, Plan, UsageError, parse_plan
from trio_vmcp._cli.output import OutputError, write_text
from trio_vmcp._cli.plain_view import PlainView
from trio_vmcp._cli.requests import FAILED, OK, CommandOutcome, run_plan
from trio_vmcp._cli.sanitizer import Sanitizer
from trio_vmcp._cli.signals import EndingSignals, catching_signals, closing_text, keep_signal
from trio_vmcp._cli.sources import Found, InputError, find_servers, read_given
from trio_vmcp._cli.verbose import showing_log
from trio_vmcp._cli.view import View
from trio_vmcp._client.channels.process import kill_children

__all__ = ["run_arguments", "until_interrupted"]


def run_arguments(arguments: Sequence[str] | None, signals: EndingSignals) -> int:
    """As `trio_vmcp.cli.main`."""
    signals.kill_children = kill_children
    # The command shows failures itself; without a handler Python's last resort prints the library's warnings, too.
    logging.getLogger("trio_vmcp").addHandler(logging.NullHandler())
    sys.stdout = sys.stdout or _nowhere()  # None: the parent process has closed it
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # else text that the terminal cannot encode ends the command
    words = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            return _run(parse_plan(words), signals)
        except UsageError as bad:
            if "--json" in takewhile(lambda word: word != "--", words):  # behind it stand the words of a program
                _write_document(_failure("UsageError", bad.message).document)
            raise
    except OutputError as error:
        PlainView(sys.stdout, sys.stderr).show_problem(str(error))
        return FAILED


def _run(plan: Plan, signals: EndingSignals) -> int:
    safe = Sanitizer()
    try:
        signals.on_first = None
        if signals.received is not None:
            raise KeyboardInterrupt
        found = find_servers(plan.servers, os.environ, needs_one=plan.serve is None)
        plan = attrs.evolve(plan, given=read_given(plan.given))
        safe = Sanitizer.of(found.backends)
        view, work = _work_of(plan, found, safe)
        for line in (*found.warnings, *(each.why for each in found.skipped if plan.serve is None)):
            view.show_problem(line)
        # From here on, a KeyboardInterrupt could be raised inside of Trio. `until_interrupted` looks what has come.
        signals.on_first = keep_signal

        def tell(text: str) -> None:
            view.settle_drawing()
            view.show_problem(text)

        with _showing_log(plan, view):
            outcome = trio.run(until_interrupted, work, signals, tell)
    except InputError as error:
        signals.on_first = keep_signal
        PlainView(sys.stdout, sys.stderr, safe).show_problem(str(error))
        outcome = attrs.evolve(_failure(error.kind, str(error)), status=USAGE)
    except KeyboardInterrupt:  # before a session was opened, or after it was closed
        if signals.received is None:  # not from our handler: this is another thread than the main one
            raise
        outcome = _ended_by(signals)
    if plan.serve is not None and signals.received is not None:
        return OK  # how a server is ended
    if plan.json:
        _write_document(safe.document(outcome.document))
    return outcome.status


def _work_of(plan: Plan, found: Found, safe: Sanitizer) -> tuple[View, Callable[[], Awaitable[CommandOutcome]]]:
    """What to run, and what shows it."""
    if plan.serve is None:
        view = _choose_view(plan.json, safe)
        return view, lambda: run_plan(plan, found, view)
    # Imported here: it needs an extra, and other commands would wait for it.
    from trio_vmcp._cli.serve import prepare, run_server

    setup, lines = prepare(plan.serve, os.environ), PlainView(sys.stdout, sys.stderr, safe)
    return lines, lambda: run_server(setup, found, lines)


def _showing_log(plan: Plan, view: View) -> AbstractContextManager[None]:
    if plan.verbose:
        return showing_log(view)
    return nullcontext() if plan.serve is None else showing_log(view, logging.INFO)


async def until_interrupted(
    work: Callable[[], Awaitable[CommandOutcome]],
    signals: EndingSignals | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> CommandOutcome:
    """Run `work` to its end or to the first signal that ends the command; None: SIGINT, SIGTERM and SIGHUP are caught.

    A KeyboardInterrupt could be raised in any task; a cancel closes the session in order, whatever it is at.

    Args:
        tell: Shows why the close begins, in one line, and how it is cut short.
    """
    if signals is None:
        with catching_signals() as caught:
            return await until_interrupted(work, caught, tell)
    outcome = None
    with trio.CancelScope() as scope:
        to_loop = trio.lowlevel.current_trio_token().run_sync_soon

        def end() -> None:
            scope.cancel()
            if signals.received is not None:
                tell(closing_text(signals.received))

        signals.on_first = lambda: to_loop(end)
        try:
            if signals.received is None:
                outcome = await work()
        finally:
            signals.on_first = keep_signal
    return _ended_by(signals) if outcome is None or signals.received is not None else outcome


def _ended_by(signals: EndingSignals) -> CommandOutcome:
    assert signals.received is not None
    kind, message = "KeyboardInterrupt", "interrupted"
    if signals.received is not signal.SIGINT:
        kind, message = signals.received.name, f"ended by {signals.received.name}"
    return attrs.evolve(_failure(kind, message), status=signals.status)


def _failure(kind: str, message: str) -> CommandOutcome:
    return CommandOutcome(FAILED, {"ok": False, "error": {"type": kind, "message": message}})


# --- output


def _write_document(document: object) -> None:
    write_text(sys.stdout, json.dumps(document, indent=2) + "\n")


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _choose_view(as_json: bool, safe: Sanitizer) -> View:
    if as_json:
        return PlainView(sys.stderr, sys.stderr, safe)
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if on_terminal and importlib.util.find_spec("rich"):
        from trio_vmcp._cli.rich_view import build_rich_view

        return build_rich_view(safe)
    return PlainView(sys.stdout, sys.stderr, safe)
