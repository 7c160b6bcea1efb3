"""The end of a session that is not live here: its row goes, and the backends' sessions that the row names end."""

from __future__ import annotations

import enum
import logging

from trio_vmcp._manager.known import Ending, Known
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp._session.stored_row import MOST_ROUNDS
from trio_vmcp.errors import MetadataConflict, SessionNotFound, StorageError, session_tag
from trio_vmcp.metadata import SessionMetadata, UnreadableMetadata

__all__ = ["FIRST_DELAY", "MOST_DELAY", "Fate", "end_row"]

logger = logging.getLogger("trio_vmcp.manager")

FIRST_DELAY = 1.0  # s until the storage is asked again that did not delete a row; doubled each time
MOST_DELAY = 30.0


class Fate(enum.Enum):
    """What an attempt to end a row has found."""

    GONE = "no row is left"
    MOVED = "another instance has used the session since"
    UNKNOWN = "the storage is away"
    UNREADABLE = "this release cannot read the row, and does not delete what another one may have written"


async def end_row(storage: RowStorage, known: Known, ending: Ending) -> Fate:
    """Delete the row of a session that has ended, unless it is another instance's by now. Raises for no storage."""
    try:
        stored = await _delete(storage, known, ending)
    except SessionNotFound:
        return Fate.GONE
    except UnreadableMetadata as error:
        logger.warning("%s has ended, but its row is left: %s", session_tag(known.session_id), error)
        return Fate.UNREADABLE
    except StorageError as error:
        ending.delay = min(2 * ending.delay, MOST_DELAY) or FIRST_DELAY
        logger.warning(
            "%s has ended, but its row is left: %s; next attempt in %g s",
            session_tag(known.session_id),
            error,
            ending.delay,
        )
        return Fate.UNKNOWN
    return Fate.MOVED if stored is None else Fate.GONE


async def _delete(storage: RowStorage, known: Known, ending: Ending) -> SessionMetadata | None:
    for _ in range(MOST_ROUNDS):
        stored = await storage.load(known.session_id)
        if ending.mark is not None and stored.used_at != ending.mark:
            return None
        ending.records = stored.backends  # before the delete, whose answer may be lost
        try:
            await storage.delete(known.session_id, expected_version=stored.version)
        except MetadataConflict:
            continue
        return stored
    raise MetadataConflict(known.session_id)
