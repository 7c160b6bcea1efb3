"""How long does it take to close a session over 50 backends that answer late?

python benchmarks/bench_close.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import FASTMCP, FLOORS, H11, HTTPX, LIBRARY, OFFICIAL, Question, Ratio, Row
from harness import main

QUESTION = Question(
    name="close",
    asks="close a session",
    rows=(
        Row(
            label="backends: 50, latency: 20 ms",
            backends=50,
            path="/json/20",
            contenders=(*FLOORS, LIBRARY, *OFFICIAL),
            command={"do": "close"},
            slow_rounds=2,
            bars=(Ratio(H11, 1.3), Ratio(HTTPX, 0.75)),
        ),
        Row(  # FastMCP ends its sessions one after the other: ten show that, and open in less time
            label="backends: 10, latency: 20 ms",
            backends=10,
            path="/json/20",
            contenders=(*FLOORS, LIBRARY, *OFFICIAL, FASTMCP),
            command={"do": "close"},
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
