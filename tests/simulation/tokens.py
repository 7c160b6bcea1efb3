"""Tokens, and the gate of a guarded backend: it issues tokens, and answers 401 to requests without a good one."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs
import trio

from simulation.history import BackendSpec, GrantTokens, RotateTokens, WithholdTokens
from simulation.trace import Event, Principal, Token, TokensRotated
from trio_vmcp.testing import Exchange, ScriptedBackend, Status

__all__ = ["CANARY", "TokenGate", "read_token", "written"]

CANARY = "canary"  # in every secret

_TOKEN = re.compile(rf"Bearer {CANARY}\.(\w+)\.(anonymous|opener|caller)\.(\d+)")
_REFUSAL = Status(401, b'{"error": "invalid_token"}', {"www-authenticate": 'Bearer realm="simulation"'})


def written(token: Token) -> str:
    """The token's text in an Authorization header."""
    return f"{CANARY}.{token.backend_id}.{token.principal}.{token.generation}"


def read_token(header: str | None) -> Token | None:
    """The token of an Authorization header; None: it holds none of ours."""
    found = _TOKEN.fullmatch(header or "")
    return None if found is None else Token(found[1], found[2], int(found[3]))  # type: ignore[arg-type]  # `_TOKEN` has no other


@attrs.define(eq=False)
class TokenGate:
    """Checks the requests to one guarded backend.

    Attributes:
        turned_away: Refused exchanges.
    """

    spec: BackendSpec
    note: Callable[[Event], None]
    turned_away: list[Exchange] = attrs.field(factory=list, init=False)
    _generation: int = attrs.field(default=1, init=False)
    _withheld: str = attrs.field(default="", init=False)

    def stand_before(self, backend: ScriptedBackend) -> None:
        """Check requests of this backend before any fault that is scripted later."""
        backend.fail(self._refuses, _REFUSAL)

    def obey(self, step: RotateTokens | WithholdTokens | GrantTokens) -> None:
        match step:
            case RotateTokens():
                self._generation += 1
                self.note(TokensRotated(at=trio.current_time(), backend_id=self.spec.id, generation=self._generation))
            case WithholdTokens():
                self._withheld = step.how
            case GrantTokens():
                self._withheld = ""

    @property
    def is_passable(self) -> bool:
        """New tokens are issued and accepted."""
        return not self._withheld

    @property
    def has_none(self) -> bool:
        """No new token is issued, and `auth` returns None."""
        return self._withheld == "none"

    def issue(self, principal: Principal) -> Token | None:
        """The token that is good now; None: none is issued."""
        if self._withheld in ("none", "fail"):
            return None
        return Token(self.spec.id, principal, self._generation)

    def _refuses(self, exchange: Exchange) -> bool:
        token = read_token(exchange.headers.get("authorization"))
        is_good = token is not None and (token.backend_id, token.generation) == (self.spec.id, self._generation)
        if is_good and self._withheld != "refuse":
            return False
        self.turned_away.append(exchange)
        return True
