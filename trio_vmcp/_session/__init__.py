"""Many backends: one session over them."""

__all__: list[str] = []
