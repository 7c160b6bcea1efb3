"""Names that other instances of a session have bound, on their way from the row to the directory. They are not free
here either: a call that is meant for one backend must not go to another because of the instance that it comes to.
"""

from __future__ import annotations

import attrs

from trio_vmcp.routing import Bindings

__all__ = ["ForeignNames"]


@attrs.define(eq=False)
class ForeignNames:
    """Of one session. The directory takes them before it binds anything."""

    _bindings: Bindings | None = attrs.field(default=None, init=False, repr=False)

    @property
    def count(self) -> int:
        """How many names there are to take, those that are known included."""
        return 0 if self._bindings is None else len(self._bindings.tools) + len(self._bindings.prompts)

    def put(self, bindings: Bindings) -> None:
        """Another instance has written these: all that are bound, those of this instance that it knows of included."""
        self._bindings = bindings

    def take(self) -> Bindings | None:
        """The latest, once."""
        taken, self._bindings = self._bindings, None
        return taken
