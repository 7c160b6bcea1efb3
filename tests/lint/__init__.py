"""Checks of the text, not of what it does: a part of `nox -s lint`."""
