"""What a process holds, from Linux' /proc; elsewhere nan, and then a bar on memory is never held."""

from __future__ import annotations

import gc
import math
import re
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5)


def resident() -> float:
    """Bytes, without what is only waiting for the collector."""
    gc.collect()
    return _status("VmRSS")


def forget_peak() -> None:
    """From here on `peak` begins with what is resident now."""
    with suppress(OSError):  # where it may not, the peak is that of the process, which is fresh
        CLEAR_REFS.write_text(RESET_PEAK)


def peak() -> float:
    """Bytes: the most that were resident."""
    return _status("VmHWM")


def _status(name: str) -> float:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return math.nan
    return int(found[1]) * 1024 if found else math.nan
