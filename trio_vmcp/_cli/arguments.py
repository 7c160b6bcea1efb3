"""The command's arguments as a plan. Pure, but for what argparse prints: help, the version, and bad usage."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

import attrs

from trio_vmcp._cli.given import Given, parse_words
from trio_vmcp._cli.output import write_log, write_text
from trio_vmcp._cli.serve_options import ServeOptions, add_serve_arguments

__all__ = ["CommandName", "Plan", "ServerChoice", "UsageError", "parse_plan"]

DISTRIBUTION: Final = "trio-vmcp"
USAGE: Final = 2
EXIT_STATUSES: Final = (
    "exit status: 0 success; 1 a server is missing, or a tool or the demo failed; 2 bad usage or a bad file; "
    "130, 143, 129 ended by SIGINT (Ctrl-C), SIGTERM, SIGHUP (serve: 0)"
)

CommandName: TypeAlias = Literal["demo", "check", "call", "read", "prompt", "complete", "serve"]


@attrs.frozen(kw_only=True)
class ServerChoice:
    """Where the servers of a command come from: a file, one URL, or one program.

    Attributes:
        file: A path, or "-" for stdin; empty: no file.
        ids: The entries of the file that are wanted; empty: all that it enables.
        headers: Sent to the URL.
        program: A program and its arguments, which speaks MCP over stdio.
    """

    file: str = ""
    ids: tuple[str, ...] = ()
    url: str = attrs.field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    program: tuple[str, ...] = attrs.field(default=(), repr=False)


@attrs.frozen(kw_only=True)
class Plan:
    """What to do.

    Attributes:
        name: The tool, prompt, resource or template that the command is about; empty: `check` shows everything.
        given: Its arguments; for `complete` one pair, the argument and what there is of its value.
        watch: Keep the session open, and show the condition of its backends until a signal comes.
        timeout: s for each backend to connect, and for a request to be answered; None: the defaults.
        serve: For the command `serve` alone.
    """

    command: CommandName
    servers: ServerChoice = attrs.field(factory=ServerChoice)
    name: str = ""
    given: Given = attrs.field(factory=Given)
    timeout: float | None = None
    json: bool = False
    watch: bool = False
    verbose: bool = False
    serve: ServeOptions | None = None


class UsageError(SystemExit):
    """The arguments were refused, and the reason is on stderr."""

    def __init__(self, message: str) -> None:
        super().__init__(USAGE)
        self.message = message


def parse_plan(arguments: Sequence[str]) -> Plan:
    """The plan that the arguments, without the program's name, describe.

    Raises:
        UsageError: They describe none.
        SystemExit: Help or the version was asked for, and is printed.
    """
    program: Sequence[str] | None = None
    if arguments[:1] == ["check"] and "--" in arguments:
        at = arguments.index("--")
        arguments, program = arguments[:at], arguments[at + 1 :]
    parser, commands = _parsers()
    options = parser.parse_args(arguments)
    if options.command == "demo":
        return Plan(command="demo", json=options.json, verbose=options.verbose)
    try:
        if options.command == "serve":
            return _serve_plan(options)
        return _check_plan(options, program) if options.command == "check" else _request_plan(options)
    except ValueError as problem:
        commands[options.command].error(str(problem))


def _serve_plan(options: argparse.Namespace) -> Plan:
    servers = ServerChoice(file=options.config)
    return Plan(command="serve", servers=servers, verbose=options.verbose, serve=ServeOptions.of(options))


def _check_plan(options: argparse.Namespace, program: Sequence[str] | None) -> Plan:
    urls = [word for word in options.words if "://" in word]
    names = [word for word in options.words if "://" not in word]
    if options.config is None and not urls and program is None:
        raise ValueError("one of --config FILE, a URL, and a program after -- is required")
    if (options.config is not None) + len(urls) + (program is not None) > 1:
        raise ValueError("--config FILE, a URL, and a program after -- exclude each other")
    if program is not None and not program:
        raise ValueError("there is no program after --")
    if options.watch and (names or options.json):
        raise ValueError("--watch goes with neither NAME nor --json")
    if len(names) > 1:
        raise ValueError("one NAME at most is shown")
    if options.server and options.config is None:
        raise ValueError("--server is for --config")
    headers = tuple(options.header)
    if options.bearer is not None:
        if any(name.lower() == "authorization" for name, _ in headers):
            raise ValueError("--bearer and --header Authorization exclude each other")
        headers = (*headers, ("Authorization", f"Bearer {options.bearer}"))
    if len({name.lower() for name, _ in headers}) < len(headers):
        raise ValueError("--header names one header twice")
    if headers and not urls:
        raise ValueError("--header and --bearer are for a URL")
    servers = ServerChoice(
        file=options.config or "",
        ids=tuple(options.server),
        url=urls[0] if urls else "",
        headers=headers,
        program=tuple(program or ()),
    )
    return attrs.evolve(_plan(options, servers, name=names[0] if names else ""), watch=options.watch)


def _request_plan(options: argparse.Namespace) -> Plan:
    if options.command == "complete":
        key, equals, value = options.words[0].partition("=")
        if not key or not equals:
            raise ValueError("argument ARGUMENT=VALUE: has no name or no =")
        given = Given(((key, value),))
    else:
        given = parse_words(getattr(options, "words", ()))
    if given.place == options.config == "-":
        raise ValueError("stdin cannot hold both the file and the arguments")
    return _plan(options, ServerChoice(file=options.config, ids=tuple(options.server)), name=options.name, given=given)


def _plan(options: argparse.Namespace, servers: ServerChoice, *, name: str, given: Given | None = None) -> Plan:
    return Plan(
        command=cast("CommandName", options.command),
        servers=servers,
        name=name,
        given=given or Given(),
        timeout=options.timeout,
        json=options.json,
        verbose=options.verbose,
    )


# --- argparse


class _Parser(argparse.ArgumentParser):
    shows_usage = True  # beside what is wrong

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help goes to stdout, and what is wrong to stderr; argparse by itself would not notice a full disk."""
        (write_text if file is sys.stdout else write_log)(file or sys.stderr, message)

    def error(self, message: str) -> NoReturn:
        if self.shows_usage:
            self.print_usage(sys.stderr)
        self._print_message(f"{self.prog}: error: {message}\n", sys.stderr)
        raise UsageError(message)


class _CommandParser(_Parser):
    """Options may stand between the other words, which argparse by itself does not allow."""

    _is_parsing = False

    # The stub of argparse has an overload for each default.
    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        if self._is_parsing:
            return super().parse_known_args(args, namespace)
        self._is_parsing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of everything, and that of each command."""
    parser = _Parser(prog="trio-vmcp", description="One session over many MCP servers.", epilog=EXIT_STATUSES)
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    adder = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser)
    verbose, with_document = _CommandParser(add_help=False), _CommandParser(add_help=False)
    verbose.add_argument("-v", "--verbose", action="store_true", help="the log and the servers' stderr, on stderr")
    with_document.add_argument(
        "--json", action="store_true", help="print one JSON document to stdout, progress to stderr"
    )
    commands: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, about: str, *own: _CommandParser, usage: str | None = None, json: bool = True) -> _CommandParser:
        parents = [with_document, verbose, *own] if json else [verbose, *own]
        command = adder.add_parser(
            name, help=about, description=about, epilog=EXIT_STATUSES, parents=parents, usage=usage
        )
        commands[name] = command
        return command

    add("demo", "a session over five servers that come with this command")
    _add_check(add)
    from_file = _server_options(file_is_required=True)
    about_words = (
        "KEY=VALUE, a string unless the schema gives another type, then JSON; "
        "or a single word for all arguments: a JSON object, @FILE, or - for stdin"
    )
    for name, about in (("call", "call one tool of your servers"), ("prompt", "fill in one prompt of your servers")):
        command = add(name, about, from_file)
        command.add_argument("name", metavar="NAME", help="the advertised name, as check shows it")
        command.add_argument("words", metavar="ARGUMENT", nargs="*", help=about_words)
    read = add("read", "print one resource of your servers", from_file)
    read.add_argument("name", metavar="URI", help="as check shows it, or one that a template matches")
    complete = add("complete", "print proposals for the value of an argument", from_file)
    complete.add_argument("name", metavar="NAME", help="a prompt's advertised name, or a resource template")
    complete.add_argument("words", metavar="ARGUMENT=VALUE", nargs=1, help="the argument, and the value's beginning")
    serve = add("serve", "serve your servers to MCP clients, as one server", json=False)
    serve.shows_usage = False  # a server is started by a program that shows the last line, if any
    add_serve_arguments(serve)
    return parser, commands


def _add_check(add: Callable[..., _CommandParser]) -> None:
    check = add(
        "check",
        "connect to servers and show what they offer",
        _server_options(file_is_required=False),
        usage=(
            "%(prog)s [options] --config FILE [NAME]\n       %(prog)s [options] URL [NAME]\n"
            "       %(prog)s [options] [NAME] -- PROGRAM [ARG ...]"
        ),
    )
    about_words = "a server without a file (so is a program after --), and the NAME of a tool or prompt to explain"
    check.add_argument("words", metavar="URL, NAME", nargs="*", help=about_words)
    about_header = "a header for the URL; may be repeated"
    about_watch = "stay connected, and show states, calls and latencies until Ctrl-C"
    check.add_argument("--watch", action="store_true", help=about_watch)
    check.add_argument("--header", metavar="'N: V'", type=_header, action="append", default=[], help=about_header)
    check.add_argument("--bearer", metavar="TOKEN", help="for the URL: the header Authorization: Bearer TOKEN")


def _server_options(*, file_is_required: bool) -> _CommandParser:
    options = _CommandParser(add_help=False)
    about_file = "JSON with mcpServers, as other MCP clients read it; - is stdin"
    options.add_argument("--config", metavar="FILE", required=file_is_required, help=about_file)
    about_server = "only this server of the file; may be repeated"
    options.add_argument("--server", metavar="ID", action="append", default=[], help=about_server)
    about_timeout = "for each server to connect (default: 30), and for a request to be answered (default: 120)"
    options.add_argument("--timeout", metavar="SECONDS", type=_seconds, help=about_timeout)
    return options


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


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError("is not of the form 'NAME: VALUE'")  # the text may be secret
    return name.strip(), value.strip(" \t")
