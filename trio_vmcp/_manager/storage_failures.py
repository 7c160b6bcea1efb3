"""Log records about requests to the manager that the storage could not serve.

The caller gets the error. A server in between tells its clients less, since the text may name a host of the operator's:
so the log must say what happened, though an outage fails every request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from trio_vmcp.errors import MetadataConflict, StorageError

__all__ = ["StorageFailures"]

_logger = logging.getLogger("trio_vmcp.manager")

REPEATED_AFTER = 60.0  # s, after which the same text is a warning again
MOST_TEXTS = 64


@attrs.define(eq=False)
class StorageFailures:
    """Of each text, the first in `REPEATED_AFTER` s is a warning, and later ones are debug records."""

    _warned_at: dict[str, float] = attrs.field(factory=dict, init=False)  # by text, the oldest first

    @contextmanager
    def logged(self, what: str) -> Iterator[None]:
        """
        Args:
            what: Completes the sentence "a session could not be …".
        """
        try:
            yield
        except MetadataConflict:  # with another instance, and no failure
            raise
        except StorageError as error:
            self._log(f"a session could not be {what}: {error}")
            raise

    def _log(self, text: str) -> None:
        now = trio.current_time()
        is_new = now - self._warned_at.get(text, -REPEATED_AFTER) >= REPEATED_AFTER
        if is_new:
            self._warned_at.pop(text, None)
            self._warned_at[text] = now
            if len(self._warned_at) > MOST_TEXTS:
                del self._warned_at[next(iter(self._warned_at))]
        _logger.log(logging.WARNING if is_new else logging.DEBUG, "%s", text)
