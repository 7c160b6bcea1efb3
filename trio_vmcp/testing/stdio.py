"""A scripted backend as a process of its own: `python -m trio_vmcp.testing.stdio`, or `serve_stdio` in a script.

```python
backend = ScriptedBackend(era="modern")
backend.add_tool("now", tell_the_time)
trio.run(serve_stdio, backend)
```
"""

from __future__ import annotations

import argparse
import os

import trio

from trio_vmcp.testing.backend import ScriptedBackend

__all__ = ["serve_stdio"]


async def serve_stdio(backend: ScriptedBackend) -> None:
    """Serve this process's stdin and stdout until the client closes them. POSIX only."""
    # Copies: after a close of descriptor 0 or 1, the next file that is opened would become stdin or stdout.
    receive, send = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    await backend.serve_lines(trio.StapledStream(send, receive))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trio_vmcp.testing.stdio", description="An MCP server over stdio.")
    parser.add_argument("--era", choices=["legacy", "modern", "both"], default="both")
    parser.add_argument("tools", metavar="TOOL", nargs="*", default=["echo"], help="tools that answer their arguments")
    options = parser.parse_args()
    backend = ScriptedBackend(name="stdio", era=options.era)
    for tool in options.tools:
        backend.add_tool(tool)
    trio.run(serve_stdio, backend)


if __name__ == "__main__":
    main()
