"""The two eras of MCP: their versions, their errors, and which era an answer to `server/discover` proves.

Source: MCP 2026-07-28, versioning: "try modern first, and look at the body before falling back"; the answers of real
servers.
"""

from __future__ import annotations

import enum

from trio_vmcp._protocol.jsonrpc import ErrorReply, Result
from trio_vmcp._protocol.outcomes import Answer, Refusal

__all__ = [
    "BATCH_VERSION",
    "HEADER_MISMATCH",
    "LEGACY_VERSIONS",
    "MISSING_CAPABILITY",
    "MODERN_VERSION",
    "UNSUPPORTED_VERSION",
    "Verdict",
    "is_modern_error",
    "is_modern_version",
    "judge",
    "lists_modern_version",
]

MODERN_VERSION = "2026-07-28"
# Newest first; `initialize` asks for the first. Some servers answer 2024-11-05 over streamable HTTP, too.
LEGACY_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
# "MUST support receiving JSON-RPC batches" (2025-03-26, basic); 2025-06-18 removed them.
BATCH_VERSION = "2025-03-26"

HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
# Statuses of an outage, an overload or missing credentials prove nothing about the era.
_NO_VERDICT = frozenset({401, 403, 407, 408, 429})


class Verdict(enum.Enum):
    """The result of a probe. INCONCLUSIVE is treated as LEGACY once, and not cached. SSE is the older transport
    HTTP+SSE, which worked after streamable HTTP was refused.
    """

    MODERN = "modern"
    LEGACY = "legacy"
    SSE = "sse"
    INCONCLUSIVE = "inconclusive"


def is_modern_version(version: object) -> bool:
    """Whether a protocol version, as a client sends it, is one of the modern era, known or not. Versions are dates."""
    return isinstance(version, str) and version not in LEGACY_VERSIONS and version >= MODERN_VERSION


def lists_modern_version(versions: object) -> bool:
    """Whether a list of versions, as a server sends them, has the one that we speak of the modern era."""
    return isinstance(versions, list) and MODERN_VERSION in versions


def is_modern_error(outcome: object) -> bool:
    """Whether this is an error that only servers of the modern era send."""
    reply = outcome.reply if isinstance(outcome, Answer) else None
    if not isinstance(reply, ErrorReply):
        return False
    if reply.code == UNSUPPORTED_VERSION:
        return lists_modern_version(reply.data.get("supported") if isinstance(reply.data, dict) else None)
    return reply.code in (HEADER_MISMATCH, MISSING_CAPABILITY)


def judge(outcome: Answer | Refusal) -> Verdict:
    """The era that the outcome of `server/discover` proves."""
    if isinstance(outcome, Answer) and isinstance(outcome.reply, Result):
        result = outcome.reply.result
        modern = lists_modern_version(result.get("supportedVersions"))
        return Verdict.MODERN if modern or result.get("resultType") == "input_required" else Verdict.LEGACY
    if is_modern_error(outcome):
        return Verdict.MODERN
    if outcome.status in _NO_VERDICT or outcome.status >= 500:
        return Verdict.INCONCLUSIVE
    return Verdict.LEGACY
