"""`serve --watch`: changes of the file with the servers, taken over while clients are connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from trio_vmcp._cli.sources import Found, InputError, Unreadable, parse_servers, read_text
from trio_vmcp.errors import SessionClosed, VmcpError
from trio_vmcp.models import Backend

__all__ = ["FileChanges"]

POLL_INTERVAL = 1.0  # s


@attrs.define(eq=False)
class FileChanges:
    """Reads a file again and again. A file that is bad, or away, changes nothing.

    Attributes:
        current: What is in use.
    """

    path: str
    current: Found
    _environment: Mapping[str, str] = attrs.field(alias="environment", repr=False)
    _take_over: Callable[[Found], Awaitable[None]] = attrs.field(alias="take_over", repr=False)
    _tell: Callable[[str], object] = attrs.field(alias="tell", repr=False)
    _seen: str | None = attrs.field(default=None, init=False, repr=False)  # what was taken over or reported

    async def follow(self) -> None:
        """Look once a second, until this is cancelled or the sessions have ended."""
        before = ""
        while True:
            text, found = self._look()
            # An editor may be in the middle of writing: what is bad is reported when it stays so.
            if text != self._seen and (isinstance(found, Found) or text == before):
                self._seen = text
                if isinstance(found, str):
                    self._tell(f"nothing is changed: {found}")
                elif not await self._change(found):
                    return
            before = text
            await trio.sleep(POLL_INTERVAL)

    def _look(self) -> tuple[str, Found | str]:
        """The text, and its servers or what is wrong with it."""
        text = ""
        try:
            text = read_text(self.path)
            return text, parse_servers(text, self.path, self._environment)
        except InputError as error:
            return text, str(error)
        except Unreadable as error:
            return f"\0{error}", f"{self.path}: {error}"  # NUL: no file that can be used has this text

    async def _change(self, found: Found) -> bool:
        """Take over what differs; False: the sessions have ended."""
        if found == self.current:
            return True
        for line in (*found.warnings, *(each.why for each in found.skipped)):
            self._tell(line)
        told, self.current = _difference(self.current.backends, found.backends), found
        try:
            await self._take_over(found)
        except SessionClosed:
            return False
        except VmcpError as error:
            told = f"not taken over everywhere: {error}"
        self._tell(f"{self.path}: {told}")
        return True


def _difference(before: tuple[Backend, ...], after: tuple[Backend, ...]) -> str:
    old, new = ({backend.id: backend for backend in backends} for backends in (before, after))
    parts = {
        "added": [each for each in new if each not in old],
        "removed": [each for each in old if each not in new],
        "changed": [each for each in new if each in old and new[each] != old[each]],
    }
    return "; ".join(f"{what} {', '.join(ids)}" for what, ids in parts.items() if ids) or "the same servers"
