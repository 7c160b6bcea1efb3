"""What the front says of itself."""

from importlib.metadata import version

from trio_vmcp.models import JSON

__all__ = ["SERVER_INFO"]

SERVER_INFO: JSON = {"name": "trio-vmcp", "version": version("trio-vmcp")}
