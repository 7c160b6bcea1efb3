"""What the words of a refusal are read for."""

from __future__ import annotations

import pytest

from trio_vmcp._protocol.jsonrpc import ErrorReply
from trio_vmcp._protocol.outcomes import MOST_WORDS, Answer, names_session, tells_session_lost


@pytest.mark.parametrize(("before", "is_read"), [(0, True), (MOST_WORDS - 17, True), (MOST_WORDS, False)])
def test_only_the_beginning_of_an_error_is_read(before: int, is_read: bool) -> None:
    """To look through one of 16 MiB would take over 100 ms in one step."""
    answer = Answer(ErrorReply(1, -32000, "x" * before + "Session not found", None))
    assert (is_read, is_read) == (names_session(answer), tells_session_lost(answer))


def test_an_error_about_the_request_names_no_session() -> None:
    """Whatever its text says: -32602 is about the params, -32603 about the execution (JSON-RPC 2.0 §5.1)."""
    answers = [Answer(ErrorReply(1, code, "unknown session", None)) for code in (-32602, -32603, -32600)]
    assert [False, False, True] == [names_session(answer) for answer in answers]
