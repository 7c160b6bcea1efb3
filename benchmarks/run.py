"""Ask all questions, print one table, write all figures to `results/`; `--only` asks one.

README.md says how to read it.
"""

from __future__ import annotations

import bench_call
import bench_open
from harness import main

if __name__ == "__main__":
    main([bench_open.QUESTION, bench_call.QUESTION])
