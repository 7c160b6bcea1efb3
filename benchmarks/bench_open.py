"""How long until a session over N backends is open and everything they offer is listed?

python benchmarks/bench_open.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from harness import LIBRARY, LOOP, MCP_ASYNCIO, MCP_TRIO, PROBING, Bar, Question, Row, main

QUESTION = Question(
    name="open",
    asks="open a session and list what its backends offer",
    unit="ms",
    scale=1e3,
    contenders=(LOOP, LIBRARY, PROBING, MCP_ASYNCIO, MCP_TRIO),
    rows=tuple(
        Row(
            label=f"backends: {count:>2}, latency: {latency:>2} ms",
            backends=count,
            path=f"/json/{latency}",
            # A single opening takes some ms: too little to be timed once.
            command={"do": "open", "repeat": repeat, "limit": 10},
            short={"repeat": 1},
            bars=(Bar(LOOP, 1 / 1.1), Bar(MCP_ASYNCIO, 1.3), Bar(MCP_TRIO, 1.3)),
        )
        for latency in (0, 20)
        for count, repeat in ((1, 5), (10, 3), (50, 1))
    ),
)

if __name__ == "__main__":
    main([QUESTION])
