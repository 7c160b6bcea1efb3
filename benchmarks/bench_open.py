"""How long until a session over N backends is open and all of their lists are read?

python benchmarks/bench_open.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import CLIENTS, FASTMCP, H11, HTTPX, OFFICIAL, Bar, Question, Ratio, Row, ideal, times_as_fast
from harness import main
from workloads import Terms

ROUND_TRIPS = 3  # the protocol's minimum: initialize, initialized, then every list at the same time
AS_GOOD = (Ratio(HTTPX, 1.1), *(times_as_fast(1.3, peer) for peer in OFFICIAL))
BARS: dict[tuple[int, int], tuple[Bar, ...]] = {
    (50, 0): (Ratio(H11, 1.3), *(times_as_fast(15, peer) for peer in OFFICIAL)),
    (50, 20): (ideal(ROUND_TRIPS * 0.020 * -(-50 // Terms.opening), within=0.25),),
}

QUESTION = Question(
    name="open",
    asks="open a session and list what its backends offer",
    rows=tuple(
        Row(
            label=f"backends: {count:>2}, latency: {latency:>2} ms",
            backends=count,
            path=f"/json/{latency}",
            # FastMCP opens one after the other: ten backends show that as well as fifty.
            contenders=tuple(each for each in CLIENTS if each is not FASTMCP or count <= 10),
            # A single opening without latency takes some ms: too short to be timed once.
            command={"do": "open", "repeat": 1 if latency else repeat},
            short={"repeat": 1},
            bars=BARS.get((count, latency), AS_GOOD),
        )
        for latency in (0, 20)
        for count, repeat in ((1, 5), (10, 3), (50, 1))
    ),
)

if __name__ == "__main__":
    main([QUESTION])
