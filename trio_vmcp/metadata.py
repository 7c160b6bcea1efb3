"""A session's metadata, which may outlive the process, and the one converter between it and JSON.

Plain data only. Nothing in here is a connection, a function or a credential, with one exception: the backends' session
ids, which are bearer tokens. They are stored because a restore needs them, and are hidden from every repr and error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NoReturn

import attrs
import cattrs
from attrs.validators import deep_iterable, in_, instance_of, optional

from trio_vmcp._read_only import Copyable, read_only
from trio_vmcp.errors import StorageError, session_tag
from trio_vmcp.models import JSON, Backend

__all__ = [
    "MAX_ATTRIBUTES_BYTES",
    "MAX_METADATA_BYTES",
    "SCHEMA_VERSION",
    "BackendRecord",
    "SessionMetadata",
    "UnreadableMetadata",
    "checked_attributes",
    "endpoint_digest",
    "metadata_from_json",
    "metadata_to_json",
]

# A field that is added has a default, so that rows without the field stay readable; an older reader refuses a row with
# a field that it does not know, instead of losing the field. A field that is removed or means something else takes the
# next number.
SCHEMA_VERSION = 1
# 100 backends with 1000 tools each take about 5 MiB. A row is read in one step of the loop, so its size needs a limit.
MAX_METADATA_BYTES = 16 * 1024 * 1024
MAX_ATTRIBUTES_BYTES = 16 * 1024  # keys and values in UTF-8

_ROW = "a stored row of metadata"
_BOUND_KINDS = ("tools", "prompts")
_Bindings = Mapping[str, Mapping[str, str]]  # kind → advertised name → backend id


def _read_only(bindings: _Bindings) -> _Bindings:
    """Names that are read-only already are not copied: there may be ten thousand, which sessions hold in common."""
    named = {kind: bindings.get(kind, {}) for kind in (*_BOUND_KINDS, *bindings)}
    return read_only(
        {kind: names if isinstance(names, MappingProxyType) else read_only(names) for kind, names in named.items()}
    )


class UnreadableMetadata(StorageError):
    """The storage gave a row that this release cannot read: it is corrupt, or of another schema. To ask again does not
    help, as it does where the storage is away: to a client the session is as good as unknown.
    """


def _utc(value: datetime) -> datetime:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"{value!r} is not a datetime with an offset")
    return value.astimezone(UTC)


def _count(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or value < 0:  # bool is an int to isinstance, but not to JSON
        raise ValueError(f"{attribute.name}={value!r} is not a whole number, 0 or more")


def checked_attributes(value: Mapping[str, str]) -> Mapping[str, str]:
    """A read-only copy of the attributes of a session.

    Raises:
        ValueError: They are no mapping of str to str, or take over `MAX_ATTRIBUTES_BYTES`.
    """
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise ValueError("attributes is not a mapping of str to str")
    size = sum(len(text.encode("utf-8", "surrogatepass")) for item in value.items() for text in item)
    if size > MAX_ATTRIBUTES_BYTES:
        raise ValueError(f"attributes take {size} bytes, more than {MAX_ATTRIBUTES_BYTES} (MAX_ATTRIBUTES_BYTES)")
    return read_only(value)


@attrs.frozen
class BackendRecord:
    """The part of a session's metadata that is about one backend.

    Attributes:
        session_id: The id that the backend assigned: a bearer token. None if the backend assigned none.
        era: The protocol era of the connection: "legacy" or "modern".
        protocol_version: The negotiated revision of MCP, such as "2025-11-25".
        server_capabilities: The JSON object that the server declared.
        endpoint_digest: `endpoint_digest` of the backend that assigned `session_id`; the id is sent to no other
            endpoint.
        is_loss_untold: An earlier backend session, in which calls ran, is gone, and no result has told so with
            `ToolResult.backend_state_lost`. Written with the next change of the row: an instance that dies in between
            has it told twice rather than never.
    """

    backend_id: str = attrs.field(validator=instance_of(str))
    session_id: str | None = attrs.field(repr=False, validator=optional(instance_of(str)))
    era: Literal["legacy", "modern"] = attrs.field(validator=in_(("legacy", "modern")))
    protocol_version: str = attrs.field(validator=instance_of(str))
    server_capabilities: JSON = attrs.field(hash=False, validator=instance_of(dict))
    endpoint_digest: str = attrs.field(validator=instance_of(str))
    is_loss_untold: bool = attrs.field(default=False, validator=instance_of(bool))


def _in_order(records: Iterable[BackendRecord]) -> tuple[BackendRecord, ...]:
    return tuple(records)


@attrs.frozen
class SessionMetadata(Copyable):
    """A session as its storage knows it.

    Attributes:
        schema_version: `SCHEMA_VERSION`; a row of any other version is refused.
        session_id: A bearer token.
        created_at, updated_at: Wall time in UTC, for display; nothing expires by it.
        version: Counts the writes of this row, for compare-and-set.
        identity_binding: The result of `identity.bind`; None: an anonymous session.
        bindings: {"tools": {advertised name: backend id}, "prompts": {…}}; read-only; both are always there. Copied,
            but for a `MappingProxyType` of names, which must not change any more.
        used_at: Wall time in UTC: a mark of use, which each instance that the session is used on sets again and again.
            An instance compares with its own latest mark, never with a clock. As `updated_at` in rows without it.
        attributes: The user's own, read-only; at most `MAX_ATTRIBUTES_BYTES`.

    Raises:
        ValueError, TypeError: Names the field that does not fit.
    """

    schema_version: int = attrs.field(validator=_count)
    session_id: str = attrs.field(repr=False, validator=instance_of(str))
    created_at: datetime = attrs.field(converter=_utc)
    updated_at: datetime = attrs.field(converter=_utc)
    version: int = attrs.field(validator=_count)
    identity_binding: str | None = attrs.field(repr=False, validator=optional(instance_of(str)))
    backends: tuple[BackendRecord, ...] = attrs.field(
        converter=_in_order, validator=deep_iterable(instance_of(BackendRecord))
    )
    bindings: _Bindings = attrs.field(converter=_read_only, hash=False)
    used_at: datetime = attrs.field(default=attrs.Factory(lambda row: row.updated_at, takes_self=True), converter=_utc)
    attributes: Mapping[str, str] = attrs.field(factory=dict, converter=checked_attributes, hash=False, repr=False)


def endpoint_digest(backend: Backend) -> str:
    """A name for an endpoint that does not show it: hex SHA-256 over url or command line, equal in all processes."""
    # A stored backend session id is a bearer token: it is only ever sent to the endpoint that gave it, and the
    # configuration may have changed since. Of a child process the environment is left out: nothing is sent there on the
    # strength of a stored record, and from a stored digest short secrets could be guessed.
    where = backend.url
    if backend.transport == "stdio":
        where = json.dumps([backend.command, *backend.args, backend.cwd])
    return _digest_of(f"{backend.transport}\0{where}")


@lru_cache(maxsize=256)  # sessions of one process have the same backends
def _digest_of(endpoint: str) -> str:
    return hashlib.sha256(endpoint.encode("utf-8", "surrogatepass")).hexdigest()


class _Misfit(ValueError):
    """A value in a row that does not fit. The text says what was expected and never shows the value."""


# No coercion: by default cattrs makes 'None' of null and 7 of "7", and so accepts rows that were never written here.
_converter = cattrs.Converter(forbid_extra_keys=True)


@_converter.register_structure_hook
def _structure_str(raw: object, _: type) -> str:
    if not isinstance(raw, str):
        raise _Misfit("is not a string")
    return raw


@_converter.register_structure_hook
def _structure_int(raw: object, _: type) -> int:
    if type(raw) is not int or raw < 0:  # every int in a row counts something
        raise _Misfit("is not a whole number, 0 or more")
    return raw


@_converter.register_structure_hook
def _structure_bool(raw: object, _: type) -> bool:
    if not isinstance(raw, bool):
        raise _Misfit("is not true or false")
    return raw


@_converter.register_structure_hook
def _structure_datetime(raw: object, _: type) -> datetime:
    try:
        return _utc(datetime.fromisoformat(_structure_str(raw, str)))
    except (ValueError, OverflowError):  # OverflowError: an offset that leads out of the years 1-9999
        raise _Misfit("is not an ISO 8601 date and time with an offset") from None


def _structure_object(raw: object, _: type) -> JSON:
    if not isinstance(raw, dict):
        raise _Misfit("is not an object")
    return raw


def _structure_bindings(raw: object, _: type) -> _Bindings:
    kinds = _structure_object(raw, dict)
    if not all(kind in kinds for kind in _BOUND_KINDS):  # without them, names would drift to other backends
        raise _Misfit(f"lacks one of {_BOUND_KINDS}")
    for names in kinds.values():
        if not all(isinstance(owner, str) for owner in _structure_object(names, dict).values()):
            raise _Misfit("binds a name to what is not a string")
    return kinds


def _structure_attributes(raw: object, _: type) -> Mapping[str, str]:
    try:
        return checked_attributes(_structure_object(raw, dict))
    except _Misfit:
        raise
    except ValueError:
        raise _Misfit(f"is not an object of strings of at most {MAX_ATTRIBUTES_BYTES} bytes") from None


def _structure_backends(raw: object, _: type) -> tuple[BackendRecord, ...]:
    if not isinstance(raw, list):  # cattrs takes any iterable, "" and {} among them
        raise _Misfit("is not an array")
    return tuple(_converter.structure(raw, list[BackendRecord]))


def _unstructure_bindings(bindings: _Bindings) -> JSON:
    return {kind: dict(names) for kind, names in bindings.items()}


_converter.register_structure_hook_func(lambda wanted: wanted == JSON, _structure_object)
_converter.register_structure_hook_func(lambda wanted: wanted == _Bindings, _structure_bindings)
_converter.register_structure_hook_func(lambda wanted: wanted == Mapping[str, str], _structure_attributes)
_converter.register_structure_hook_func(lambda wanted: wanted == tuple[BackendRecord, ...], _structure_backends)
_converter.register_unstructure_hook(datetime, datetime.isoformat)
# Passed through: json.dumps refuses what is not JSON, where cattrs would convert an attrs object, secrets included.
_converter.register_unstructure_hook_func(lambda given: given == JSON, lambda capabilities: capabilities)
_converter.register_unstructure_hook_func(lambda given: given == _Bindings, _unstructure_bindings)
_converter.register_unstructure_hook_func(lambda given: given == Mapping[str, str], dict)


def metadata_to_json(metadata: SessionMetadata) -> bytes:
    """Write a row: UTF-8 JSON, at most `MAX_METADATA_BYTES`.

    Raises:
        StorageError: The schema version is not ours, something in it is not JSON, or the row is too large.
    """
    who = f"the metadata of {session_tag(metadata.session_id)}"
    if metadata.schema_version != SCHEMA_VERSION:
        raise StorageError(f"{who} has schema_version={metadata.schema_version!r}; only {SCHEMA_VERSION} is written")
    data = _dump(_converter.unstructure(metadata))
    if data is None:
        raise StorageError(f"{who} holds what is not JSON, or is nested too deep, in server_capabilities or bindings")
    if len(data) > MAX_METADATA_BYTES:
        raise StorageError(f"{who} takes {len(data)} bytes, more than {MAX_METADATA_BYTES} (MAX_METADATA_BYTES)")
    return data


def metadata_from_json(data: bytes) -> SessionMetadata:
    """Read a row, all of it or nothing.

    Fields unknown to this schema are refused, too: a reader that ignored them would drop them with its next write.

    Raises:
        UnreadableMetadata: A StorageError. Names the fields that do not fit, and shows nothing of what they hold.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise UnreadableMetadata(f"{_ROW} takes {len(data)} bytes, more than {MAX_METADATA_BYTES} (MAX_METADATA_BYTES)")
    row = _parse(data)
    if row is None:
        raise UnreadableMetadata(f"{_ROW} is not a JSON object in UTF-8 @ $")
    schema = row.get("schema_version")
    if type(schema) is not int or schema != SCHEMA_VERSION:  # first: in another schema the other fields mean nothing
        raise UnreadableMetadata(f"{_ROW} is not of schema {SCHEMA_VERSION}, the only one read here @ $.schema_version")
    try:
        return _converter.structure(row, SessionMetadata)
    except Exception as exc:  # noqa: BLE001  # cattrs lets a field's own error through, of whatever type
        problems = "; ".join(cattrs.transform_error(exc, format_exception=_describe))
    # Raised outside of the `except`: as __context__, the errors of cattrs would bring the row into tracebacks.
    raise UnreadableMetadata(f"{_ROW} does not fit: {problems}")


def _describe(exc: BaseException, _: type | None) -> str:
    if isinstance(exc, _Misfit):
        return str(exc)
    if isinstance(exc, KeyError):
        return "required field missing"
    if isinstance(exc, cattrs.ForbiddenExtraKeysError):
        return "unknown fields"  # without their names: in a corrupt row even a key may be a secret
    return "does not fit"


def _dump(row: object) -> bytes | None:
    try:
        return json.dumps(row, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        return None


def _parse(data: bytes) -> JSON | None:
    try:
        # Decoded here, strictly: json.loads would guess at UTF-16 and let surrogates pass.
        row = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, or an int of more digits than Python converts
        return None
    return row if isinstance(row, dict) else None


def _refuse(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):  # 1e999: we could not write it again
        raise ValueError("a number too large for a float")
    return value
