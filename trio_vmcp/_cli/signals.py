"""The signals that end the command: the first one closes its session in order, a second one ends it at once.

A shell reports a program that was ended by signal N as status 128 + N (POSIX, "Exit Status for Commands"): 130 for
SIGINT (Ctrl-C), 143 for SIGTERM (`kill`, `timeout`, a cancelled CI job), 129 for SIGHUP (a terminal that was closed).
A signal that the parent process had ignored, as `nohup` and background jobs of a shell do, stays ignored.
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

import attrs

from trio_vmcp._client.channels.process import kill_children

__all__ = ["EndingSignals", "catching_signals"]

_ENDING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SHOW_CURSOR: Final = b"\x1b[?25h"  # ECMA-48, DECTCEM


@attrs.define(eq=False)
class EndingSignals:
    """What came of the signals.

    Attributes:
        received: The first of them; None: there was none.
        on_first: Called with the first one, in the signal handler. None: it raises KeyboardInterrupt, since no session
            is open.
        outputs: The file descriptors that the command writes to.
    """

    received: signal.Signals | None = None
    on_first: Callable[[], object] | None = None
    outputs: tuple[int, ...] = (1, 2)
    _terminals: tuple[int, ...] = attrs.field(init=False)
    # `next` of it is one step: a second signal may come in the middle of the first one's handler.
    _signals_before: Iterator[int] = attrs.field(factory=itertools.count, init=False)

    def __attrs_post_init__(self) -> None:
        self._terminals = tuple(number for number in self.outputs if os.isatty(number))

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
        """Without closing anything, so also where a close hangs. No server process is left behind."""
        kill_children()
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
def catching_signals() -> Iterator[EndingSignals]:
    """Handle the signals. In another thread than the main one, which can have no handlers, nothing is caught."""
    signals = EndingSignals()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, signals.handle) for number in handled}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
