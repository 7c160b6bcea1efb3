"""How names are decided: strategies, tables, and what is kept of each backend. Public names are in `routing.py`."""

__all__: list[str] = []
