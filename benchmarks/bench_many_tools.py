"""How long until ten thousand tools are listed?

python benchmarks/bench_many_tools.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import FASTMCP, FLOORS, LIBRARY, OFFICIAL, Question, Row, times_as_fast
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
            bars=tuple(times_as_fast(5, peer) for peer in OFFICIAL),
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
