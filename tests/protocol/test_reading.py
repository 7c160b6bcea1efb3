"""Messages that cannot be read whole: of an answer, the id at one of its ends tells which request it belongs to."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._protocol.reading import END_BYTES, reply_id_at_ends, request_id_at_ends


def at_ends(text: str) -> int | None:
    data = text.encode()
    return reply_id_at_ends(data[:END_BYTES], data[-END_BYTES:])


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":7,"result":{',
        '{"id" : 7 , "result" : {}',
        '{"jsonrpc":"2.0","id":"7","error":{',
        '{"jsonrpc":"2.0","result":{"a":1},"id":7}',
        '{"result":{"a":1},"jsonrpc":"2.0","id":7}',
        '{"result":{"a":1},"id":7,"jsonrpc":"2.0"}',
        '{"result":{"a":1},"id":7 } \r\n',
        '{"jsonrpc":"2.0","result":{"a":1,"id":5},"id":7}',
        '{"jsonrpc":"2.0","result":[{"a":1,"id":5},{"a":2,"id":6}],"id":7}',
    ],
)
def test_the_id_of_an_answer_is_found_at_its_ends(text: str) -> None:
    """At the beginning, or behind the result, which may hold ids of its own."""
    assert 7 == at_ends(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","result":{"a":1,"id":5}}',
        '{"jsonrpc":"2.0","result":{"a":1,"id":5},"more":2}',
        '{"jsonrpc":"2.0","result":{"a":1,"id":5},"id":null}',
        '{"jsonrpc":"2.0","result":{"a":1,"id":5},"id":1.5}',
        '{"jsonrpc":"2.0","result":{"text":", \\"id\\": 5}"},"x":1}',
        '{"jsonrpc":"2.0","method":"x","params":{"a":1},"id":7}',
        '{"jsonrpc":"2.0","id":7,"method":"x","params":{}}',
        "",
    ],
)
def test_an_id_elsewhere_is_no_id_of_an_answer(text: str) -> None:
    """An id inside the result belongs to something else: with it, the wrong request would fail."""
    assert None is at_ends(text)


@given(
    st.integers(0, 10**18 - 1),
    st.recursive(
        st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["id", "a", "result"]), x)
    ),
)
def test_whatever_a_result_holds_the_id_is_that_of_the_answer(reply_id: int, value: object) -> None:
    """Ids first and last, with results that hold ids, braces and quotes."""
    first = json.dumps({"jsonrpc": "2.0", "id": reply_id, "result": value})
    last = json.dumps({"jsonrpc": "2.0", "result": value, "id": reply_id})
    assert reply_id == at_ends(first) == at_ends(last)


def call_at_ends(text: str) -> int | str | None:
    data = text.encode(errors="surrogatepass")
    return request_id_at_ends(data[:END_BYTES], data[-END_BYTES:])


@pytest.mark.parametrize(("written", "request_id"), [("7", 7), ("-7", -7), ('"r 7"', "r 7"), ('""', "")])
@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":@,"method":"x","params":{"a":[}',
        '{"id" : @ , "jsonrpc" : "2.0", "method" : "x"',
        '{"jsonrpc":"2.0","method":"x","params":{"id":5,"a":NaN},"id":@}',
        '{"method":"x","params":{"a":NaN},"jsonrpc":"2.0","id":@}\r\n',
        '{"method":"x","params":[NaN],"jsonrpc":"2.0","id":@}',
        '{"params":{"a":NaN},"method":"x","jsonrpc":"2.0","id":@}',
        '{"method":"x","params":{"a":NaN},"id":@,"jsonrpc":"2.0"}',
    ],
)
def test_the_id_of_a_request_is_found_at_its_ends(text: str, written: str, request_id: int | str) -> None:
    """As official SDKs write it: those in Python and TypeScript put it behind the params."""
    assert request_id == call_at_ends(text.replace("@", written))


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":7,"result":{}}',
        '{"jsonrpc":"2.0","result":{},"id":7}',
        '{"jsonrpc":"2.0","method":"x","params":{"a":1,"id":7}}',
        '{"jsonrpc":"2.0","method":"x","params":{"a":1,"id":7}',
        '{"jsonrpc":"2.0","method":"x","params":{"text":"},\\"id\\":7}',
        '{"jsonrpc":"2.0","id":1.5,"method":"x"}',
        '{"jsonrpc":"2.0","id":null,"method":"x"}',
        '{"jsonrpc":"2.0","id":"\\u0041","method":"x"}',
        '{"jsonrpc":"2.0","id":{"id":7},"method":"x"}',
        "[]",
        "",
    ],
)
def test_an_id_elsewhere_is_no_id_of_a_request(text: str) -> None:
    """With an argument's value, the answer could end another request."""
    assert None is call_at_ends(text)
