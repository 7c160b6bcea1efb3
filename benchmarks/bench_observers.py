"""What does an observer add to a call?

python benchmarks/bench_observers.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import LIBRARY, Bound, Question, Row, Shown
from harness import main

MOST = 25e-6  # s of CPU that an observer adds to a call
MOST_ABSENT = 0.03  # of a call: what there is for observers, and there are none
OBSERVERS = {
    "idle": "an observer that does nothing",
    "prometheus": "PrometheusObserver",
    "opentelemetry": "OpenTelemetryObserver, without what its SDK takes",
}

QUESTION = Question(
    name="observers",
    asks="call a tool at the connector seam, with one observer and with none",
    rows=(
        Row(
            label="at the connector seam",
            backends=1,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "observed", "calls": 2000, "turns": 11},
            short={"calls": 200, "turns": 5},
            shows=(
                Shown("none", "us of CPU a call without an observer", 1e6),
                *(Shown(of, f"us of CPU more, {what}", 1e6) for of, what in OBSERVERS.items()),
                Shown("sdk", "us of CPU of the SDK of OpenTelemetry", 1e6),
                Shown("absent", "% of a call more than with nothing for observers in it", 1e2),
            ),
            bars=(
                *(Bound(of, 1, f"cpu / {MOST * 1e6:g} us, {what}", per=MOST) for of, what in OBSERVERS.items()),
                Bound("absent", 1, f"cpu / {MOST_ABSENT:.0%} of a call, no observer", per=MOST_ABSENT),
            ),
            rounds=3,
            fresh=True,
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
