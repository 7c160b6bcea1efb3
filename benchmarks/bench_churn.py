"""Does it still work after most calls were cancelled, each at any moment?

python benchmarks/bench_churn.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import LIBRARY, Bound, Question, Row, Shown
from harness import main

LIMIT = 16  # connections to a backend; fewer than calls, so that some calls are cancelled while they wait for one
SHARE = 0.9

QUESTION = Question(
    name="churn",
    asks=f"cancel {SHARE:.0%} of the calls at random moments, then 1000 more",
    rows=(
        Row(
            label="50 000 calls, 4 backends, 128 in flight",
            backends=4,
            path="/json/1",
            contenders=(LIBRARY,),
            command={
                "do": "churn",
                "callers": 128,
                "calls": 50_000,
                "share": SHARE,
                "then": 1000,
                "seed": 20260731,
                "terms": {"connections": LIMIT},
            },
            short={"calls": 2000},
            shows=(
                Shown("wall", "us a call", 1e6),
                Shown("failed", "failed"),
                Shown("connections", "connections to a backend"),
            ),
            bars=(
                Bound("failed", 0, "calls that failed without being cancelled"),
                Bound("connections", LIMIT, "most connections to one backend"),
                Bound("off", 0.02, "distance of the share cancelled"),
            ),
            rounds=1,
            fresh=True,
            timeout=600.0,
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
