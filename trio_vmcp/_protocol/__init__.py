"""The protocol as pure functions, in both directions: messages, event streams, headers, URI templates."""

__all__: list[str] = []
