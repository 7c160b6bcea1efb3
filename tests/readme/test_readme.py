"""The Python blocks of README.md are programs, and they run.

Each block runs in a process of its own. For every server address in a block there is a scripted server with the tools
that the block calls, on a free port that replaces the one in the text. A block with `def test_` in it runs under
pytest. For a token endpoint in a block there is an issuer, and the scripted servers require its tokens.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from trio_vmcp.testing import ScriptedBackend, Status, open_loopback

README = Path(__file__).parent.parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
BACKEND = re.compile(r'Backend\(\s*(?:id=)?"([\w.-]+)",\s*url="(http://127\.0\.0\.1:\d+/mcp)"')
TOKEN_URL = re.compile(r'"(\w+)": ClientCredentials\(\s*"(http://127\.0\.0\.1:\d+/token)"')
TOKEN = "token-for-the-readme"
PATIENCE = 30.0  # s, for one program to end


def test_the_readme_has_examples() -> None:
    """None found would be none tested."""
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
async def test_block_runs(block: str, tmp_path: Path) -> None:
    """The program ends by itself, with status 0 and without a warning."""
    async with AsyncExitStack() as servers:
        guarded = set[str]()
        for backend_id, url in TOKEN_URL.findall(block):
            issuer = ScriptedBackend()
            issuer.fail("POST", Status(200, json.dumps({"access_token": TOKEN, "token_type": "Bearer"}).encode()))
            block = block.replace(url, await servers.enter_async_context(open_loopback(issuer)))
            guarded.add(backend_id)
        for backend_id, url in BACKEND.findall(block):
            backend = ScriptedBackend()
            for name in re.findall(rf'call_tool\(\s*"{re.escape(backend_id)}_(\w+)"', block):
                backend.add_tool(name)
            if backend_id in guarded:
                backend.fail(lambda exchange: exchange.headers.get("authorization") != f"Bearer {TOKEN}", Status(401))
            block = block.replace(url, await servers.enter_async_context(open_loopback(backend)))
        program = tmp_path / "test_block.py"
        program.write_text(block, encoding="utf-8")
        under_pytest = ["-m", "pytest", "-q"] if "def test_" in block else []
        with trio.fail_after(PATIENCE):
            done = await trio.run_process(
                [sys.executable, "-W", "error", *under_pytest, str(program)],
                cwd=tmp_path,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
    assert 0 == done.returncode, f"{block}\n{done.stdout.decode()}"
