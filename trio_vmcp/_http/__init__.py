"""HTTP/1.1 on Trio. Knows no MCP."""

__all__: list[str] = []
