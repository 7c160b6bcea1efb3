"""The servers of a plan: read from a file or stdin, or made from a URL or a program."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from trio_vmcp._cli.arguments import ServerChoice
from trio_vmcp._cli.config_file import ConfigError, ConfigFile, read_config
from trio_vmcp._cli.given import Given, read_object
from trio_vmcp._cli.view import Skipped
from trio_vmcp.models import Backend

__all__ = ["Found", "InputError", "Unreadable", "choose", "find_servers", "parse_servers", "read_given", "read_text"]

STDIN = "-"
ONLY_ID = "server"  # of a server without a file, which has no name


class InputError(Exception):
    """The command was given something that it cannot use. The text is one line.

    Attributes:
        kind: What is at fault: the file with the servers, or the arguments.
    """

    def __init__(self, kind: Literal["ConfigError", "UsageError"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


@attrs.frozen
class Found:
    """The servers, entries that cannot be used, and lines about keys that have no effect."""

    backends: tuple[Backend, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


def find_servers(choice: ServerChoice, environment: Mapping[str, str], *, needs_one: bool = True) -> Found:
    """The servers of the file, or the only one.

    Args:
        needs_one: A file that has no server that can be used is an error.

    Raises:
        InputError: The file cannot be read or used, has no such entry, or the URL or a header is none.
    """
    if not choice.file:
        return Found((_only_server(choice),)) if choice.url or choice.program else Found()
    name = _name(choice.file)
    try:
        text = read_text(choice.file)
    except Unreadable as error:
        raise InputError("ConfigError", f"{name}: {error}") from None
    return parse_servers(text, name, environment, choice.ids, needs_one=needs_one)


def parse_servers(
    text: str, name: str, environment: Mapping[str, str], ids: tuple[str, ...] = (), *, needs_one: bool = False
) -> Found:
    """The servers of a file of this name.

    Raises:
        InputError: The text cannot be used, or (`needs_one`) has no such server.
    """
    try:
        config = read_config(text, environment)
        if needs_one:
            config = choose(config, ids)
    except ConfigError as error:
        raise InputError("ConfigError", error.in_file(name)) from None
    skipped = tuple(Skipped(problem.backend_id, problem.in_file(name)) for problem in config.problems)
    return Found(config.backends, skipped, tuple(f"{name}: {warning}" for warning in config.warnings))


def choose(config: ConfigFile, ids: tuple[str, ...]) -> ConfigFile:
    """The entries of these ids, in the file's order; without ids, all of them.

    Raises:
        ConfigError: There is no such entry, or none that can be used.
    """
    if ids:
        known = {each.id for each in config.backends} | {each.backend_id for each in config.problems}
        for backend_id in ids:
            if backend_id not in known:
                there = f"; it has {', '.join(sorted(known))}" if known else ""
                raise ConfigError("", f"enables no server {backend_id[:64]!r} (--server){there}")
        config = attrs.evolve(
            config,
            backends=tuple(each for each in config.backends if each.id in ids),
            problems=tuple(each for each in config.problems if each.backend_id in ids),
        )
    if not config.backends:
        raise config.problems[0] if config.problems else ConfigError("", "enables no server")
    return config


def read_given(given: Given) -> Given:
    """The arguments, after those that stand in a file or on stdin were read.

    Raises:
        InputError: They cannot be read, or are no JSON object.
    """
    if not given.place:
        return given
    name = _name(given.place)
    try:
        return Given(whole=read_object(read_text(given.place), ""))
    except (Unreadable, ValueError) as error:
        raise InputError("UsageError", f"{name}: {error}") from None


def _only_server(choice: ServerChoice) -> Backend:
    if choice.program:
        command, *args = choice.program
        try:
            return Backend(id=ONLY_ID, transport="stdio", command=command, args=args)
        except ValueError:  # its text may show an argument, which may be secret
            raise InputError("UsageError", "the program after -- is empty, or holds NUL") from None
    try:
        backend = Backend(id=ONLY_ID, url=choice.url)
    except ValueError:  # its text shows the url, which may be secret
        raise InputError("UsageError", "the URL is not an http:// or https:// URL with a host") from None
    try:
        return attrs.evolve(backend, headers=dict(choice.headers))
    except ValueError as error:
        raise InputError("UsageError", f"--header: {error}") from None


class Unreadable(Exception):
    """A file or stdin that cannot be read; the text completes a sentence about it."""


def _name(place: str) -> str:
    return "stdin" if place == STDIN else place


def read_text(place: str) -> str:
    """
    Raises:
        Unreadable: It is away, or no UTF-8.
    """
    try:
        if place != STDIN:
            return Path(place).read_text("utf-8")
        if sys.stdin is None:  # closed by the parent process
            raise Unreadable("cannot be read: it is closed")
        return sys.stdin.buffer.read().decode()
    except OSError as exc:
        raise Unreadable(f"cannot be read: {exc.strerror or type(exc).__name__}") from None
    except UnicodeDecodeError as exc:
        raise Unreadable(f"is not UTF-8 at byte {exc.start}") from None
