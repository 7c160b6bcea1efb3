"""How long until ten thousand tools are listed?

python benchmarks/bench_many_tools.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import FASTMCP, FLOORS, HTTPX, LIBRARY, OFFICIAL, Question, Ratio, Row, times_as_fast
from harness import main

QUESTION = Question(
    name="many_tools",
    asks="open a session and list what its backends offer",
    rows=(
        Row(
            label="10 backends of 1000 tools",
            backends=10,
            path="/json/0/1000",
            contenders=(*FLOORS, LIBRARY, *OFFICIAL, FASTMCP),
            command={"do": "open"},
            bars=(Ratio(HTTPX, 1.0), *(times_as_fast(5, peer) for peer in OFFICIAL)),
        ),
        Row(
            label="10 backends of 1000 tools of their own",
            backends=10,
            path="/json/0/own1000",
            contenders=(*FLOORS, LIBRARY),
            command={"do": "open"},
        ),
        Row(
            label="a second session over them",
            backends=10,
            path="/json/0/1000",
            contenders=(*FLOORS, LIBRARY),
            command={"do": "open", "before": 1},
            bars=(Ratio(HTTPX, 0.35),),
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
