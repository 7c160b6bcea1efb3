"""Output of a child process on stderr is logged, within limits and without the configured secrets."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from trio_vmcp._client.channels.stderr import LINES_PER_SECOND, MOST_CHARACTERS, MOST_LINES, StderrLog
from trio_vmcp._protocol.words import secrets_in


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "trio_vmcp.client.stdio")
    return caplog


async def test_lines_are_logged_one_by_one(records: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    """At DEBUG, without empty lines; control characters, which could forge another record, are escaped."""
    log = StderrLog("b", {})
    log.feed(b"one\r\n\n  \ntw")
    log.feed(b"o\x1b[2J\rthree\xff\nbegun")
    assert ["backend 'b': one", "backend 'b': two\\x1b[2J\\rthree\ufffd"] == records.messages


async def test_long_lines_and_many_lines_are_cut(records: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    """Limits: characters per line, lines per second, lines in all; each is logged once when it is reached."""
    log = StderrLog("b", {})
    log.feed(b"x" * 1_000_000)
    assert len(log._line) < 10_000
    log.feed(b"\n")
    assert len("backend 'b': ") + MOST_CHARACTERS == len(records.messages[0])
    log.feed(b"line\n" * 10 * LINES_PER_SECOND)
    assert LINES_PER_SECOND == len(records.messages)
    await trio.sleep(1)
    log.feed(b"line\n")
    withheld = f"backend 'b': {9 * LINES_PER_SECOND + 1} lines of its stderr were not shown"
    assert [withheld, "backend 'b': line"] == records.messages[LINES_PER_SECOND:]
    while log._lines < MOST_LINES:
        await trio.sleep(1)
        log.feed(b"line\n" * LINES_PER_SECOND)
    count = len(records.messages)
    assert f"backend 'b': no more of its stderr is shown after {MOST_LINES} lines" == records.messages[-1]
    for _ in range(3):
        await trio.sleep(1)
        log.feed(b"line\n" * LINES_PER_SECOND)
    assert count == len(records.messages)


async def test_configured_secrets_are_shown_by_name(
    records: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """Secrets are replaced by their names before a line is shortened; short values are ordinary words and stay."""
    log = StderrLog("b", secrets_in({"TOKEN": "s3cret-token", "LEVEL": "debug"}))
    log.feed(b"bad token s3cret-token at level debug\n" + b"x" * (MOST_CHARACTERS - 5) + b"s3cret-token\n")
    assert "backend 'b': bad token $TOKEN at level debug" == records.messages[0]
    assert "s3c" not in records.messages[1]
    assert "bad token $TOKEN at level debug" in log.last_words()


async def test_the_last_words_are_the_last_lines(autojump_clock: MockClock) -> None:
    """The last lines are quoted in the error, shortened, also those that were not logged."""
    log = StderrLog("b", {})
    assert "" == log.last_words()
    log.feed(b"line\n" * 1000 + b"a 'word'\n" + b"y" * 500 + b"\n\n")
    log.feed(b"end")
    send, receive = trio.testing.memory_stream_one_way_pair()
    await send.aclose()
    await log.drain(receive)
    assert ", ".join(["\"a 'word'\"", repr("y" * 200), "'end'"]) == log.last_words()
