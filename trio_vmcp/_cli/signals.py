"""The signals that end the command: the first one closes its session in order, a second one ends it at once.

A shell reports a program that was ended by signal N as status 128 + N (POSIX, "Exit Status for Commands"): 130 for
SIGINT (Ctrl-C), 143 for SIGTERM (`kill`, `timeout`, a cancelled CI job), 129 for SIGHUP (a terminal that was closed).
A signal that the parent process had ignored, as `nohup` and background jobs of a shell do, stays ignored.

This module is imported before all others, so it imports nothing that takes long.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["EndingSignals", "catching_signals", "closing_text", "keep_signal"]

_ENDING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SHOW_CURSOR: Final = b"\x1b[?25h"  # ECMA-48, DECTCEM


def keep_signal() -> None:
    """For `EndingSignals.on_first`, where an exception would do harm: `received` tells of the signal later."""


def closing_text(number: signal.Signals) -> str:
    """What the command says when it closes its session because of this signal."""
    name = "Ctrl-C" if number is signal.SIGINT else number.name
    return f"closing the session after {name}; {name} again ends at once"


class EndingSignals:
    """What came of the signals.

    Attributes:
        received: The first of them; None: there was none.
        on_first: Called with the first one, in the signal handler. None: it raises KeyboardInterrupt, since no session
            is open.
        kill_children: Called before the process ends at once, so that no server process is left behind.
    """

    def __init__(self, on_first: Callable[[], object] | None = None, outputs: tuple[int, ...] = (1, 2)) -> None:
        """Args:
        outputs: The file descriptors that the command writes to.
        """
        self.received: signal.Signals | None = None
        self.on_first = on_first
        self.kill_children: Callable[[], object] = keep_signal
        self._terminals = tuple(number for number in outputs if os.isatty(number))
        # `next` of it is one step: a second signal may come in the middle of the first one's handler.
        self._signals_before: Iterator[int] = itertools.count()

    @property
    def status(self) -> int:
        """The exit status of a command that was ended by the first signal."""
        assert self.received is not None
        return 128 + self.received

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if next(self._signals_before) > 0:
            self._end_at_once(128 + number)
        self.received = signal.Signals(number)
        self._drop_lost_terminals()
        if self.on_first is None:
            raise KeyboardInterrupt
        self.on_first()

    def _end_at_once(self, status: int) -> None:
        """Without closing anything, so also where a close hangs."""
        self.kill_children()
        for number in self._terminals:
            if os.isatty(number):
                os.write(number, _SHOW_CURSOR)
        os._exit(status)

    def _drop_lost_terminals(self) -> None:
        """A write to a terminal that was closed is an error (EIO), which would end the close half-way."""
        for number in self._terminals:
            if not os.isatty(number):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextmanager
def catching_signals(on_first: Callable[[], object] | None = None) -> Iterator[EndingSignals]:
    """Handle the signals. In another thread than the main one, which can have no handlers, nothing is caught."""
    signals = EndingSignals(on_first)
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, signals.handle) for number in handled}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
