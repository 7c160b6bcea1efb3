"""Run all benchmarks, print one table, write all figures to `results/`; `--only` runs one.

README.md says how to read the table.
"""

from __future__ import annotations

import bench_call
import bench_change
import bench_churn
import bench_close
import bench_concurrency
import bench_footprint
import bench_gateway
import bench_large
import bench_many_tools
import bench_observers
import bench_open
import bench_sleep
import bench_steps
from harness import main

QUESTIONS = [
    bench_open.QUESTION,
    bench_call.QUESTION,
    bench_concurrency.QUESTION,
    bench_large.QUESTION,
    bench_many_tools.QUESTION,
    bench_change.QUESTION,
    bench_steps.QUESTION,
    bench_observers.QUESTION,
    bench_footprint.QUESTION,
    bench_sleep.QUESTION,
    bench_close.QUESTION,
    bench_churn.QUESTION,
    bench_gateway.QUESTION,
]

if __name__ == "__main__":
    main(QUESTIONS)
