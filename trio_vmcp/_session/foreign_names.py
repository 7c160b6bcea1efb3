"""Names that other instances of a session have bound, on their way from the row to the directory. They are not free
here either: a call that is meant for one backend must not go to another because of the instance that it comes to.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from trio_vmcp.routing import Bindings

__all__ = ["ForeignNames"]


@attrs.define(eq=False)
class ForeignNames:
    """Of one session. The directory takes them before it binds anything."""

    _tools: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    _prompts: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def count(self) -> int:
        """How many names there are to take."""
        return len(self._tools) + len(self._prompts)

    def put(self, theirs: Bindings, base: Bindings) -> None:
        """Another instance has written the row.

        Args:
            base: What the row said when this instance last wrote it. What has not changed since is no news: this
                instance knows the name, and may have released it.
        """
        self._tools |= _changed(theirs.tools, base.tools)
        self._prompts |= _changed(theirs.prompts, base.prompts)

    def take(self) -> Bindings:
        """All of them, once."""
        taken = Bindings(self._tools, self._prompts)
        self._tools, self._prompts = {}, {}
        return taken


def _changed(theirs: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    return {} if theirs == base else dict(theirs.items() - base.items())
