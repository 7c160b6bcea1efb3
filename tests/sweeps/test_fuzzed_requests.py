"""Scripts of mutated requests against the front in memory: `fuzz.front_steps`. `--case N` runs one seed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from fuzz.front_draw import draw_script
from fuzz.front_judge import violations

SCRIPTS = 400 if os.environ.get("CI") == "true" else 2000
AT_ONCE = 50  # scripts in one test


@pytest.mark.parametrize("first", range(0, SCRIPTS, AT_ONCE))
def test_mutated_requests_break_no_promise(
    first: int, only_case: int | None, record_property: Callable[[str, object], None]
) -> None:
    """No crash, no undocumented status, a response for each request, no text of another principal, nothing left."""
    seeds = range(first, first + AT_ONCE)
    for seed in seeds if only_case is None else {only_case} & {*seeds}:
        script = draw_script(seed)
        found = violations(script, seed)
        assert [] == found, "\n".join([f"seed {seed}:", *map(str, script)])
    record_property("cases", AT_ONCE)
