"""A plugin for pytest: a test that is cancelled before its end fails.

pytest-trio runs a test in a nursery that it cancels, and so takes a stray Cancelled for the end of the test: the
assertions behind it do not run, and the test passes. A Cancelled is stray where the scope that it belongs to is closed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable

import pytest
import trio

__all__ = ["pytest_runtest_setup"]

Test = Callable[..., Awaitable[None]]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _to_its_end(item.obj)


def _to_its_end(test: Test) -> Test:
    @functools.wraps(test)
    async def whole(*args: object, **kwargs: object) -> None:
        try:
            await test(*args, **kwargs)
        except trio.Cancelled as cancelled:  # noqa: ASYNC103  # stray: no scope waits for it
            raise AssertionError("the test was cancelled before its end") from cancelled  # noqa: ASYNC104  # likewise

    return whole
