"""A session's metadata for tests, and the walk that proves a stored object to be plain data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import attrs

from trio_vmcp import LocalStorage
from trio_vmcp.metadata import SCHEMA_VERSION, BackendRecord, SessionMetadata

NOON = datetime(2026, 7, 28, 12, 0, tzinfo=UTC)


RECORD = BackendRecord(
    backend_id="files",
    session_id="backend-secret",
    era="legacy",
    protocol_version="2025-11-25",
    server_capabilities={"tools": {"listChanged": True}, "experimental": {"x": [1, 2.5, None]}},
    endpoint_digest="ab12",
)


METADATA = SessionMetadata(
    schema_version=SCHEMA_VERSION,
    session_id="session-secret",
    created_at=NOON,
    updated_at=NOON + timedelta(microseconds=1),
    version=3,
    identity_binding="v1:binding-secret",
    backends=(RECORD, attrs.evolve(RECORD, backend_id="time", session_id=None, era="modern", is_loss_untold=True)),
    bindings={"tools": {"files_read": "files"}, "prompts": {}},
    used_at=NOON + timedelta(microseconds=2),
    attributes={"tenant": "attribute-secret"},
)


@asynccontextmanager
async def open_local_storage(ttl: float) -> AsyncIterator[LocalStorage]:
    yield LocalStorage(ttl)


PLAIN = {str, int, float, bool, bytes, type(None), datetime}


CONTAINERS = {dict, OrderedDict, MappingProxyType, list, tuple}


def plain_leaves(root: Any, *classes: type[attrs.AttrsInstance]) -> Iterator[object]:
    """The plain values that `root` leads to; fails on anything else that is not data.

    Args:
        classes: The attrs classes that may occur. Exact types throughout: a subclass may carry anything.
    """
    if type(root) in PLAIN:
        yield root
    elif type(root) in classes:
        for field in attrs.fields(type(root)):
            yield from plain_leaves(getattr(root, field.name), *classes)
    else:
        assert type(root) in CONTAINERS, f"{type(root).__qualname__} is not plain data"
        for part in (*root.keys(), *root.values()) if isinstance(root, Mapping) else root:
            yield from plain_leaves(part, *classes)
