"""One backend: the built-in connector and its clients."""

__all__: list[str] = []
