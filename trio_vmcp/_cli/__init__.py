"""What the command `trio-vmcp` is made of: configuration files, watching a session, showing it, and the demo."""

__all__: list[str] = []
