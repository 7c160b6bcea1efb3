"""The command, from its arguments to its exit status.

Exit statuses: 0 success; 1 a backend, a tool or the demo failed; 2 bad usage or a bad file; 130, 143, 129 ended by
SIGINT, SIGTERM, SIGHUP, after the session was closed. Results go to stdout and everything else to stderr; with --json,
stdout holds one JSON document, also after bad usage. Neither shows secrets of the file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

import attrs
import httpx
import trio

from trio_vmcp._cli.config_file import ConfigError, ConfigFile, read_config
from trio_vmcp._cli.output import OutputError, write_text
from trio_vmcp._cli.plain_view import PlainView
from trio_vmcp._cli.signals import EndingSignals, catching_signals, closing_text, keep_signal
from trio_vmcp._cli.view import Sanitizer, Skipped, View, name_knobs, with_knobs
from trio_vmcp._cli.watch import WatchedCall, open_watched_session, run_watched_calls
from trio_vmcp._client.channels.process import kill_children
from trio_vmcp.errors import ToolNotFound
from trio_vmcp.models import JSON, Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["CommandOutcome", "run_arguments", "run_command", "until_interrupted"]

OK, FAILED, USAGE = 0, 1, 2
DISTRIBUTION: Final = "trio-vmcp"


@attrs.frozen
class CommandOutcome:
    """The exit status of a command, and the document that --json prints."""

    status: int
    document: JSON


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
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except _UsageError as bad:
        if "--json" in (sys.argv[1:] if arguments is None else arguments):
            document = {"ok": False, "error": {"type": "UsageError", "message": bad.message}}
            write_text(sys.stdout, json.dumps(document, indent=2) + "\n")
        raise
    return _run(options, signals)


def _run(options: argparse.Namespace, signals: EndingSignals) -> int:
    safe = Sanitizer()
    try:
        signals.on_first = None
        if signals.received is not None:
            raise KeyboardInterrupt
        config = _read_file(options.config) if options.config else ConfigFile(())
        backends = config.backends
        safe = Sanitizer.of(backends)
        view = _choose_view(options.json, safe)
        skipped = tuple(Skipped(each.backend_id, each.in_file(str(options.config))) for each in config.problems)
        for line in (*(f"{options.config}: {warning}" for warning in config.warnings), *(each.why for each in skipped)):
            view.show_problem(line)
        # From here on, a KeyboardInterrupt could be raised inside of Trio. `until_interrupted` looks what has come.
        signals.on_first = keep_signal

        def tell(text: str) -> None:
            view.settle_drawing()
            view.show_problem(text)

        outcome = trio.run(until_interrupted, lambda: run_command(options, backends, view, skipped), signals, tell)
    except ConfigError as error:
        message = error.in_file(str(options.config))
        PlainView(sys.stdout, sys.stderr).show_problem(message)
        outcome = CommandOutcome(USAGE, {"ok": False, "error": {"type": "ConfigError", "message": message}})
    except OutputError as error:
        return _output_failed(error)
    except KeyboardInterrupt:  # before a session was opened, or after it was closed
        if signals.received is None:  # not from our handler: this is another thread than the main one
            raise
        outcome = _ended_by(signals)
    if options.json:
        try:
            write_text(sys.stdout, json.dumps(safe.document(outcome.document), indent=2) + "\n")
        except OutputError as error:
            return _output_failed(error)
    return outcome.status


def _output_failed(error: OutputError) -> int:
    PlainView(sys.stdout, sys.stderr).show_problem(str(error))
    return FAILED


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
    error = {"type": "KeyboardInterrupt", "message": "interrupted"}
    if signals.received is not signal.SIGINT:
        error = {"type": signals.received.name, "message": f"ended by {signals.received.name}"}
    return CommandOutcome(signals.status, {"ok": False, "error": error})


async def run_command(
    options: argparse.Namespace,
    backends: Sequence[Backend],
    view: View,
    skipped: tuple[Skipped, ...] = (),
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> CommandOutcome:
    """Run one command, after its options were parsed and its file was read.

    Args:
        skipped: Entries of the file that cannot be used: a check of all of them has failed.
        transport: Replaces the built-in HTTP transport.
    """
    try:
        match options.command:
            case "demo":
                # Imported here: its servers are a quarter of the modules, which other commands would wait for.
                from trio_vmcp._cli.demo import run_demo

                document = await run_demo(view)
                return CommandOutcome(OK if document["ok"] else FAILED, document)
            case "check":
                return await _check(backends, skipped, options.timeout, view, transport)
            case _:
                call = WatchedCall(options.tool, options.arguments)
                outcome = await _call(call, backends, options.timeout, view, transport)
                unused = {"skipped": [each.why for each in skipped]} if skipped else {}
                return attrs.evolve(outcome, document=outcome.document | unused)
    finally:
        view.settle_drawing()  # when cancelled, too: else the terminal's cursor stays hidden


async def _check(
    backends: Sequence[Backend],
    skipped: tuple[Skipped, ...],
    timeout: float | None,
    view: View,
    transport: httpx.AsyncBaseTransport | None,
) -> CommandOutcome:
    async with open_watched_session(_hurried(backends, timeout), _settings(timeout), view, transport=transport) as (
        _,
        seen,
    ):
        report = attrs.evolve(with_knobs(seen), skipped=skipped)
        view.show_session(report)
    return CommandOutcome(OK if report.complete else FAILED, report.document())


async def _call(
    call: WatchedCall,
    backends: Sequence[Backend],
    timeout: float | None,
    view: View,
    transport: httpx.AsyncBaseTransport | None,
) -> CommandOutcome:
    # Names begin with their backend's id (Prefix), so only that backend is connected; if no id fits, all are.
    owners = [backend for backend in backends if call.tool.startswith(f"{backend.id}_")] or backends
    async with open_watched_session(_hurried(owners, timeout), _settings(timeout), view, transport=transport) as (
        session,
        seen,
    ):
        report = with_knobs(seen)
        await run_watched_calls(session, [call], view, timeout=timeout)
    document: JSON = {"ok": call.status.state == "done", "tool": call.tool, "elapsed": round(call.elapsed, 6)}
    if call.result is not None:
        view.show_result(call.result)
        if call.result.is_error:
            view.show_problem(f"{call.tool} reported an error")
        document |= {"backend_id": call.result.backend_id, "result": call.result.raw}
    else:
        message = name_knobs(str(call.error))
        missing = [backend.status for backend in report.backends if backend.status.state == "failed"]
        if isinstance(call.error, ToolNotFound) and missing:  # the tool may belong to a missing backend
            message += "; missing: " + "; ".join(f"{status.id!r} {status.detail}" for status in missing)
        elif isinstance(call.error, ToolNotFound) and not call.error.closest:
            message += "; `trio-vmcp check` lists them"
        view.show_problem(message)
        document |= {"error": {"type": type(call.error).__name__, "message": message}}
    return CommandOutcome(OK if document["ok"] else FAILED, document)


def _hurried(backends: Sequence[Backend], timeout: float | None) -> Sequence[Backend]:
    """With --timeout, what an entry of the file says about its time to start does not count."""
    return backends if timeout is None else [attrs.evolve(backend, init_timeout=None) for backend in backends]


def _settings(timeout: float | None) -> FactorySettings:
    """No limit for the whole opening: a check ends when every backend has connected or failed.

    No reconnecting: a command reports the first failure of a backend and ends.
    """
    settings = FactorySettings(session_init_timeout=math.inf, reconnect_delay=math.inf, reconnect_max_delay=math.inf)
    return settings if timeout is None else attrs.evolve(settings, backend_init_timeout=timeout)


# --- arguments and the file


EXIT_STATUSES: Final = (
    "exit status: 0 success; 1 a server is missing, or a tool or the demo failed; 2 bad usage or a bad file; "
    "130, 143, 129 ended by SIGINT (Ctrl-C), SIGTERM, SIGHUP"
)


class _UsageError(SystemExit):
    """The arguments were refused, and the reason is on stderr."""

    def __init__(self, message: str) -> None:
        super().__init__(USAGE)
        self.message = message


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        try:
            super().error(message)  # prints usage and message
        except SystemExit:
            raise _UsageError(message) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="trio-vmcp", description="One session over many MCP servers.", epilog=EXIT_STATUSES)
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document to stdout, progress to stderr")
    servers = _Parser(add_help=False)
    about_file = "JSON with mcpServers, as other MCP clients read it"
    servers.add_argument("--config", metavar="FILE", type=Path, required=True, help=about_file)
    about_timeout = "for each backend to connect (default: 30), and for a call to be answered (default: 120)"
    servers.add_argument("--timeout", metavar="SECONDS", type=_seconds, help=about_timeout)

    def add_command(name: str, **about: Any) -> argparse.ArgumentParser:
        return commands.add_parser(name, epilog=EXIT_STATUSES, **about)

    demo = add_command("demo", parents=[common], help="a session over five servers that come with this command")
    demo.set_defaults(config=None)
    add_command("check", parents=[common, servers], help="connect to your servers and show what they offer")
    call = add_command("call", parents=[common, servers], help="call one tool of your servers")
    call.add_argument("tool", metavar="NAME", help="the tool's advertised name, as check shows it")
    about_arguments = "its arguments, a JSON object"
    call.add_argument("arguments", metavar="JSON", type=_json_object, nargs="?", default={}, help=about_arguments)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _json_object(text: str) -> JSON:
    try:
        value: Any = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # refuses 1e999 and lone surrogates
    except json.JSONDecodeError as exc:
        raise argparse.ArgumentTypeError(f"not JSON: {exc.msg} at {exc.lineno}:{exc.colno}") from None
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError("not JSON that can be sent") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object, such as {}")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _read_file(path: Path) -> ConfigFile:
    try:
        text = path.read_text("utf-8")
    except OSError as exc:
        raise ConfigError("", f"cannot be read: {exc.strerror or type(exc).__name__}") from None
    except UnicodeDecodeError as exc:
        raise ConfigError("", f"is not UTF-8 at byte {exc.start}") from None
    config = read_config(text, os.environ)
    if config.problems and not config.backends:
        raise config.problems[0]
    if not config.backends:
        raise ConfigError("", "enables no server")
    return config


# --- output


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
