"""`serve --watch`: what becomes of changes of the file."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_vmcp import SessionClosed, StorageError
from trio_vmcp._cli.file_changes import FileChanges
from trio_vmcp._cli.sources import Found


@attrs.define(eq=False)
class Followed:
    """A file that is followed, and what came of that."""

    path: Path
    taken: list[list[str]] = attrs.field(factory=list)
    told: list[str] = attrs.field(factory=list)
    error: Exception | None = None

    async def take_over(self, found: Found) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.taken.append([f"{backend.id} {backend.url}" for backend in found.backends])

    def write(self, content: object) -> None:
        self.path.write_text(content if isinstance(content, str) else json.dumps({"mcpServers": content}))


A, B = {"url": "http://a.test/mcp"}, {"url": "http://b.test/mcp"}


@asynccontextmanager
async def followed(folder: Path) -> AsyncIterator[Followed]:
    """A file with the server "a", which is in use; its changes are seen from the first second on."""
    file = Followed(folder / "mcp.json")
    file.write({"a": A})
    async with trio.open_nursery() as nursery:
        changes = FileChanges(str(file.path), Found(), {"SET": "x"}, file.take_over, file.told.append)
        nursery.start_soon(changes.follow)
        await trio.sleep(0.5)
        assert (["a http://a.test/mcp"], f"{file.path}: added a") == (file.taken.pop(), file.told.pop())
        yield file
        nursery.cancel_scope.cancel()


async def test_a_change_is_taken_over_within_a_second(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Each change once, with a line that says what is new, gone and other; a file that is only touched is none."""
    async with followed(tmp_path) as file:
        file.write({"a": {"url": "http://a.test/other"}, "b": B})
        await trio.sleep(1)
        assert [["a http://a.test/other", "b http://b.test/mcp"]] == file.taken
        assert [f"{file.path}: added b; changed a"] == file.told
        os.utime(file.path, (1, 1))
        await trio.sleep(5)
        file.write({"b": B})
        os.utime(file.path, (1, 1))  # as copies keep it
        await trio.sleep(1)
        assert ["b http://b.test/mcp"] == file.taken[1]
        assert [f"{file.path}: removed a"] == file.told[1:]
        await trio.sleep(5)
        assert (2, 2) == (len(file.taken), len(file.told))
        file.write({})
        await trio.sleep(1)
        assert [] == file.taken[2]


@pytest.mark.parametrize("content", ["{", "", {"a": 1}, {"a": {"url": "ftp://a.test"}}, None])
async def test_a_bad_file_changes_nothing(content: object, tmp_path: Path, autojump_clock: MockClock) -> None:
    """No JSON, a malformed entry, a file that is away: one report when that stays so, and no change. Mended, the file
    is taken over.
    """
    async with followed(tmp_path) as file:
        if content is None:
            file.path.unlink()
        else:
            file.write(content)
        await trio.sleep(10)
        assert [] == file.taken
        (line,) = file.told
        assert line.startswith(f"nothing is changed: {file.path}:")
        file.write({"a": A})
        await trio.sleep(1)
        assert [] == file.taken  # what is in use
        file.write({"b": B})
        await trio.sleep(1)
        assert [["b http://b.test/mcp"]] == file.taken


async def test_a_file_that_is_being_written(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What is bad for a moment is not reported."""
    async with followed(tmp_path) as file:
        file.write("")
        await trio.sleep(1)
        file.write('{"mcpServers"')
        await trio.sleep(1)
        file.write({"b": B})
        await trio.sleep(5)
        assert [["b http://b.test/mcp"]] == file.taken
        assert [f"{file.path}: added b; removed a"] == file.told


async def test_an_entry_that_cannot_be_used_costs_itself(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its variable is not set: it is reported, and the others are taken over."""
    async with followed(tmp_path) as file:
        file.write({"a": {"url": "http://a.test/${NO}"}, "b": {"url": "http://b.test/${SET}"}})
        await trio.sleep(1)
        assert [["b http://b.test/x"]] == file.taken
        assert "environment variable NO" in file.told[0]


@pytest.mark.parametrize(("error", "lines"), [(StorageError("is away"), 2), (SessionClosed("closed"), 0)])
async def test_a_change_that_fails(error: Exception, lines: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """It is reported, and later changes are taken over; when the sessions have ended, there is nothing left to do."""
    async with followed(tmp_path) as file:
        file.error = error
        file.write({"b": B})
        await trio.sleep(1)
        file.error = None
        file.write({"a": A})
        await trio.sleep(5)
        assert (lines, lines // 2) == (len(file.told), len(file.taken))
