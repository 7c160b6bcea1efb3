"""MCP on paper: messages, streams, headers and methods, in both directions. Pure: no I/O, no Trio."""

__all__: list[str] = []
