"""Clients by other authors: how each is made to list everything and to ask for some things, and what it prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import attrs
import trio
from interop.fleet import BOTH, HERE, LEGACY, Era, homes
from interop.views import PATIENCE

from trio_vmcp import JSON

__all__ = ["CLIENTS", "ForeignClient", "without_ours"]

SERVER_INFO = "io.modelcontextprotocol/serverInfo"
ADDED = ("resultType", "ttlMs", "cacheScope")


@attrs.frozen(kw_only=True)
class ForeignClient:
    """One client.

    Attributes:
        command: With `{homes}`, `{here}` and `{target}` filled in. Calls come by stdin, the view goes to stdout.
        eras: What it speaks, the newest last. A client of both probes.
        asks: The methods that it can call.
        tells_all_progress: False: it loses notifications that arrive together with the response, since it calls
            handlers a moment later, when the response has ended the request.
        answers_forms: It answers elicitation with the name "Ada".
        most_of_each: How often it is made to call one; None: as often as there are calls.
    """

    name: str
    command: tuple[str, ...]
    eras: tuple[Era, ...] = LEGACY
    asks: tuple[str, ...] = ("tools/call", "resources/read", "prompts/get", "completion/complete")
    tells_all_progress: bool = True
    answers_forms: bool = False
    most_of_each: int | None = None

    async def look_at(self, target: str, calls: Sequence[JSON], **environment: str) -> JSON:
        """All lists of the server and the answers to these calls.

        Args:
            target: The url of the server, or the command that runs it, as an array of JSON.
            environment: What is added to that of this process.
        """
        command = [part.format(homes=homes(), here=HERE / "clients", target=target) for part in self.command]
        with trio.fail_after(PATIENCE):
            done = await trio.run_process(
                command,
                stdin=json.dumps(list(calls)).encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=os.environ | environment,
            )
        assert 0 == done.returncode, f"{self.name}: {(done.stderr or b'').decode()[-4000:]}"
        view: JSON = json.loads(done.stdout)
        return view


FASTMCP = ("{homes}/fastmcp/bin/python", "{here}/fastmcp_client.py", "{target}")
MCP2 = ("{homes}/mcp2/bin/python", "{here}/mcp2.py", "{target}")
MODULES = "{homes}/node-clients"
TYPESCRIPT = (MODULES + "/node_modules/.bin/node", "{here}/typescript.mjs", MODULES, "{target}")
CLIENTS = (
    ForeignClient(name="mcp2-auto", command=(*MCP2, "modern"), eras=BOTH, answers_forms=True),
    ForeignClient(name="mcp2-legacy", command=(*MCP2, "legacy")),
    ForeignClient(name="mcp1", command=("{homes}/mcp1/bin/python", "{here}/mcp1.py", "{target}")),
    ForeignClient(name="fastmcp", command=FASTMCP, eras=BOTH),
    ForeignClient(name="typescript2-auto", command=(*TYPESCRIPT, "auto"), eras=BOTH, tells_all_progress=False),
    ForeignClient(name="typescript2-legacy", command=(*TYPESCRIPT, "legacy"), tells_all_progress=False),
    ForeignClient(name="typescript1", command=(*TYPESCRIPT, "1"), tells_all_progress=False),
    ForeignClient(
        name="inspector",
        command=(sys.executable, "{here}/inspector.py", MODULES, "{target}"),
        asks=("tools/call", "resources/read", "prompts/get"),
        most_of_each=1,
    ),
)


def without_ours(answer: JSON) -> JSON:
    """An answer without what the front, or a server of the stateless era, adds to a result; and without progress."""
    left = {key: value for key, value in answer.items() if key not in (*ADDED, "_meta", "progress")}
    meta = {key: value for key, value in answer.get("_meta", {}).items() if key != SERVER_INFO}
    return left | {"_meta": meta} if meta else left
