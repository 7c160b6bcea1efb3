"""Where metadata lives. Every session goes through `Storage`."""

from trio_vmcp.storage.interface import Storage
from trio_vmcp.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage"]
