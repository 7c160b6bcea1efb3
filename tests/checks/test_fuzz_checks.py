"""The checks that `nox -s fuzz` runs: the corpus passes them, and each finds a parser that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from fuzz import checks
from fuzz.checks import CHECKS

from trio_vmcp._protocol.jsonrpc import BadMessage, Result
from trio_vmcp._protocol.sse import SseDecoder, SseEvent

CORPUS = sorted((Path(__file__).parent.parent / "fuzz" / "corpus").glob("*/*"))


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_the_corpus_passes(file: Path) -> None:
    """What was found once is not found again; and no check is without a seed."""
    CHECKS[file.parent.name](file.read_bytes())
    assert CHECKS.keys() == {entry.parent.name for entry in CORPUS}


class Forgetful(SseDecoder):
    """Loses what one chunk leaves for the next."""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        events = super().feed(chunk)
        self._line = bytearray()
        return events


def quoting(data: bytes, *, max_depth: int) -> Result:
    raise BadMessage(f"is wrong: {data!r}")


def confused(data: bytes, *, max_depth: int) -> Result:
    return Result(1, {})


def crashing(*args: object, **options: object) -> object:
    raise KeyError


@attrs.frozen
class Greedy:
    text: str

    def matches(self, uri: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("check", "name", "defect", "data"),
    [
        ("message", "parse_message", crashing, b"{"),
        ("message", "parse_message", quoting, b"x" * 200),
        ("message", "parse_message", confused, b'{"jsonrpc":"2.0","id":2,"result":{}}'),
        ("events", "SseDecoder", Forgetful, b"data: 1\n\n"),
        ("header", "encode_header_value", str, b"\n"),
        ("header", "decode_header_value", crashing, b"a"),
        ("header", "is_valid_session_id", lambda value: True, b"a b"),
        ("param_headers", "param_headers", crashing, b'{"schema":{},"arguments":{}}'),
        ("template", "compile_template", Greedy, b"a\nb"),
        ("template", "compile_template", crashing, b"a\nb"),
        ("metadata", "metadata_from_json", crashing, b"{}"),
    ],
)
def test_a_wrong_parser_is_found(
    check: str, name: str, defect: Callable[..., Any], data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of another kind, a text that quotes, a value that is not what was sent, a limit that is not kept."""
    CHECKS[check](data)
    monkeypatch.setattr(checks, name, defect)
    with pytest.raises((AssertionError, KeyError)):
        CHECKS[check](data)
