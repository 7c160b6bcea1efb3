"""The library's front over backends, as a process: `python gateway_library.py URLS`, as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

import trio
from worker import raise_descriptor_limit

from trio_vmcp import Backend, open_session_factory, open_session_manager
from trio_vmcp.serve import serve


async def main(urls: list[str]) -> None:
    backends = [Backend(id=f"b{at}", url=url, listen=False) for at, url in enumerate(urls)]
    async with open_session_factory() as factory, open_session_manager(factory, backends) as manager:
        async with trio.open_nursery() as nursery:
            print(await nursery.start(partial(serve, manager, port=0)), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    raise_descriptor_limit()
    trio.run(main, json.loads(sys.argv[1]))
