"""Scripted MCP backends of either era, faults on demand, and an in-memory network that a mock clock rules.

```python
backend = ScriptedBackend(era="modern", answers="sse")
backend.add_tool("now")
async with open_memory_network() as network:
    url = network.attach("time.test", backend)
    async with open_session_factory(transport=network.transport()) as factory:
        async with factory.open_session([Backend(id="time", url=url)]) as session:
            await session.call_tool("time_now")
assert 1 == backend.executed["now"]
```

`storage_contract` is the suite that a `Storage` of one's own must pass.
"""

from trio_vmcp.testing._storage_contract import storage_contract
from trio_vmcp.testing.backend import ScriptedBackend
from trio_vmcp.testing.catalog import Catalog, ToolHandler, echo
from trio_vmcp.testing.context import CallContext, InputRequired
from trio_vmcp.testing.exchange import Exchange, Outcome
from trio_vmcp.testing.faults import (
    CONNECT,
    Delay,
    Disconnect,
    Drip,
    Error,
    Fault,
    FaultRule,
    Flip,
    Hang,
    Raw,
    Refuse,
    Reset,
    Rewrite,
    Stall,
    Status,
    WireFault,
)
from trio_vmcp.testing.http import Reply, Request, serve_http
from trio_vmcp.testing.loopback import open_loopback, serve_loopback
from trio_vmcp.testing.network import MemoryNetwork, StreamServer, open_memory_network
from trio_vmcp.testing.rpc import LEGACY_VERSIONS, MODERN_VERSION, RpcError
from trio_vmcp.testing.streams import MemoryStream

__all__ = [
    "CONNECT",
    "LEGACY_VERSIONS",
    "MODERN_VERSION",
    "CallContext",
    "Catalog",
    "Delay",
    "Disconnect",
    "Drip",
    "Error",
    "Exchange",
    "Fault",
    "FaultRule",
    "Flip",
    "Hang",
    "InputRequired",
    "MemoryNetwork",
    "MemoryStream",
    "Outcome",
    "Raw",
    "Refuse",
    "Reply",
    "Request",
    "Reset",
    "Rewrite",
    "RpcError",
    "ScriptedBackend",
    "Stall",
    "Status",
    "StreamServer",
    "ToolHandler",
    "WireFault",
    "echo",
    "open_loopback",
    "open_memory_network",
    "serve_http",
    "serve_loopback",
    "storage_contract",
]
