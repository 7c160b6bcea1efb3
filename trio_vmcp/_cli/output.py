"""Writing to stdout and stderr where the reader may be gone or the disk full."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

__all__ = ["OutputError", "write_log", "write_text"]


class OutputError(Exception):
    """Results cannot be written to stdout. The text is one line."""


def write_text(stream: TextIO, text: str) -> None:
    """Write and flush. If the reader has gone (`| head`), the rest is discarded and the session closes in order.

    Raises:
        OutputError: The stream takes no more for another reason, such as a full disk; later writes are discarded.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        raise OutputError(f"cannot write to stdout: {error.strerror or type(error).__name__}") from None


def write_log(stream: TextIO, text: str) -> None:
    """Write and flush what is said beside the results. Where that cannot be written, the results still can."""
    with suppress(OutputError):
        write_text(stream, text)


def _discard(stream: TextIO) -> None:
    """From now on, drop what is written: else Python's flush at exit fails and prints a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
