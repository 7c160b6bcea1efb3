"""What is made to cost memory or time costs neither: each bomb goes off in a child process that has little to spare."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from support.harness import echo_backend

from sweeps.bombs import BOMBS, KIB, MIB, Bomb
from trio_vmcp.testing import ScriptedBackend, open_loopback

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is RLIMIT_AS, the baseline from /proc")

CHILD = Path(__file__).with_name("bomb_child.py")
SPARE = 256 * MIB  # faults.md G5
TYPED = {"BackendProtocolError", "BackendRejected", "BackendTimeout", "BackendUnavailable", "MessageTooLarge"}
WORKS = "a result of 1"


async def set_off(
    bombs: Mapping[str, Bomb], *, spare: int = SPARE, max_message_bytes: int = 16 * MIB
) -> tuple[list[dict[str, Any]], str]:
    """What the child says of each bomb, and what it said when it broke."""
    async with AsyncExitStack() as stack:
        urls = {}
        for name, bomb in bombs.items():
            hostile = echo_backend("modern")
            hostile.fail("tools/call", bomb, times=1)
            urls[name] = await stack.enter_async_context(open_loopback(hostile))
        honest: ScriptedBackend = echo_backend("modern")
        order = {
            "spare": spare,
            "max_message_bytes": max_message_bytes,
            "honest": await stack.enter_async_context(open_loopback(honest)),
            "hostile": urls,
        }
        done = await trio.run_process(
            [sys.executable, str(CHILD)],
            stdin=json.dumps(order).encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    said = done.stderr.decode() if done.returncode else ""
    return [json.loads(line) for line in done.stdout.splitlines()], said


@pytest.mark.parametrize("kind", BOMBS)
async def test_bombs_do_not_go_off(kind: str, record_property: Callable[[str, object], None]) -> None:
    """Each ends in a typed error within the call's deadline; the honest backend answers meanwhile, and so does the
    hostile one when it is asked again.
    """
    reports, broke = await set_off(BOMBS[kind])
    assert "" == broke, [report["bomb"] for report in reports]
    assert [*BOMBS[kind]] == [report["bomb"] for report in reports]
    record_property("cases", len(reports))
    assert [] == [report for report in reports if not survived(report)]


def survived(report: dict[str, Any]) -> bool:
    return (
        report["outcome"] in TYPED
        and report["next"] == WORKS
        and report["seconds"] < 10
        and report["honest_slowest"] < 5
    )


async def test_a_library_without_a_limit_is_found() -> None:
    """The child is short of memory indeed: what buffers without a limit breaks in it."""
    endless = {"endless": BOMBS["endless answers"]["an endless body"]}
    reports, broke = await set_off(endless, spare=64 * MIB, max_message_bytes=KIB * MIB)
    assert "MemoryError" in broke, reports
