"""The resident memory of this process, from Linux' /proc; elsewhere nan, with which no bar on memory is kept."""

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


def _status(name: str, status: Path = STATUS) -> float:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    except OSError:
        return math.nan
    return int(found[1]) * 1024 if found else math.nan
