"""What does a tool call cost, alone and with 64 in flight?

python benchmarks/bench_call.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from harness import LIBRARY, LOOP, MCP_ASYNCIO, MCP_TRIO, Bar, Question, Row, main

QUESTION = Question(
    name="call",
    asks="call a tool with a short answer",
    unit="us a call",
    scale=1e6,
    contenders=(LOOP, LIBRARY, MCP_ASYNCIO, MCP_TRIO),
    rows=tuple(
        Row(
            label=f"{label}, {form.upper()}",
            backends=backends,
            path=f"/{form}/0",
            command={"do": "call", "limit": 10, "callers": callers, "calls": calls},
            short={"calls": short_calls},
            bars=(Bar(LOOP, 1 / 1.1), Bar(MCP_ASYNCIO, 1.3), Bar(MCP_TRIO, 1.3)),
        )
        for label, backends, callers, calls, short_calls in (
            ("one after another, 5 backends", 5, 1, 600, 100),
            ("64 in flight, 10 backends", 10, 64, 12, 4),
        )
        for form in ("json", "sse")
    ),
)

if __name__ == "__main__":
    main([QUESTION])
