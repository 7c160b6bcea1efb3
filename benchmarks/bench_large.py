"""How long does a large result take, and how much memory?

python benchmarks/bench_large.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from typing import Any

from contest import FASTMCP, FLOORS, HTTPX, LIBRARY, OFFICIAL, Bound, Question, Ratio, Row, Shown
from harness import main

MIB = 1024 * 1024
PEAK = {"json": 5.0, "sse": 6.0}  # times the size


def row(size: int, form: str, calls: int, **special: Any) -> Row:
    return Row(
        backends=1,
        path=f"/{form}/0/{size}MiB",
        contenders=(*FLOORS, LIBRARY, *OFFICIAL, FASTMCP),
        command={"do": "large", "calls": calls, "size": size * MIB},
        may_fail=(*OFFICIAL, FASTMCP),  # they refuse events over 1 MiB
        **special,
    )


SIZES = tuple((size, form, calls) for size, calls in ((1, 16), (8, 4)) for form in ("json", "sse"))

QUESTION = Question(
    name="large",
    asks="call a tool with a large answer, one after another",
    rows=(
        *(
            row(size, form, calls, label=f"{size} MiB, {form.upper()}", slow_rounds=2, bars=(Ratio(HTTPX, 1.0),))
            for size, form, calls in SIZES
        ),
        *(
            row(
                size,
                form,
                calls,
                label=f"{size} MiB, {form.upper()}, memory",
                shows=(Shown("peak", "peak / size"),),
                bars=(Bound("peak", PEAK[form], "peak / size"),),
                fresh=True,
                rounds=3,
                slow_rounds=1,
            )
            for size, form, calls in SIZES
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
