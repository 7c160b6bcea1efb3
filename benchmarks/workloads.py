"""The workloads, once for all contenders: a contender only defines how to open, call and close.

A *host* is the part of a contender that exists once per process, such as a factory; it opens *sessions* over many
backends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from memory import peak, reset_peak, resident
from worker import Measures, Workload, stopwatch


@dataclass(frozen=True)
class Terms:
    """Limits that apply to every contender that supports them.

    Attributes:
        opening: The most backends of one session that open at the same time.
        connections: The most connections of one session to one backend.
        era: "legacy", or "auto": probe for the era.
        listen: Hold a stream for list changes.
    """

    opening: int = 10
    connections: int = 100
    era: str = "legacy"
    listen: bool = False


TOOL = "tool_0"
ARGUMENTS = {"query": "anything", "limit": 3}


class Session(Protocol):
    """Open backends, with all of their lists."""

    @property
    def listed(self) -> int:
        """The number of capabilities in all lists."""

    async def call(self, index: int) -> int:
        """Call `TOOL` of backend `index` modulo their number. Returns the length of the text in the answer."""

    async def close(self) -> None:
        """End the sessions of all backends, and close the connections."""


class Host(Protocol):
    async def open(self, urls: list[str]) -> Session: ...


OpenHost = Callable[[Terms], AbstractAsyncContextManager[Host]]
Functions = Sequence[Callable[[], Coroutine[Any, Any, None]]]
SideBySide = Callable[[Functions], Awaitable[None]]


@dataclass(frozen=True)
class Workloads:
    """The workloads of every contender.

    Attributes:
        side_by_side: Runs each function in a task of its own and waits for all: a nursery of the contender's loop.
    """

    open_host: OpenHost
    side_by_side: SideBySide

    def by_name(self) -> dict[str, Workload]:
        return {
            "open": self.open,
            "call": self.call,
            "large": self.large,
            "close": self.close,
            "footprint": self.footprint,
        }

    async def open(self, urls: list[str], spare: str, terms: dict[str, Any], before: int = 0) -> Measures:
        """The time from the backends' addresses to all lists, while as many sessions as come `before` are open."""
        measures: Measures = {}
        # A new host: the library's factory remembers the era of a backend, so a second opening would not probe.
        async with self.open_host(Terms(**terms)) as host:
            await (await host.open([spare])).close()  # makes what exists once per process (TLS)
            opened = [await host.open(urls) for _ in range(before)]
            with stopwatch(measures):
                session = await host.open(urls)
            measures["listed"] = session.listed
            for one in (*opened, session):
                await one.close()
        return measures

    async def close(self, urls: list[str], spare: str, terms: dict[str, Any]) -> Measures:
        measures: Measures = {}
        async with self.open_host(Terms(**terms)) as host:
            session = await host.open(urls)
            measures["listed"] = session.listed
            with stopwatch(measures):
                await session.close()
        return measures

    async def call(self, urls: list[str], spare: str, terms: dict[str, Any], callers: int, calls: int) -> Measures:
        """Per call: `callers` run side by side and make `calls` each, over warm connections."""

        async def caller(first: int, count: int) -> None:
            for index in range(first, first + count):
                await session.call(index)

        async def all_callers(count: int) -> None:
            await self.side_by_side([partial(caller, first, count) for first in range(callers)])

        measures: Measures = {}
        async with self.open_host(Terms(**terms)) as host:
            session = await host.open(urls)
            measures["listed"] = session.listed
            await all_callers(max(2, -(-2 * len(urls) // callers)))  # each backend more than once, to warm up
            with stopwatch(measures, per=callers * calls):
                await all_callers(calls)
            await session.close()
        return measures

    async def large(self, urls: list[str], spare: str, terms: dict[str, Any], calls: int, size: int) -> Measures:
        """Per call, one after another. "peak": the growth of resident memory over the `size` of a result."""
        measures: Measures = {}
        async with self.open_host(Terms(**terms)) as host:
            session = await host.open(urls)
            measures["listed"] = session.listed
            before = resident()
            reset_peak()
            try:
                with stopwatch(measures, per=calls):
                    for _ in range(calls):
                        assert await session.call(0) == size
                measures["peak"] = (peak() - before) / size
            finally:  # a contender that fails on such a result takes part in the next row
                await session.close()  # noqa: ASYNC102  # a hang ends with the answer's timeout
        return measures

    async def footprint(self, urls: list[str], spare: str, terms: dict[str, Any], sessions: int) -> Measures:
        """Per link (one backend of one session): many sessions are opened. "held": resident bytes."""
        links = sessions * len(urls)
        measures: Measures = {}
        async with self.open_host(Terms(**terms)) as host:
            await (await host.open([spare])).close()
            before = resident()
            with stopwatch(measures, per=links):
                opened = [await host.open(urls) for _ in range(sessions)]
            measures["held"] = (resident() - before) / links
            measures["listed"] = sum(session.listed for session in opened) / links
            for session in opened:
                await session.close()
        return measures
