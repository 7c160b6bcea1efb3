"""The parts of the command `trio-vmcp`: configuration files, watching a session, showing it, and the demo."""

__all__: list[str] = []
