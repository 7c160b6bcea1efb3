"""Which era does a backend speak? The judgement is pure; the cache shares one probe among all who ask at the same time.

Source: MCP 2026-07-28, "try modern first, and look at the body before falling back"; what real servers answer instead.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable

import attrs
import trio

from trio_vmcp._client.channels.streamable import Answer
from trio_vmcp._protocol.jsonrpc import ErrorReply, Result

__all__ = ["LEGACY_VERSIONS", "MODERN_VERSION", "EraCache", "Verdict", "is_modern_error", "judge"]

MODERN_VERSION = "2026-07-28"
# Newest first: the first is the one that we ask for. 2024-11-05 is what old servers say over this transport, too.
LEGACY_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")

HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
# An outage, an overload or a closed door says nothing about the era.
_NO_VERDICT = frozenset({401, 403, 407, 408, 429})
_MOST_CACHED = 4096  # endpoints; the oldest goes first


class Verdict(enum.Enum):
    """What a probe proved. INCONCLUSIVE is treated as legacy once, and not remembered. SSE is what the older transport,
    HTTP+SSE, proved by working where `initialize` was refused.
    """

    MODERN = "modern"
    LEGACY = "legacy"
    SSE = "sse"
    INCONCLUSIVE = "inconclusive"


def is_modern_error(outcome: object) -> bool:
    """An error that only a server of the modern era sends."""
    if not isinstance(outcome, ErrorReply):
        return False
    if outcome.code == UNSUPPORTED_VERSION:
        supported = outcome.data.get("supported") if isinstance(outcome.data, dict) else None
        return isinstance(supported, list) and MODERN_VERSION in supported
    return outcome.code in (HEADER_MISMATCH, MISSING_CAPABILITY)


def judge(answer: Answer) -> Verdict:
    """The era of a backend that answered `server/discover` so."""
    outcome = answer.outcome
    if isinstance(outcome, Result):
        versions = outcome.result.get("supportedVersions")
        modern = isinstance(versions, list) and MODERN_VERSION in versions
        return Verdict.MODERN if modern or outcome.result.get("resultType") == "input_required" else Verdict.LEGACY
    if is_modern_error(outcome):
        return Verdict.MODERN
    if answer.status in _NO_VERDICT or answer.status >= 500:
        return Verdict.INCONCLUSIVE
    return Verdict.LEGACY


@attrs.define(eq=False)
class _Flight:
    done: trio.Event = attrs.field(factory=trio.Event)
    verdict: Verdict | None = None


@attrs.define(eq=False)
class EraCache:
    """The verdicts of one factory, by endpoint."""

    _verdicts: dict[str, Verdict] = attrs.field(factory=dict, init=False)
    _flights: dict[str, _Flight] = attrs.field(factory=dict, init=False)

    def correct(self, endpoint: str, verdict: Verdict) -> None:
        """The endpoint proved to be of this era, whatever was thought before."""
        self._verdicts.pop(endpoint, None)
        if verdict is not Verdict.INCONCLUSIVE:
            self._verdicts[endpoint] = verdict
            if len(self._verdicts) > _MOST_CACHED:
                del self._verdicts[next(iter(self._verdicts))]

    async def verdict(self, endpoint: str, probe: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """The verdict on an endpoint; one probe for all who ask meanwhile. A probe that fails or is cancelled passes
        the turn on.
        """
        while True:
            known = self._verdicts.get(endpoint)
            if known is not None:
                return known
            flight = self._flights.get(endpoint)
            if flight is None:
                return await self._fly(endpoint, probe)
            await flight.done.wait()
            if flight.verdict is not None:
                return flight.verdict

    async def _fly(self, endpoint: str, probe: Callable[[], Awaitable[Verdict]]) -> Verdict:
        flight = self._flights[endpoint] = _Flight()
        try:
            flight.verdict = await probe()
        finally:
            del self._flights[endpoint]
            flight.done.set()
        self.correct(endpoint, flight.verdict)
        return flight.verdict
