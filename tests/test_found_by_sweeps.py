"""What tests/sweeps found wrong with the library, each as small as it gets."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from harness import echo_backend, open_world
from trio.testing import MockClock

from trio_vmcp import BackendProtocolError
from trio_vmcp.testing import WireFault


class ShortLength(WireFault):
    """The Content-Length lacks its first digit."""

    def steps(self, sent: int, data: bytes) -> Iterator[bytes]:
        yield re.sub(rb"(?<=content-length: )\d", b"", data)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_rest_of_a_wrong_answer_is_not_the_next_one(era: str, autojump_clock: MockClock) -> None:
    """A connection whose answer was cut short by its own Content-Length is not used again."""
    backend = echo_backend(era)
    async with open_world({"a": backend}) as world, world.open_session() as session:
        backend.fail("tools/call", ShortLength(), times=1)
        with pytest.raises(BackendProtocolError, match="not JSON"):
            await session.call_tool("a_echo")
        result = await session.call_tool("a_echo", {"after": "it"})
    assert '{"after": "it"}' == result.content[0]["text"]
