"""How much memory does an idle open session hold, and how long do many of them take to open?

python benchmarks/bench_footprint.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from typing import Any

from contest import FASTMCP, FLOORS, HTTPX, LIBRARY, OFFICIAL, Bound, Question, Ratio, Row, Shown, times_as_fast
from harness import main

KIB = Shown("held", "KiB a link", 1 / 1024)
MOMENTS = Shown("wall", "ms a link", 1e3)


def row(label: str, path: str, *, listen: bool, **special: Any) -> Row:
    return Row(
        label=label,
        backends=10,
        path=path,
        command={"do": "footprint", "sessions": 100, "terms": {"listen": listen}},
        short={"sessions": 10},
        shows=(KIB, MOMENTS),
        rounds=3,
        fresh=True,
        **special,
    )


QUESTION = Question(
    name="footprint",
    asks="open sessions over 10 backends; each of them a link",
    rows=(
        row(
            "100 sessions",
            "/json/0",
            listen=False,
            contenders=(*FLOORS, LIBRARY, *OFFICIAL, FASTMCP),
            slow={"sessions": 10},  # a hundred would take too long; their cost per session is the same
            bars=(
                Bound("held", 60.0, "KiB a link", per=1024),
                Ratio(HTTPX, 0.40, of="held"),
                Ratio(HTTPX, 0.30),
                *(times_as_fast(10, peer) for peer in OFFICIAL),
            ),
        ),
        row("100 sessions with streams", "/held/0", listen=True, contenders=(LIBRARY,)),
        Row(
            label="1000 sessions, opened and closed",
            backends=10,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "open_many", "sessions": 1000},
            short={"sessions": 50},
            shows=(MOMENTS, Shown("failed", "sessions that failed")),
            bars=(Bound("failed", 0, "sessions that failed"),),
            rounds=1,
            fresh=True,
            timeout=300.0,
        ),
        Row(
            label="a file of 40 programs, 3 in use",
            backends=1,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "stopped", "programs": 40, "used": 3},
            short={"programs": 6, "used": 1},
            shows=(
                Shown("processes", "processes"),
                Shown("bytes", "MiB", 1 / 1024 / 1024),
                Shown("held", "of 3 alone"),
            ),
            bars=(Bound("processes", 3, "processes"), Bound("held", 1.1, "memory / that of 3 alone")),
            rounds=1,
            fresh=True,
            timeout=300.0,
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
