"""The outcomes of calls to servers that are killed, compared with what the servers executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from trio_vmcp import BackendUnavailable

__all__ = ["Outcomes"]


@attrs.define(eq=False)
class Outcomes:
    """Calls by outcome; each call has a name of its own.

    Attributes:
        answered: Calls that were executed.
        uncertain: Calls that may have been executed.
        refused: Calls that were not executed.
    """

    answered: list[str] = attrs.field(factory=list, init=False)
    uncertain: list[str] = attrs.field(factory=list, init=False)
    refused: list[str] = attrs.field(factory=list, init=False)
    _names: int = attrs.field(default=0, init=False)

    def new_name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}-{self._names}"

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Around one call. An error of another type than that of a server that is away is none to expect."""
        try:
            yield
        except BackendUnavailable as error:
            (self.uncertain if error.may_have_executed else self.refused).append(name)
            raise
        self.answered.append(name)

    def check(self, executed: Counter[str]) -> None:
        """Nothing was executed twice, all that was answered was, and nothing that is said not to have been."""
        assert dict.fromkeys(self.answered, 1) == {name: executed[name] for name in self.answered}
        assert dict.fromkeys(self.refused, 0) == {name: executed[name] for name in self.refused}
        assert [] == [name for name, count in executed.items() if count > 1]
