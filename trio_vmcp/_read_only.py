"""Read-only mappings in frozen records, and records with such mappings that can be pickled and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

__all__ = ["Copyable", "read_only"]


def read_only(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A copy that its holder cannot change."""
    return MappingProxyType(dict(mapping)) if mapping else _EMPTY


_EMPTY: Mapping[Any, Any] = MappingProxyType({})  # most are: many sessions have many of them


class Copyable:
    """The base of frozen records that hold read-only mappings, which `pickle` and `copy` refuse.

    Such a record is made anew from its fields, and so is checked anew. A field that does not count for `==` takes its
    default: it follows from the others.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        fields = attrs.fields(type(self))  # type: ignore[arg-type]  # every subclass is an attrs class
        return _build, (
            type(self),
            {field.alias: _plain(getattr(self, field.name)) for field in fields if field.init and field.eq},
        )


def _build(kind: Callable[..., Any], fields: dict[str, Any]) -> Any:
    return kind(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
