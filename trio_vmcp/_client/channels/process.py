"""A child process that cannot outlive its owner: one task starts, supervises and ends it.

On POSIX the child leads a session of its own. So one signal reaches all processes that it has started, and a Ctrl-C at
the terminal reaches this process alone. Facts that this relies on:

- `trio.lowlevel.open_process` starts the child in a thread that a cancel does not abandon, and has no checkpoint after
  that: either there is no child, or we hold its `Process`.
- `Process.wait` waits for the exit of the child itself. The end of its output proves less: another process that it has
  started may hold the pipe open for ever.
- The id of a process group is not used again while a member lives or the leader is not reaped. So the group is killed
  in the same step in which the leader is reaped.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

import attrs
import trio

from trio_vmcp._client.channels.lines import LineChannel, LineFlood
from trio_vmcp._client.channels.stderr import LastWords, StderrLog
from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.outcomes import Loss
from trio_vmcp._protocol.words import blotted, secrets_in
from trio_vmcp.errors import MessageTooLarge
from trio_vmcp.models import Backend

__all__ = ["ChildProcess", "child_environment", "given_environment", "kill_children"]

logger = logging.getLogger("trio_vmcp.client.stdio")

# The variables that a child inherits, as in the official SDKs: enough to find programs and a home directory, no
# secrets.
_INHERITED_POSIX = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
_INHERITED_WINDOWS = (
    *("APPDATA", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "PATH", "PATHEXT", "PROCESSOR_ARCHITECTURE", "PROGRAMFILES"),
    *("SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP", "USERNAME", "USERPROFILE"),
)
_INHERITED_PREFIX = "LC_"

_KILL: signal.Signals = getattr(
    signal, "SIGKILL", signal.SIGTERM
)  # on Windows, Python ends a process in the same way for both

# Shares of the teardown time: for a child to exit when its stdin is closed, and then when it has received SIGTERM. Real
# programs take up to a second to save their state and to end the processes that they have started.
EOF_SHARE, TERM_SHARE = 3 / 4, 1 / 4
# Another share, before these: for a child that has closed its stdout to exit, or for the output of one that has exited.
LAST_WORDS_SHARE = 1 / 4
MOST_TEARDOWN = 10.0  # s, if the teardown time is longer
REAP_TIMEOUT = 1.0  # s, for the kernel to end a killed process


def child_environment(environment: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child.

    Args:
        environment: The environment of this process; the child inherits a list of safe variables.
        own: From `given_environment`; takes precedence.
    """
    return {name: value for name, value in environment.items() if _is_safe(name)} | dict(own)


def given_environment(environment: Mapping[str, str], backend: Backend) -> dict[str, str]:
    """The variables that the user gives to the child: those that `Backend.inherit_env` means, as they are in this
    process, and `Backend.env`, which takes precedence. Their values may be secrets.
    """
    meant = backend.inherit_env
    inherited = {
        name: value
        for name, value in environment.items()
        if not _is_safe(name) and any(name == one or fnmatch.fnmatchcase(name, one) for one in meant)
    }
    return inherited | dict(backend.env)


def _is_safe(name: str) -> bool:
    safe = _INHERITED_WINDOWS if sys.platform == "win32" else _INHERITED_POSIX  # Windows has names in upper case
    return name in safe or name.startswith(_INHERITED_PREFIX)


_running: set[trio.Process] = set()  # the children of this process that may have to be killed


def kill_children() -> None:
    """Kill every child and the processes that it has started: for a program that ends without closing its sessions."""
    for process in tuple(_running):
        _signal_group(process, _KILL)


@attrs.define(eq=False, kw_only=True)
class ChildProcess:
    """One child and the lines to and from it.

    Attributes:
        started: Set when the child runs or could not be started; in that case `channel.inbox.loss` has the reason.
        gone: Set when the process has ended and its pipes are closed.
    """

    backend: Backend
    channel: LineChannel
    teardown_timeout: float  # s
    started: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    gone: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _time_to_end: float = attrs.field(default=MOST_TEARDOWN, init=False)  # s
    _given: Mapping[str, str] = attrs.field(init=False, repr=False)  # variables of the child
    _stderr: StderrLog = attrs.field(init=False, repr=False)
    _stdout: LastWords = attrs.field(init=False, repr=False)  # what it says there that is no message
    _process: trio.Process | None = attrs.field(default=None, init=False)
    _is_connected: bool = attrs.field(default=False, init=False)  # a client relies on the child: its end is news
    _is_closing: bool = attrs.field(default=False, init=False)
    _end_begun: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _exited: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _stdout_ended: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _stderr_ended: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _flood: LineFlood | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._time_to_end = min(self.teardown_timeout, MOST_TEARDOWN)
        self._given = given_environment(os.environ, self.backend)
        secrets = secrets_in(self._given, self.backend.args)
        self._stderr = StderrLog(self.backend.id, secrets)
        self._stdout = LastWords(secrets)
        self.channel.on_text = self._stdout.add
        self.channel.inbox.blot = partial(blotted, secrets=secrets)

    async def serve(self) -> None:
        """Start the child, and wait until it has ended. If this is cancelled, it ends the child in the usual order
        first.

        Raises:
            BackendUnavailable, MessageTooLarge: The child ended by itself after the client was connected.
        """
        try:
            process = await self._spawn()
            if process is not None:
                # No checkpoint since `open_process`, and the supervisor is shielded: it runs even if this is cancelled.
                async with trio.open_nursery() as nursery:
                    start_task(nursery, self._supervise, process)
                    try:
                        await self.gone.wait()
                    finally:
                        self.close()
        finally:
            self.gone.set()
            self.started.set()
            self.channel.inbox.close(Loss("was not started"))
        loss = self.channel.inbox.loss
        if self._is_connected and not self._is_closing and loss is not None:
            raise loss.error(self.backend.id)

    def mark_connected(self) -> None:
        """The client is connected. From now on the end of the child is an error of `serve`.

        Raises:
            BackendUnavailable: The child has ended.
        """
        if self.channel.inbox.loss is not None:
            raise self.channel.inbox.loss.error(self.backend.id)
        self._is_connected = True

    def close(self, within: float = math.inf) -> None:
        """End the child, without waiting: within the teardown time, or `within` s, if that is less. A child whose end
        has begun already has the rest of its own time. `gone` is set at most REAP_TIMEOUT later.
        """
        if not self._end_begun.is_set():
            self._is_closing = True
            self._time_to_end = min(self._time_to_end, max(within, 0.0))
            self._end_begun.set()

    def kill(self) -> None:
        """Kill the child now."""
        self.close()
        if self._process is not None and not self._exited.is_set():
            _signal_group(self._process, _KILL)

    async def _spawn(self) -> trio.Process | None:
        backend = self.backend
        assert backend.command is not None  # Backend checks that
        try:
            return await trio.lowlevel.open_process(
                [backend.command, *backend.args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=backend.cwd,
                env=child_environment(os.environ, self._given),
                start_new_session=True,
            )
        except OSError as exc:
            problem = os.strerror(exc.errno) if exc.errno else type(exc).__name__
            what = "directory" if exc.filename == backend.cwd else "command"
            loss = Loss(f"could not be started: {what} {exc.filename or backend.command!r}: {problem}")
        self.channel.inbox.close(loss)
        return None

    async def _supervise(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        _running.add(process)
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as pumps:
                    start_task(pumps, self._watch, process)
                    start_task(pumps, self._write, process.stdin)
                    start_task(pumps, self._read, process.stdout)
                    start_task(pumps, self._listen, process.stderr)
                    self.started.set()
                    await self._end_begun.wait()
                    await self._end_process(process)
                    pumps.cancel_scope.cancel()
            finally:
                self.channel.inbox.close(Loss("crashed in its connection"))
                if not self._exited.is_set():  # a pump broke
                    self.kill()
                    with trio.move_on_after(REAP_TIMEOUT, shield=True):
                        await process.wait()
                    _running.discard(process)
                for stream in (process.stdin, process.stdout, process.stderr):
                    await trio.aclose_forcefully(stream)
                self.gone.set()

    async def _end_process(self, process: trio.Process) -> None:
        """End the process, from the first sign of its end to its exit."""
        budget = self._time_to_end
        if not self._is_closing and self._flood is None:
            # Wait for the exit status and the rest of stderr, for the error text, and for the rest of stdout, which may
            # hold an answer.
            with trio.move_on_after(LAST_WORDS_SHARE * budget):
                await self._exited.wait()
                await self._stdout_ended.wait()
                await self._stderr_ended.wait()
        self.channel.inbox.close(self._find_loss(process))
        self.channel.retire_writer()
        for share, request in ((EOF_SHARE, signal.SIGTERM), (TERM_SHARE, _KILL)):
            with trio.move_on_after(share * budget):
                await self._exited.wait()
            if self._exited.is_set():
                return
            _signal_group(process, request)
        with trio.move_on_after(REAP_TIMEOUT):
            await self._exited.wait()
            return
        logger.warning("backend %r: its process %d survives SIGKILL", self.backend.id, process.pid)

    def _find_loss(self, process: trio.Process) -> Loss:
        if self._is_closing:
            return Loss("was closed")
        if self._flood is not None:
            return Loss(f"sent {self._flood}", kind=MessageTooLarge)
        status = process.returncode if self._exited.is_set() else None
        if status is None:
            what = f"closed its {'stdout' if self._stdout_ended.is_set() else 'stdin'}"
        elif status < 0:
            what = f"was ended by signal {_signal_name(-status)}"
        else:
            what = f"ended with status {status}"
        if words := self._stderr.last_words():
            return Loss(what, f"; its last words on stderr: {words}")
        if words := self._stdout.quoted():
            return Loss(what, f"; its last words on stdout: {words}")
        return Loss(what)

    async def _watch(self, process: trio.Process) -> None:
        await process.wait()
        _signal_group(process, _KILL)  # the processes that the child has left behind
        _running.discard(process)  # its number may be given to another process
        self._exited.set()
        self._end_begun.set()

    async def _write(self, stream: trio.abc.SendStream) -> None:
        try:
            await self.channel.write(stream)
        except trio.BrokenResourceError:
            self._end_begun.set()

    async def _read(self, stream: trio.abc.ReceiveStream) -> None:
        try:
            await self.channel.read(stream)
        except LineFlood as flood:
            self._flood = flood
        self._stdout_ended.set()
        self._end_begun.set()

    async def _listen(self, stream: trio.abc.ReceiveStream) -> None:
        await self._stderr.drain(stream)
        self._stderr_ended.set()


def _signal_group(process: trio.Process, number: int) -> None:
    """Send a signal to the child and the processes that it has started, if any are left."""
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS, for a group of zombies
        pass


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)
