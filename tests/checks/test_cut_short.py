"""The check that tests run to their end, itself checked."""

from __future__ import annotations

import pytest

PLANTED = """
import pytest, trio

async def stray():
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep(1)
        except trio.Cancelled as cancelled:
            kept = cancelled
    raise kept

async def test_whole():
    with trio.move_on_after(0):
        await trio.sleep_forever()

async def test_cut():
    await stray()
    assert False

async def test_failing():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise OSError("its own")
"""


def test_a_test_that_is_cancelled_before_its_end_fails(pytester: pytest.Pytester) -> None:
    """Other errors stay what they are."""
    pytester.makeini("[pytest]\ntrio_mode = true")
    pytester.makepyfile(PLANTED)
    result = pytester.runpytest("-p", "support.cut_short", "-p", "no:randomly")
    result.assert_outcomes(passed=1, failed=2)
    assert 1 == str(result.stdout).count("AssertionError: the test was cancelled before its end")
