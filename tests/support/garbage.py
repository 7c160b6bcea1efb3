"""What only the garbage collector would free: objects in reference cycles."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keeping_garbage"]

OF_MODULES = ("trio_vmcp._session", "trio_vmcp._routing", "trio_vmcp.default_session", "trio_vmcp.serve")
OF_CLIENTS = ("HandshakeClient", "StatelessClient", "Ask", "KnownResults", "Tool")


@contextmanager
def keeping_garbage() -> Iterator[Counter[str]]:
    """Counts, at the end of the block, what only the garbage collector would free of sessions, their lists, clients,
    requests and the front, by type. A channel of lines and the parser of a connection refer to themselves, but to no
    session.
    """
    found: Counter[str] = Counter()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = [(type(each).__module__, type(each).__qualname__) for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        (gc.enable if was_enabled else gc.disable)()
    found.update(f"{module}.{name}" for module, name in kinds if module.startswith(OF_MODULES) or name in OF_CLIENTS)
