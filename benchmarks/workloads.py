"""What is measured, once for all contenders: each only says how it opens, calls and closes.

A *host* is what a contender needs once per process, such as a factory; it opens *sessions* over many backends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from memory import forget_peak, peak, resident
from worker import Measures, Workload, stopwatch


@dataclass(frozen=True)
class Terms:
    """What everybody keeps to, as far as it can.

    Attributes:
        opening: Backends of one session that open at the same time.
        connections: To one backend, by one session.
        era: Pinned, or "auto": find it out.
        listen: Hold a stream for list changes.
    """

    opening: int = 10
    connections: int = 100
    era: str = "legacy"
    listen: bool = False


TOOL = "tool_0"
ARGUMENTS = {"query": "anything", "limit": 3}


class Session(Protocol):
    """Some backends, open, and everything that they advertise listed."""

    @property
    def listed(self) -> int:
        """Things that were listed."""

    async def call(self, index: int) -> int:
        """Call `TOOL` of a backend: the `index`-th modulo their number. Returns the length of the text answered."""

    async def close(self) -> None:
        """End the sessions of all backends, and let go of the connections."""


class Host(Protocol):
    async def open(self, urls: list[str]) -> Session: ...


OpenHost = Callable[[Terms], AbstractAsyncContextManager[Host]]
Functions = Sequence[Callable[[], Coroutine[Any, Any, None]]]
SideBySide = Callable[[Functions], Awaitable[None]]


@dataclass(frozen=True)
class Workloads:
    """All that every contender can be asked.

    Attributes:
        side_by_side: Runs functions in a task each and waits for all: the nursery of the contender's loop.
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

    async def open(self, urls: list[str], spare: str, terms: dict[str, Any]) -> Measures:
        """From the backends' addresses to all lists."""
        measures: Measures = {}
        # A host of its own: the library's remembers the era of a backend, so a second opening would not probe.
        async with self.open_host(Terms(**terms)) as host:
            await (await host.open([spare])).close()  # what is there once per process (TLS) is not what opening costs
            with stopwatch(measures):
                session = await host.open(urls)
            measures["listed"] = session.listed
            await session.close()
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
        """Per call: `callers` side by side make `calls` each, over warm connections."""

        async def caller(first: int, count: int) -> None:
            for index in range(first, first + count):
                await session.call(index)

        async def all_callers(count: int) -> None:
            await self.side_by_side([partial(caller, first, count) for first in range(callers)])

        measures: Measures = {}
        async with self.open_host(Terms(**terms)) as host:
            session = await host.open(urls)
            measures["listed"] = session.listed
            await all_callers(max(2, -(-2 * len(urls) // callers)))  # every backend more than once: warm connections
            with stopwatch(measures, per=callers * calls):
                await all_callers(calls)
            await session.close()
        return measures

    async def large(self, urls: list[str], spare: str, terms: dict[str, Any], calls: int, size: int) -> Measures:
        """Per call, one after another; and "peak": the most that memory grew by, over the `size` of a result."""
        measures: Measures = {}
        async with self.open_host(Terms(**terms)) as host:
            session = await host.open(urls)
            measures["listed"] = session.listed
            before = resident()
            forget_peak()
            try:
                with stopwatch(measures, per=calls):
                    for _ in range(calls):
                        assert await session.call(0) == size
                measures["peak"] = (peak() - before) / size
            finally:  # who cannot take such a result goes on to the next row
                await session.close()  # noqa: ASYNC102  # a hang ends with the answer's timeout
        return measures

    async def footprint(self, urls: list[str], spare: str, terms: dict[str, Any], sessions: int) -> Measures:
        """Per link, a backend of a session: many sessions open at the same time, and "held": bytes of memory."""
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
