"""The agent of README.md ("In an agent") over three servers of PyPI and npm, with a model that follows a script."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio
from interop.programs import PROGRAMS
from interop.views import PATIENCE
from support.processes import marked_children

from trio_vmcp import JSON, FactorySettings, open_session_factory

README = Path(__file__).parents[2] / "README.md"
SERVERS = ("time", "memory", "filesystem")  # the first is from PyPI, the others from npm
LARGE = "0123456789" * 6000


def agent_of_readme() -> dict[str, Any]:
    """The names of the README's program, without its `main`."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if "def run_agent(" in block]
    names: dict[str, Any] = {}
    exec(block.removesuffix("trio.run(main)\n"), names)  # a page of this project
    return names


def calls_of(*calls: tuple[str, JSON | str]) -> JSON:
    """A model's message that calls tools; arguments that are text stay as they are."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"{name}-{number}",
                "type": "function",
                "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
            }
            for number, (name, given) in enumerate(calls)
        ],
    }


class ScriptedModel:
    """Says its messages one after the other, and keeps the tools that it is told of."""

    def __init__(self, *script: JSON) -> None:
        self.script = list(script)
        self.told: list[JSON] = []

    async def __call__(self, _messages: list[JSON], tools: list[JSON]) -> JSON:
        self.told = tools
        return self.script.pop(0)


async def test_an_agent_over_three_servers(tmp_path: Path) -> None:
    """Each call of the model is answered under its id: results, a tool's own failure, a name that no tool has,
    arguments that are no JSON; a large result is cut. The agent goes on to the model's last word.
    """
    agent = agent_of_readme()
    file = str(tmp_path / "large.txt")
    noon = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    milk = {"name": "milk", "entityType": "thing", "observations": ["to buy"]}
    model = ScriptedModel(
        calls_of(
            ("time_convert_time", noon),
            ("memory_create_entities", {"entities": [milk]}),
            ("filesystem_read_text_file", {"path": file}),  # there is none yet
            ("time_travel", {"to": "1985"}),
            ("time_convert_time", "{noon"),
        ),
        calls_of(("filesystem_write_file", {"path": file, "content": LARGE})),
        calls_of(("filesystem_read_text_file", {"path": file}), ("memory_search_nodes", {"query": "milk"})),
        {"role": "assistant", "content": "Done."},
    )
    messages: list[JSON] = [{"role": "user", "content": "Do it."}]
    chosen = [program for program in PROGRAMS if program.name in SERVERS]
    with marked_children() as children, trio.fail_after(PATIENCE * 2):
        async with (
            open_session_factory(settings=FactorySettings(request_timeout=PATIENCE)) as factory,
            factory.open_session([each.backend(each.name, tmp_path, children.mark) for each in chosen]) as session,
        ):
            assert () == session.failures
            assert "Done." == await agent["run_agent"](session, model, messages)
        assert await children.all_gone()

    functions = {entry["function"]["name"]: entry["function"] for entry in model.told}
    assert set(SERVERS) == {name.partition("_")[0] for name in functions}
    assert {"source_timezone", "time", "target_timezone"} == set(
        functions["time_convert_time"]["parameters"]["properties"]
    )
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    first, written, second = (
        {message["tool_call_id"]: message["content"] for message in messages[begin + 1 : end]}
        for begin, end in pairwise(turns)
    )
    assert "21:00:00+09:00" in first["time_convert_time-0"]
    assert [milk] == json.loads(first["memory_create_entities-1"])
    assert first["filesystem_read_text_file-2"].startswith("The tool failed: ")
    assert "large.txt" in first["filesystem_read_text_file-2"]
    assert first["time_travel-3"].startswith("Error: ")
    assert "time_travel" in first["time_travel-3"]
    assert first["time_convert_time-4"].startswith("Error: ")
    assert ["filesystem_write_file-0"] == list(written)
    assert LARGE[: agent["MOST"]] == second["filesystem_read_text_file-0"][: agent["MOST"]]
    assert f"of {len(LARGE)} characters" in second["filesystem_read_text_file-0"][agent["MOST"] :]
    assert [milk] == json.loads(second["memory_search_nodes-1"])["entities"]
