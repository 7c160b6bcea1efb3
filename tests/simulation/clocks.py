"""Wall clocks of the instances. They differ, as those of machines do: nothing but `max_lifetime` goes by them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self
from unittest import mock

import trio

import trio_vmcp._session.row
import trio_vmcp._session.stored_row
import trio_vmcp._session.use_marks

__all__ = ["wall_clocks"]

START = datetime(2026, 7, 28, tzinfo=UTC)
# Of the clocks of instances.
READERS = (trio_vmcp._session.row, trio_vmcp._session.stored_row, trio_vmcp._session.use_marks)


@contextmanager
def wall_clocks(ahead: Sequence[float], instance: Callable[[], int | None]) -> Iterator[None]:
    """They go with the clock of the run. No time is read twice: a mark of one instance is none of another.

    Args:
        ahead: s, by instance.
        instance: That of the current task; None: the task is of no instance.
    """
    ticks = itertools.count()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            number = instance()
            seconds = trio.current_time() + (0.0 if number is None else ahead[number])
            read = START + timedelta(seconds=seconds, microseconds=next(ticks))
            return cls.combine(read.date(), read.time(), tz)

    with ExitStack() as patches:
        for reader in READERS:
            patches.enter_context(mock.patch.object(reader, "datetime", Clock))
        yield
