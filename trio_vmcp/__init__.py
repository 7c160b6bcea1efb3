"""One Trio session over many MCP servers.

A map, from the top floor down. Imports never go up (`tests/test_floors.py` has the exact list).

- `cli.py`, `_cli/`: the command `trio-vmcp`: its arguments and file, its requests, what it shows, the demo
- `testing/`: scripted backends, faults and networks for tests; shares no parser with what it tests
- `factory.py`: `open_session_factory`: makes, restores and owns sessions
- `session.py`, `default_session.py`: the interface `Session`, and the object that callers hold
- `_session/`: many backends: opening and closing, admission, names, recovery, retries, the stored row. Map:
  `_session/__init__.py`
- `storage/`, `auth/`, `observers/`: where metadata lives; ready-made credentials; Prometheus and OpenTelemetry, on
  `observe.py`
- `_client/`: one backend: eras, probe, deadlines, subscriptions, questions, cached results. Map: `_client/__init__.py`
- `_client/channels/`, `_client/http/`: streamable HTTP, HTTP+SSE, stdio and processes; credentials, connection limit,
  errors
- `_http/`: HTTP/1.1 on Trio: connections, TLS, proxies, size limits. Knows nothing of MCP
- `connector.py`: the seam: `BackendConnector`, `BackendClient`, `ClientHandlers`
- `_protocol/`: JSON-RPC, the table of MCP methods, revisions, event streams, headers, URI templates: pure functions
- `routing.py`, `_routing/`: how advertised names are made, and which backend each belongs to
- `settings.py`, `metadata.py`, `identity.py`, `models.py`, `errors.py`: limits, stored data, callers, records, errors
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from trio_vmcp._exports import *  # noqa: F403  # type checkers read the names there
    from trio_vmcp._exports import __all__ as __all__
else:
    # The names, and with them all modules, are loaded when the first is used. The command imports this package, too,
    # and has to handle signals before anything that takes long: half a second of imports, in which Ctrl-C would print
    # a traceback.
    def __getattr__(name: str) -> object:
        if not name.startswith("_") or name == "__all__":
            from importlib import import_module  # `from trio_vmcp import …` would ask this function

            exports = import_module("trio_vmcp._exports")
            public = {each: getattr(exports, each) for each in exports.__all__}
            globals().update(public, __all__=exports.__all__)
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
