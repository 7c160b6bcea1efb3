"""What does a gateway cost: clients → gateway → 10 backends?

python benchmarks/bench_gateway.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from typing import Any

from contest import DIRECT, GATEWAY_PEERS, LIBRARY, MOUNTS, RELAY, Bound, Question, Ratio, Row, Shown, times_as_fast
from harness import main

CALLERS = 32
AT_32 = f"{CALLERS} at a time"
TIMES = (
    Shown("wall_one", "us a call, one at a time", 1e6),
    Shown("p50_one", "p50 us, one at a time", 1e6),
    Shown("p99_one", "p99 us, one at a time", 1e6),
    Shown("wall", f"us a call, {AT_32}", 1e6),
    Shown("p50", f"p50 ms, {AT_32}", 1e3),
    Shown("p99", f"p99 ms, {AT_32}", 1e3),
    Shown("cpu", f"us of CPU a call, {AT_32}", 1e6),
    Shown("rss", "MiB of the gateway", 1 / 1024 / 1024),
)


def row(era: str, sessions: int, **special: Any) -> Row:
    return Row(
        label=f"{era} clients",
        backends=10,
        path="/json/0",
        command={"do": "gateway", "era": era, "one": 400, "callers": CALLERS, "each": 30, "sessions": sessions},
        short={"one": 10, "each": 1, "sessions": min(sessions, 5)},  # for the slow ones, too
        # Through a configuration of servers, FastMCP makes some calls a second.
        slow={"one": 5, "each": 1, "warm": 0, "sessions": min(sessions, 5)},
        same=("tools/call",),
        slow_rounds=2,
        timeout=300.0,
        **special,
    )


QUESTION = Question(
    name="gateway",
    asks="call a tool through a gateway of 10 backends",
    apart=True,
    rows=(
        row(
            "legacy",
            100,
            contenders=(DIRECT, RELAY, LIBRARY, *GATEWAY_PEERS),
            leaving=GATEWAY_PEERS,
            shows=(*TIMES, Shown("session", "ms a session", 1e3), Shown("held", "KiB a session", 1 / 1024)),
            bars=(
                Ratio(RELAY, 1 / 0.9),
                *(times_as_fast(3.5, peer) for peer in GATEWAY_PEERS),
                times_as_fast(40, MOUNTS, of="wall_one"),  # the mounts answer 20 calls/s one at a time, 170 at 32
                *(times_as_fast(3, peer, of="p99") for peer in GATEWAY_PEERS),
            ),
        ),
        row("modern", 0, contenders=(RELAY, LIBRARY), shows=TIMES),
        Row(
            label="in process",
            backends=10,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "in_process", "calls": 500, "turns": 9},
            short={"calls": 100, "turns": 3},
            shows=(
                Shown("call", "us of CPU, call of the session", 1e6),
                Shown("legacy", "us of CPU, legacy request", 1e6),
                Shown("modern", "us of CPU, modern request", 1e6),
            ),
            bars=(
                Bound("legacy_over", 1.5, "cpu of a legacy request / of the session's call"),
                Bound("modern_over", 1.5, "cpu of a modern request / of the session's call"),
            ),
            rounds=3,
            fresh=True,
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
