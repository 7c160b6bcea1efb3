"""Servers by other authors that are programs: how they are run, and something that each can do in a countable way."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import attrs
from interop.fleet import BOTH, LEGACY, Era, homes

from trio_vmcp import JSON, Backend, ToolResult

__all__ = ["MORE_PROGRAMS", "PROGRAMS", "Program", "text_of"]

END = "(end)"  # of the file that deeds are written into
GIT = ("git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "init.defaultBranch=main")


@attrs.frozen(kw_only=True)
class Program:
    """One program, and how it is run.

    Attributes:
        home: The environment that the nox session made for it, below `INTEROP_HOMES`.
        command, env: With `{home}` and `{place}` filled in: a directory that the program may do as it likes with.
        eras: What it speaks, the newest last: what a probe should find.
        prepare: Makes the place ready.
        deed: The tool and the arguments that do something under a name, in a place.
        is_done: Whether the tool's answer says that it was done, and by this call.
        done: How often each name was done, as the place shows it; None: it shows nothing.
    """

    name: str
    home: str
    command: tuple[str, ...]
    env: dict[str, str] = attrs.field(factory=dict, hash=False)
    eras: tuple[Era, ...]
    prepare: Callable[[Path], None]
    deed: Callable[[Path, str], tuple[str, JSON]]
    is_done: Callable[[ToolResult, str], bool]
    done: Callable[[Path], Counter[str]] | None

    def backend(self, backend_id: str, place: Path, mark: str, era: Era | None = None) -> Backend:
        """With `mark` in the environment of its processes. Without an era: by the probe."""
        command, *args = self.command_line(place)
        return Backend(
            id=backend_id,
            transport="stdio",
            command=command,
            args=args,
            env=self.environment(place, mark),
            era="auto" if era is None else era,
        )

    def command_line(self, place: Path) -> list[str]:
        return [part.format(home=homes() / self.home, place=place) for part in self.command]

    def environment(self, place: Path, mark: str) -> dict[str, str]:
        return {"TEST_MARK": mark} | {name: value.format(place=place) for name, value in self.env.items()}


def text_of(result: ToolResult) -> str:
    """The text of a good answer."""
    assert not result.is_error, result.content
    text: str = result.content[0]["text"]
    return text


def _prepare_nothing(_place: Path) -> None:
    pass


def _make_repository(place: Path) -> None:
    for command in (("init", "--quiet"), ("commit", "--quiet", "--allow-empty", "--message=first")):
        subprocess.run([*GIT, *command], cwd=place, check=True)


def _branches(place: Path) -> Counter[str]:
    return Counter(ref.name for ref in (place / ".git" / "refs" / "heads").iterdir() if ref.suffix != ".lock")


def _entities(place: Path) -> Counter[str]:
    try:
        lines = (place / "memory.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return Counter()
    return Counter(json.loads(line)["name"] for line in lines)


def _new_entity(name: str) -> JSON:
    return {"name": name, "entityType": "deed", "observations": ["☕"]}


def _begin_file(place: Path) -> None:
    (place / "deeds").write_text(END)


def _append(place: Path, name: str) -> tuple[str, JSON]:
    edit = {"oldText": END, "newText": f"{name}\n{END}"}
    return "edit_file", {"path": str(place / "deeds"), "edits": [edit]}


def _make_database(place: Path) -> None:
    with closing(sqlite3.connect(place / "deeds.db")) as database:
        database.execute("CREATE TABLE deeds (name TEXT)")


def _rows(place: Path) -> Counter[str]:
    with closing(sqlite3.connect(place / "deeds.db")) as database:
        return Counter(name for (name,) in database.execute("SELECT name FROM deeds"))


def _insertion(name: str) -> str:
    return f"INSERT INTO deeds VALUES ('{name}')"


PROGRAMS = (
    Program(
        name="time",
        home="mcp2",
        command=("{home}/bin/mcp-server-time", "--local-timezone", "UTC"),
        eras=BOTH,
        prepare=_prepare_nothing,
        deed=lambda _, __: (
            "convert_time",
            {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
        ),
        is_done=lambda result, _: "T21:00:00+09:00" in text_of(result),
        done=None,
    ),
    Program(
        name="git",
        home="mcp2",
        command=("{home}/bin/mcp-server-git",),
        eras=BOTH,
        prepare=_make_repository,
        deed=lambda place, name: ("git_create_branch", {"repo_path": str(place), "branch_name": name}),
        is_done=lambda result, name: not result.is_error and name in text_of(result),  # a second one would be refused
        done=_branches,
    ),
    Program(
        name="memory",
        home="node",
        command=("node", "{home}/node_modules/@modelcontextprotocol/server-memory/dist/index.js"),
        env={"MEMORY_FILE_PATH": "{place}/memory.jsonl"},
        eras=LEGACY,
        prepare=_prepare_nothing,
        deed=lambda _, name: ("create_entities", {"entities": [_new_entity(name)]}),
        is_done=lambda result, name: [_new_entity(name)] == json.loads(text_of(result)),  # a second one says: []
        done=_entities,
    ),
    Program(
        name="filesystem",
        home="node",
        command=("node", "{home}/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js", "{place}"),
        eras=LEGACY,
        prepare=_begin_file,
        deed=_append,
        is_done=lambda result, name: f"+{name}" in text_of(result),
        done=lambda place: Counter((place / "deeds").read_text().removesuffix(END).splitlines()),
    ),
)

# Of other languages and SDK generations. Each is killed once; those before are killed again and again.
MORE_PROGRAMS = (
    Program(
        name="toolbox",  # Go, without an SDK
        home="node",
        command=("{home}/node_modules/.bin/toolbox", "--stdio", "--prebuilt", "sqlite"),
        env={"SQLITE_DATABASE": "{place}/deeds.db"},
        eras=BOTH,
        prepare=_make_database,
        deed=lambda _, name: ("execute_sql", {"sql": _insertion(name)}),
        is_done=lambda result, _: not result.is_error,
        done=_rows,
    ),
    Program(
        name="gitlab",  # Go, on the official SDK
        home="binaries",
        command=("{home}/bin/gitlab-mcp-server",),
        env={"GITLAB_URL": "http://127.0.0.1:9", "GITLAB_TOKEN": "none"},
        eras=BOTH,
        prepare=_prepare_nothing,
        deed=lambda _, name: ("gitlab_find_action", {"query": f"list issues {name}", "limit": 2}),
        is_done=lambda result, _: "matching actions" in text_of(result),
        done=None,
    ),
    Program(
        name="grok",  # Rust
        home="binaries",
        command=("{home}/bin/grok-search-rs",),
        env={"GROK_SEARCH_API_KEY": "none"},
        eras=LEGACY,
        prepare=_prepare_nothing,
        deed=lambda _, name: ("get_sources", {"session_id": name}),
        is_done=lambda result, name: result.is_error and f"session_id={name}" in result.content[0]["text"],
        done=None,
    ),
    Program(
        name="azure",  # C#, behind a launcher for node
        home="node",
        command=("{home}/node_modules/.bin/azmcp", "server", "start"),
        env={"AZURE_MCP_COLLECT_TELEMETRY": "false"},
        eras=LEGACY,
        prepare=_prepare_nothing,
        deed=lambda _, __: ("get_azure_bestpractices", {"learn": True}),
        is_done=lambda result, _: "get_azure_bestpractices" in text_of(result),
        done=None,
    ),
    Program(
        name="thinking",  # TypeScript
        home="node",
        command=("node", "{home}/node_modules/@modelcontextprotocol/server-sequential-thinking/dist/index.js"),
        eras=LEGACY,
        prepare=_prepare_nothing,
        deed=lambda _, name: (
            "sequentialthinking",
            {"thought": name, "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1},
        ),
        is_done=lambda result, _: 1 == json.loads(text_of(result))["thoughtNumber"],
        done=None,
    ),
    Program(
        name="playwright",  # TypeScript, on a low-level server of its own
        home="node",
        command=("{home}/node_modules/.bin/playwright-mcp", "--headless"),
        eras=LEGACY,
        prepare=_prepare_nothing,
        deed=lambda _, __: ("browser_close", {}),
        is_done=lambda result, _: bool(result.content),  # an error, where there is no browser
        done=None,
    ),
    Program(
        name="sqlite",  # Python, on the SDK of early 2025
        home="mcp1-early",
        command=("{home}/bin/mcp-server-sqlite", "--db-path", "{place}/deeds.db"),
        eras=LEGACY,
        prepare=_make_database,
        deed=lambda _, name: ("write_query", {"query": _insertion(name)}),
        is_done=lambda result, _: "affected_rows" in text_of(result),
        done=_rows,
    ),
)
