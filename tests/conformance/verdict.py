"""What the suite's checks of one scenario are worth. No I/O.

The suite calls a scenario passed when nothing failed: also when it looked at nothing, because it does not apply to the
version, or because the client never came to what is checked. A check that cannot fail is none, so here something has to
have succeeded, and nothing may be skipped but what no client can do, or what is checked only "if present".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

__all__ = ["Check", "Verdict", "judge"]

Check: TypeAlias = dict[str, object]  # as in the suite's checks.json

# About every message of whatever scenario, and not what a scenario is for.
_WIRE_SCHEMA = "wire-schema-"
# By the check's name: the suite asks for a header on messages that are not of the version that it asks them in.
_NO_CLIENT_CAN = frozenset({"ClientMcpMethodHeader_initialize", "ClientMcpMethodHeader_notifications_initialized"})
# By the check's name: "if present". Capabilities are declared for handlers, and a client with handlers tries the
# handshake era first, which the scenario about metadata of the modern era is not for.
_IF_PRESENT = frozenset(f"ClientDeclares{kind}Capability" for kind in ("Roots", "Sampling", "Elicitation"))
_MAY_BE_SKIPPED = _NO_CLIENT_CAN | _IF_PRESENT


@attrs.frozen
class Verdict:
    """The result of one scenario.

    Attributes:
        succeeded: How many checks.
        problems: Why it did not pass, a line each; none: it did.
    """

    succeeded: int
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


def judge(status: int, checks: Sequence[Check]) -> Verdict:
    """Judge one scenario by the suite's exit status and its checks; either alone can fail it."""
    problems = [_line(check) for check in checks if check.get("status") in ("FAILURE", "WARNING")]
    problems += [
        _line(check)
        for check in checks
        if check.get("status") == "SKIPPED" and check.get("name") not in _MAY_BE_SKIPPED
    ]
    succeeded = sum(
        check.get("status") == "SUCCESS" and not str(check.get("id")).startswith(_WIRE_SCHEMA) for check in checks
    )
    if not succeeded:
        problems.append("no check of the scenario itself succeeded, so nothing was checked")
    if status != 0:
        problems.append(f"the suite ended with status {status}")
    return Verdict(succeeded, tuple(problems))


def _line(check: Check) -> str:
    why = check.get("errorMessage") or check.get("description")
    return f"{check.get('status')} {check.get('name')}: {why}"
