"""The options of one call: what they may be, and what a backend gets of them."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import pytest

from trio_vmcp import JSON, BackendRecord, BackendRejected
from trio_vmcp._session.call_options import CallOptions, call_options

CAPABILITIES, LOG_LEVEL = "io.modelcontextprotocol/clientCapabilities", "io.modelcontextprotocol/logLevel"
USUAL: dict[str, Any] = {
    "answer_rounds": True,
    "input_responses": None,
    "request_state": None,
    "client_capabilities": None,
    "log_level": None,
}
MODERN = BackendRecord("b", None, "modern", "2026-07-28", {}, "")
LEGACY = BackendRecord("b", None, "legacy", "2025-11-25", {}, "")
CALL: JSON = {"name": "x", "arguments": {}}


def given(**keywords: Any) -> CallOptions:
    options = call_options(**(USUAL | keywords))
    assert options is not None
    return options


def sent(record: BackendRecord | None, params: JSON = CALL, **keywords: Any) -> JSON:
    before = dict(params)
    result = given(**keywords).params_for("b", record, "tools/call", params)
    assert before == params
    return result


def test_a_usual_call_has_no_options() -> None:
    """So that it costs nothing."""
    assert call_options(**USUAL) is None


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"answer_rounds": False}, {}),
        ({"input_responses": {}}, {"inputResponses": {}}),
        ({"input_responses": MappingProxyType({"k": {"a": 1}})}, {"inputResponses": {"k": {"a": 1}}}),
        ({"request_state": ""}, {"requestState": ""}),
        ({"request_state": " s\u00e9"}, {"requestState": " s\u00e9"}),
        ({"client_capabilities": {}}, {"_meta": {CAPABILITIES: {}}}),
        ({"client_capabilities": MappingProxyType({"x": {}})}, {"_meta": {CAPABILITIES: {"x": {}}}}),
        ({"log_level": "debug"}, {"_meta": {LOG_LEVEL: "debug"}}),
        ({"log_level": "emergency", "request_state": "s"}, {"_meta": {LOG_LEVEL: "emergency"}, "requestState": "s"}),
    ],
)
def test_the_modern_era_gets_what_was_given(keywords: JSON, expected: JSON) -> None:
    """Under the names of MCP 2026-07-28, and nothing of what was not given."""
    assert CALL | expected == sent(MODERN, **keywords)


def test_what_the_caller_gave_in_meta_stays() -> None:
    """Beside what the options say."""
    params = CALL | {"_meta": {"mine": 1}}
    assert {"mine": 1, LOG_LEVEL: "info"} == sent(MODERN, params, log_level="info")["_meta"]


@pytest.mark.parametrize("record", [LEGACY, None], ids=["legacy", "unknown"])
def test_the_handshake_era_gets_nothing(record: BackendRecord | None) -> None:
    """Neither does a backend whose era is not known."""
    assert CALL == sent(record, answer_rounds=False, client_capabilities={"x": {}}, log_level="debug")


@pytest.mark.parametrize("record", [LEGACY, None], ids=["legacy", "unknown"])
@pytest.mark.parametrize("keywords", [{"input_responses": {}}, {"request_state": ""}], ids=str)
def test_the_handshake_era_has_no_rounds(record: BackendRecord | None, keywords: JSON) -> None:
    """The error names the backend and the keywords."""
    with pytest.raises(BackendRejected) as caught:
        sent(record, **keywords)
    assert (-32602, False) == (caught.value.code, caught.value.may_have_executed)
    assert "backend 'b' has no rounds that 'tools/call' could go on with" in str(caught.value)
    assert "(input_responses, request_state)" in str(caught.value)


@pytest.mark.parametrize("answer_rounds", [True, False])
def test_who_answers(answer_rounds: bool) -> None:
    """Also where other options are given."""
    assert (not answer_rounds) is given(answer_rounds=answer_rounds, log_level="info").hands_out_rounds


@pytest.mark.parametrize("level", ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"])
def test_every_level_of_mcp_is_good(level: str) -> None:
    """MCP 2025-11-25, server/utilities/logging, "Log Levels"."""
    assert level == sent(MODERN, log_level=level)["_meta"][LOG_LEVEL]


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"answer_rounds": 0}, TypeError, "answer_rounds is int, not a bool"),
        ({"answer_rounds": 1}, TypeError, "answer_rounds is int, not a bool"),
        ({"answer_rounds": None}, TypeError, "answer_rounds is NoneType, not a bool"),
        ({"input_responses": [{}]}, TypeError, "input_responses is list, not a mapping"),
        ({"input_responses": {1: {}}}, TypeError, "a key in input_responses is int, not a str"),
        (
            {"input_responses": {"k": "hunter2"}},
            TypeError,
            "a value in input_responses is str, not a dict, the result object for one question",
        ),
        (
            {"input_responses": {"k": {"x": math.nan}}},
            ValueError,
            "input_responses cannot be sent as JSON: input_responses.k.x is nan",
        ),
        (
            {"input_responses": {"k": {"x": {"hunter2"}}}},
            ValueError,
            "input_responses cannot be sent as JSON: input_responses.k.x is set",
        ),
        (
            {"input_responses": {"\ud800": {}}},
            ValueError,
            "input_responses cannot be sent as JSON: input_responses has a key with a lone surrogate",
        ),
        ({"request_state": b"hunter2"}, TypeError, "request_state is bytes, not a str"),
        (
            {"request_state": "hunter2\ud800"},
            ValueError,
            "request_state cannot be sent as JSON: request_state holds a lone surrogate",
        ),
        ({"client_capabilities": ["x"]}, TypeError, "client_capabilities is list, not a mapping"),
        ({"client_capabilities": {None: {}}}, TypeError, "a key in client_capabilities is NoneType, not a str"),
        (
            {"client_capabilities": {"x": {1}}},
            ValueError,
            "client_capabilities cannot be sent as JSON: client_capabilities.x is set",
        ),
        ({"log_level": 3}, TypeError, "log_level is int, not a str"),
        (
            {"log_level": "INFO" * 20},
            ValueError,
            "log_level='INFOINFOINFOINFOINFOINFOINFOINFO' is a str, and none of debug, info, notice, warning, error, "
            "critical, alert, emergency",
        ),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_value_that_cannot_be_sent(keywords: JSON, error: type[Exception], text: str) -> None:
    """The error names the keyword and the type, and never quotes what may be secret."""
    with pytest.raises(error) as caught:
        call_options(**(USUAL | keywords))
    assert text == str(caught.value)


def test_options_show_no_secrets() -> None:
    """In logs of an application, say."""
    shown = repr(given(request_state="hunter2", input_responses={"k": {"x": "hunter2"}}, log_level="debug"))
    assert "hunter2" not in shown
