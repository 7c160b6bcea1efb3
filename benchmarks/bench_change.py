"""What does a change cost a session of many backends, and a storm of changes that are none?

python benchmarks/bench_change.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import LIBRARY, Bound, Question, Row, Shown
from harness import main

BACKENDS, TOOLS = 50, 1000
MOST_GROWTH = 0.2
CHANGES = {  # the measure, what it is, the most s of CPU
    "description": ("one changed description", 0.005),
    "lost": ("one connection lost and back", 0.005),
    "all_lost": ("all connections lost and back", 1.0),
}
# s. The interval between two refetches of a backend doubles from 1 s on: by then it is 16 s, and a minute later 60 s.
SETTLED_AFTER, WINDOW = 16.0, 16.0

QUESTION = Question(
    name="change",
    asks=f"a session of {BACKENDS} backends of {TOOLS} tools, and changes of their lists",
    rows=(
        Row(
            label="at the connector seam",
            backends=1,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "change", "backends": BACKENDS, "fewer": 10, "tools": TOOLS},
            short={"tools": 100},
            shows=tuple(Shown(of, f"ms of CPU, {what}", 1e3) for of, (what, _) in CHANGES.items()),
            bars=(
                *(Bound(of, 1, f"cpu / {most * 1e3:g} ms, {what}", per=most) for of, (what, most) in CHANGES.items()),
                *(Bound(f"{of}_growth", MOST_GROWTH, f"growth, {what}") for of, (what, _) in CHANGES.items()),
            ),
            rounds=3,
            fresh=True,
        ),
        Row(
            label="storm: each announces its unchanged lists 10 times a second",
            backends=BACKENDS,
            path=f"/storm/0/{TOOLS}",
            contenders=(LIBRARY,),
            command={"do": "storm", "settled_after": SETTLED_AFTER, "window": WINDOW, "terms": {"listen": True}},
            short={"settled_after": 2.0, "window": 2.0},
            shows=(Shown("core", "% of a core", 100),),
            bars=(Bound("core", 0.1, "share of a core"),),
            rounds=1,
            fresh=True,
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
