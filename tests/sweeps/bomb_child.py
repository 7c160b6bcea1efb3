"""Calls hostile backends, and an honest one all the while, with little memory to spare. Run by test_bombs.

Reads {"spare": bytes, "max_message_bytes": n, "honest": url, "hostile": {name: url}}; writes one JSON object per bomb.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_vmcp import Backend, FactorySettings, Session, SessionFactory, VmcpError, open_session_factory

REQUEST_TIMEOUT = 2.5  # s; a bomb that costs time alone ends here


@attrs.define
class Honest:
    """Calls the honest backend, again and again.

    Attributes:
        slowest: s from one answer to the next, the longest so far.
    """

    session: Session
    calls: int = 0
    slowest: float = 0.0
    _answered_at: float = attrs.field(factory=trio.current_time, init=False)

    def waited(self) -> float:
        """s from one answer to the next, the longest so far; the wait for the next answer counts, too."""
        return max(self.slowest, trio.current_time() - self._answered_at)

    async def call(self) -> None:
        while True:
            result = await self.session.call_tool("honest_echo", {"n": self.calls})
            assert [{"type": "text", "text": json.dumps({"n": self.calls})}] == list(result.content)
            self.calls += 1
            self.slowest = self.waited()
            self._answered_at = trio.current_time()
            await trio.sleep(0.005)


async def outcome(session: Session) -> str:
    try:
        result = await session.call_tool("hostile_echo")
    except VmcpError as error:
        return type(error).__name__
    return f"a result of {len(result.content)}"


async def survive(factory: SessionFactory, name: str, url: str, honest: Honest) -> dict[str, Any]:
    hostile = Backend(id="hostile", url=url, era="modern", request_timeout=REQUEST_TIMEOUT)
    async with factory.open_session([hostile]) as session:
        before, begun = honest.calls, trio.current_time()
        honest.slowest = 0.0
        first = await outcome(session)
        took = trio.current_time() - begun
        return {
            "bomb": name,
            "outcome": first,
            "seconds": took,
            "honest_calls": honest.calls - before,
            "honest_slowest": honest.waited(),
            "next": await outcome(session),
        }


def limit_memory(spare: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


async def main() -> None:
    order = json.load(sys.stdin)
    settings = FactorySettings(max_message_bytes=order["max_message_bytes"])
    async with open_session_factory(settings=settings) as factory, trio.open_nursery() as nursery:
        async with factory.open_session([Backend(id="honest", url=order["honest"], era="modern")]) as session:
            honest = Honest(session)
            nursery.start_soon(honest.call)
            await trio.sleep(0.1)  # whatever is made or imported once has been
            limit_memory(order["spare"])
            for name, url in order["hostile"].items():
                sys.stdout.write(json.dumps(await survive(factory, name, url, honest)) + "\n")
                sys.stdout.flush()  # whatever the next one does
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    trio.run(main)
