"""Channels to one backend: streamable HTTP, HTTP+SSE, a child process."""

__all__: list[str] = []
