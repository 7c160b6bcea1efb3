"""What does a tool call cost, one after another?

python benchmarks/bench_call.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import FASTMCP, FLOORS, H11, LIBRARY, OFFICIAL, Question, Ratio, Row, Shown, times_as_fast
from harness import main

QUESTION = Question(
    name="call",
    asks="call a tool with a short answer, one after another",
    rows=tuple(
        Row(
            label=f"5 backends, {form.upper()}",
            backends=5,
            path=f"/{form}/0",
            contenders=(*FLOORS, LIBRARY, *OFFICIAL, FASTMCP),
            command={"do": "call", "callers": 1, "calls": 600},
            short={"calls": 100},
            slow={"calls": 200},
            shows=(Shown("wall", "us a call", 1e6), Shown("cpu", "us of CPU a call", 1e6)),
            bars=(Ratio(H11, 1.35, of="cpu"), *(times_as_fast(4, peer, of="cpu") for peer in OFFICIAL)),
        )
        for form in ("json", "sse")
    ),
)

if __name__ == "__main__":
    main([QUESTION])
