"""The resident memory of this process, from Linux' /proc; elsewhere nan, with which no bar on memory is kept. And what
Python allocates, which is slow to count: nothing is timed meanwhile.
"""

from __future__ import annotations

import gc
import math
import re
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Self

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5)


def resident() -> float:
    """Resident bytes, after a garbage collection."""
    gc.collect()
    return _status("VmRSS")


def resident_of(pid: int) -> float:
    """Resident bytes of another process."""
    return _status("VmRSS", Path(f"/proc/{pid}/status"))


def reset_peak() -> None:
    """Let `peak` begin anew with the memory that is resident now."""
    with suppress(OSError):  # without the right to, the peak is that of the process, which is a new one for each answer
        CLEAR_REFS.write_text(RESET_PEAK)


def peak() -> float:
    """The most resident bytes since `reset_peak`."""
    return _status("VmHWM")


class Allocated:
    """A block: bytes that Python's allocators gave out in it, and that were not freed by its end."""

    bytes: int = 0

    def __enter__(self) -> Self:
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect()
        self.bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()


def _status(name: str, status: Path = STATUS) -> float:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    except OSError:
        return math.nan
    return int(found[1]) * 1024 if found else math.nan
