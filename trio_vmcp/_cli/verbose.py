"""The library's log, which has the servers' stderr, among what the command shows on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from trio_vmcp._cli.view import View

__all__ = ["showing_log"]


@contextmanager
def showing_log(view: View, level: int = logging.DEBUG) -> Iterator[None]:
    """Show each record from this level on as one line."""
    logger, handler = logging.getLogger("trio_vmcp"), _ViewHandler(view)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _ViewHandler(logging.Handler):
    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    def emit(self, record: logging.LogRecord) -> None:
        error = f" ({record.exc_info[1]!r})" if record.exc_info else ""
        topic = record.name.removeprefix("trio_vmcp.")
        self.view.show_log(f"{record.levelname.lower()} {topic}: {record.getMessage()}{error}")
