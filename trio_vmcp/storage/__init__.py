"""Storages for the metadata of sessions. A session knows the interface `Storage` only."""

from trio_vmcp.storage.interface import NotifyingStorage, Storage
from trio_vmcp.storage.local import LocalStorage

__all__ = ["LocalStorage", "NotifyingStorage", "Storage"]
