"""The garbage collector of a process that does nothing but serve."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MOST_YOUNG", "patient_collector"]

MOST_YOUNG = 5000  # objects that are new since the last look; by default 700


@contextmanager
def patient_collector() -> Iterator[None]:
    """Around serving: fewer looks for cyclic garbage, and none at what is there when it begins.

    By default a look begins for each few requests, and meets those that are under way as survivors, for which it soon
    looks at all objects: with thirty clients over ten backends a tenth of the CPU time of a call, in pauses of 60 ms
    that every client notices. What is left of a request is no cycle, and is freed without the collector.
    """
    young, *others = gc.get_threshold()
    freezes = not gc.get_freeze_count()  # else the application does so itself
    if freezes:
        gc.collect()
        gc.freeze()
    gc.set_threshold(max(young, MOST_YOUNG) if young else 0, *others)  # 0: the user has switched it off
    try:
        yield
    finally:
        gc.set_threshold(young, *others)
        if freezes:
            gc.unfreeze()
