"""How many calls a second with 64 in flight?

python benchmarks/bench_concurrency.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import FASTMCP, FLOORS, HTTPX, LIBRARY, OFFICIAL, Question, Row, Shown, times_as_fast
from harness import main

QUESTION = Question(
    name="concurrency",
    asks="call a tool with a short answer, 64 in flight",
    rows=tuple(
        Row(
            label=f"{backends} {'backends' if backends > 1 else 'backend'}, {form.upper()}",
            backends=backends,
            path=f"/{form}/0",
            contenders=(*FLOORS, LIBRARY, *OFFICIAL, FASTMCP),
            command={"do": "call", "callers": 64, "calls": 12},
            short={"calls": 4},
            slow={"calls": 4},
            shows=(Shown("wall", "us a call", 1e6),),  # the inverse of calls a second
            bars=(times_as_fast(than_httpx, HTTPX), *(times_as_fast(5, peer) for peer in OFFICIAL)),
        )
        for backends, than_httpx in ((10, 3.5), (1, 4))
        for form in ("json", "sse")
    ),
)

if __name__ == "__main__":
    main([QUESTION])
