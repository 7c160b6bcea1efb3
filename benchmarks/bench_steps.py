"""How long is the longest step of a task, whatever backends send?

python benchmarks/bench_steps.py        # or run.py, which asks the other questions too
"""

from __future__ import annotations

from contest import LIBRARY, Bound, Question, Row, Shown
from harness import main

LONGEST = 0.05  # s
CASES = {  # the measure, and what backends send
    "strings": "an answer of 16 MiB with 99 000 strings",
    "escapes": "the same with strings of escapes",
    "wide": "an answer of 16 MiB of one string, with a character beyond the BMP at its end",
    "wide list": "the same in a list",
    "keys": "an answer of 99 000 members",
    "batch": "an answer of 16 MiB with 99 000 strings, in a batch",
    "messages": "60 000 messages that are none, in a batch",
    "capabilities": "98 000 capabilities",
    "schema": "a schema of 99 000 properties",
    "headers": "25 000 parameters that are mirrored in headers",
    "cached": "a result of 7 MiB that is cached, and found again",
    "too large to cache": "a result of 16 MiB that is too large to be cached",
    "opened": "4 x 9 990 entries of one list, equal names: opened",
    "changed": "the same, when all of them get other names",
    "read": "the same, when they are read",
    "removed": "the same, when a backend is removed",
    "restored": "the same, when the session is suspended and restored",
    "closed": "the same, when the session is closed",
}

QUESTION = Question(
    name="steps",
    asks="the longest step of a task, for the most that backends may send",
    rows=(
        Row(
            label="without the pauses of the garbage collector",
            backends=1,
            path="/json/0",
            contenders=(LIBRARY,),
            command={"do": "steps", "rounds": 3},
            short={"rounds": 1},
            shows=tuple(Shown(of, f"ms of CPU, {what}", 1e3) for of, what in CASES.items()),
            bars=tuple(Bound(of, 1, f"cpu / 50 ms, {what}", per=LONGEST) for of, what in CASES.items()),
            rounds=1,
            fresh=True,
        ),
    ),
)

if __name__ == "__main__":
    main([QUESTION])
