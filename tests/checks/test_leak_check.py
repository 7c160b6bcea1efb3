"""The check that no test leaves anything behind, itself checked: one of each kind is planted, and named."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from support.leaks import WATCH

PLANTED = """
import os, socket, time
import pytest, trio

kept = []

async def items():
    yield 1
    yield 2

async def test_clean(nursery):
    nursery.start_soon(trio.sleep_forever)
    async with trio.CapacityLimiter(1):
        with open(os.devnull):
            assert [1, 2] == [item async for item in items()]

async def test_a_thread_that_is_given_up_ends():
    with trio.move_on_after(0.01):
        await trio.to_thread.run_sync(time.sleep, 0.1, abandon_on_cancel=True)  # a thread has no virtual time

async def test_task():
    trio.lowlevel.spawn_system_task(trio.sleep_forever, name="the stray one")

async def test_generator():
    stray_items = items()
    kept.append(stray_items)
    await anext(stray_items)

async def test_tokens():
    trio.CapacityLimiter(3).acquire_on_behalf_of_nowait("the borrower")

def test_descriptor():
    kept.append(os.open(os.devnull, os.O_RDONLY))

def test_descriptor_replaced():
    with open(__file__) as other:
        os.dup2(other.fileno(), kept[-1])

def test_socket_in_a_cycle():
    cycle = [socket.socket()]
    cycle.append(cycle)

def test_coroutine_in_a_cycle():
    cycle = [trio.sleep_forever()]
    cycle.append(cycle)

def test_a_run_inside():
    async def leak_quietly():
        trio.lowlevel.spawn_system_task(trio.sleep_forever, name="the inner one")
    trio.run(leak_quietly)

async def test_failing():
    trio.lowlevel.spawn_system_task(trio.sleep_forever, name="the one after a failure")
    assert False

def test_clean_after_all_that():
    os.close(kept.pop())
"""


@pytest.fixture
def unwatched(pytestconfig: pytest.Config) -> Iterator[None]:
    """What is planted is for the eyes of the inner pytest alone."""
    pytestconfig.stash[WATCH].end()
    yield
    pytestconfig.stash[WATCH].begin()


@pytest.mark.usefixtures("unwatched")
def test_whatever_a_test_leaves_behind_is_an_error(pytester: pytest.Pytester) -> None:
    """Each kind once, reported at the test that did it and at no other, in words that lead to it."""
    pytester.makeini("[pytest]\ntrio_mode = true\nfilterwarnings = error")
    pytester.makepyfile(test_planted=PLANTED)
    result = pytester.runpytest_inprocess("-p", "support.leaks", "-p", "no:randomly", "-p", "no:cacheprovider")

    said = re.compile(r"^_+ ERROR at teardown of test_(\w+) _+\nleft behind: (.*)$", re.MULTILINE)
    left = dict(said.findall(str(result.stdout)))
    expected = {
        "task": "task the stray one",
        "generator": "async generator items",
        "tokens": r"1 tokens of the limiter made at .*test_planted\.py:\d+, by \['the borrower'\]",
        "descriptor": r"file descriptor \d+: /dev/null",
        "descriptor_replaced": r"file descriptor \d+: .*test_planted\.py",
        "socket_in_a_cycle": r"<socket.socket .*ResourceWarning: unclosed <socket.socket .*",
        "coroutine_in_a_cycle": "<coroutine object sleep_forever .*RuntimeWarning: .*sleep_forever' was never awaited",
        "a_run_inside": "task the inner one",
        "failing": "task the one after a failure",
    }
    assert set(expected) == set(left)
    assert {} == {name: words for name, words in left.items() if not re.fullmatch(expected[name], words)}
    result.assert_outcomes(passed=len(expected) + 2, failed=1, errors=len(expected))
