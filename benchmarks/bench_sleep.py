"""What does a session hold that hibernates, and how long does it take to wake?

python benchmarks/bench_sleep.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import FLOORS, HTTPX, LIBRARY, MILLISECONDS, Bound, Question, Ratio, Row, Shown
from harness import main

QUESTION = Question(
    name="sleep",
    asks="sessions of a manager that hibernate, and wake",
    rows=(
        Row(
            label="10 000 sessions asleep",
            backends=1,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "hibernated", "sessions": 10_000},
            short={"sessions": 2000},
            shows=(
                Shown("held", "KiB, without its row", 1 / 1024),
                Shown("row", "KiB of row", 1 / 1024),
                Shown("wall", "ms a session", 1e3),
            ),
            bars=(Bound("held", 4.0, "KiB a session beside its row", per=1024),),
            rounds=1,
            fresh=True,
            timeout=600.0,
        ),
        Row(
            label="wake one over 10 backends",
            backends=10,
            path="/json/0",
            contenders=(*FLOORS, LIBRARY),
            command={"do": "wake", "repeat": 3},
            short={"repeat": 1},
            shows=(MILLISECONDS,),
            bars=(Ratio(HTTPX, 1.3),),
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
