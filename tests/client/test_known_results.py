"""An answer of equal bytes is known by its digest, and not parsed again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.channels import EVERY_ANSWER, Channel
from trio.testing import MockClock

from trio_vmcp import JSON
from trio_vmcp._known_results import SLICE, KnownResults, can_recall

ANSWER: JSON = {"tools": [{"name": "é", "description": "x"}]}


async def list_tools(client: Any, known: KnownResults) -> JSON:
    result: JSON = await client.request("tools/list", {}, identity=None, timeout=9, on_progress=None, known=known)
    return result


@EVERY_ANSWER
async def test_an_answer_of_equal_bytes_is_not_parsed_again(channel: Channel, autojump_clock: MockClock) -> None:
    """The caller gets the result that it has already, the very object, although the id of the answer is another one."""
    backend = channel.backend()
    async with channel.open_client(backend) as client:
        assert can_recall(client)
        first = KnownResults({})
        result = await list_tools(client, first)
        assert first.digest is not None
        again = KnownResults({first.digest: result})
        assert result is await list_tools(client, again)
        assert (first.digest, first.size) == (again.digest, again.size)
        backend.add_tool("new")
        other = KnownResults({first.digest: result})
        assert "new" in [tool["name"] for tool in (await list_tools(client, other))["tools"]]
        assert other.digest not in (None, first.digest)


def recall(text: str, request_id: int = 7) -> KnownResults:
    known = KnownResults({})
    steps = list(known.recall(text, request_id))
    assert known.digest is None or [None] * (len(text) // SLICE) == steps
    return known


def messages(result: str) -> list[str]:
    """The answer with the id 7, as the serializers of servers write it."""
    return [
        f'{{"jsonrpc":"2.0","id":7,"result":{result}}}',
        f'{{"id":7,"jsonrpc":"2.0","result":{result}}}',
        f'{{"id":7,"result":{result},"jsonrpc":"2.0"}}',
        f'{{"result":{result},"jsonrpc":"2.0","id":7}}',
        f'{{"jsonrpc":"2.0","result":{result},"id":7}}',
        f'{{\n "jsonrpc": "2.0",\n "id": 7,\n "result": {result}\n}}\n',
    ]


@pytest.mark.parametrize("text", messages(json.dumps(ANSWER, ensure_ascii=False)))
def test_the_id_does_not_count(text: str) -> None:
    """Wherever it stands. Everything else does, each byte of it."""
    known = recall(text)
    assert known.digest is not None
    assert len(text.encode()) - 1 == known.size
    assert known.digest == recall(text.replace("7", "12345"), 12345).digest
    for position in (at for at in range(len(text)) if text[at] != "7"):
        other = recall(text[:position] + "~" + text[position + 1 :])
        assert other.digest != known.digest
    results: list[JSON | None] = []
    steps = KnownResults({known.digest: ANSWER}).recall(text, 7)
    try:
        next(steps)
    except StopIteration as end:
        results.append(end.value)
    assert [ANSWER] == results


LARGE = json.dumps({"tools": ["x" * (2 * SLICE)]})


@pytest.mark.parametrize("text", messages(LARGE))
def test_a_large_answer_is_hashed_in_steps(text: str) -> None:
    """1 MiB takes about 1 ms; other tasks run in between."""
    known = recall(text)
    assert len(text) - 1 == known.size


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":8,"result":{}}',
        '{"jsonrpc":"2.0","id":"7","result":{}}',
        '{"jsonrpc":"2.0","id":07,"result":{}}',
        '{"jsonrpc":"2.0","id":7,"method":"x"}',
        '{"jsonrpc":"2.0","result":{"id":7},"x":1}',
        '{"method":"x","params":{},"id":7}',
        '[{"jsonrpc":"2.0","id":7,"result":{}}]',
        "",
        '{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"\\ud800"}]}}',
        '{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"\\uDFff"}]}}',
    ],
)
def test_what_may_not_be_told_apart_is_parsed(text: str) -> None:
    """Another id, an id in the middle, no answer; and escapes of surrogates: such an entry may be no text."""
    assert recall(text).digest is None


@pytest.mark.parametrize("rest", range(8))
@pytest.mark.parametrize(("escape", "is_known"), [("\\ud800", False), ("\\u00d8", True)])
def test_an_escape_that_stands_in_two_slices(escape: str, rest: int, is_known: bool) -> None:
    """An escape of a surrogate is found there, too."""
    begin = '{"jsonrpc":"2.0","id":7'
    text = f'{begin},"result":{{"x":"'.ljust(len(begin) + SLICE - rest, "x") + escape + '"}}'
    assert is_known == (recall(text).digest is not None)


class Outer:
    """A client that adds to what a client of ours answers, and passes everything else on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Ours:
    recalls = True


def test_only_a_client_of_ours_is_given_what_is_known() -> None:
    """One that changes the results of ours would change them a second time."""
    assert can_recall(Ours())  # type: ignore[arg-type]  # the attribute alone is looked at
    assert not can_recall(Outer(Ours()))
