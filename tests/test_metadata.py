"""The stored metadata of a session: plain data, which is read back whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import traceback
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.stored import METADATA, RECORD, plain_leaves

from trio_vmcp import metadata as metadata_module
from trio_vmcp.errors import StorageError
from trio_vmcp.identity import Identity, bind
from trio_vmcp.metadata import (
    MAX_METADATA_BYTES,
    SCHEMA_VERSION,
    BackendRecord,
    SessionMetadata,
    UnreadableMetadata,
    endpoint_digest,
    metadata_from_json,
    metadata_to_json,
)
from trio_vmcp.models import Backend

ROW = json.loads(metadata_to_json(METADATA))
ADDED = {"used_at", "attributes", "is_loss_untold"}  # rows of earlier versions do not have these fields


def changed(path: str, value: object) -> bytes:
    """A row with another value at a path such as "backends.0.era"."""
    row = json.loads(json.dumps(ROW))
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    target = row
    for part in parents:
        target = target[part]
    target[last] = value
    return json.dumps(row).encode()


def canonical(data: bytes) -> str:
    """The row as sorted JSON text: compared as objects, true, 1 and 1.0 would be equal."""
    return json.dumps(json.loads(data), sort_keys=True)


def refusal(data: bytes) -> str:
    """The error of the reader for a bad row, with its traceback, as a log would show it."""
    with pytest.raises(UnreadableMetadata) as caught:
        metadata_from_json(data)
    assert isinstance(caught.value, StorageError)
    assert caught.value.__context__ is None  # errors of cattrs and json quote values of the row
    return "".join(traceback.format_exception_only(caught.value))


texts = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
instants = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001  # hypothesis wants naive bounds beside `timezones`
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
records = st.builds(
    BackendRecord,
    backend_id=texts,
    session_id=st.none() | texts,
    era=st.sampled_from(["legacy", "modern"]),
    protocol_version=texts,
    server_capabilities=st.dictionaries(texts, json_values, max_size=3),
    endpoint_digest=texts,
    is_loss_untold=st.booleans(),
)
sessions = st.builds(
    SessionMetadata,
    schema_version=st.just(SCHEMA_VERSION),
    session_id=texts,
    created_at=instants,
    updated_at=instants,
    version=st.integers(min_value=0),
    identity_binding=st.none() | texts,
    backends=st.lists(records, max_size=3),
    bindings=st.dictionaries(
        st.sampled_from(["tools", "prompts", "later"]), st.dictionaries(texts, texts, max_size=3), max_size=3
    ),
    used_at=instants,
    attributes=st.dictionaries(texts, texts, max_size=3),
)


@settings(max_examples=50)  # the largest examples of the suite: 50 take about a second
@given(sessions)
def test_what_is_written_is_read_back(session: SessionMetadata) -> None:
    """Metadata that is written and read is equal, microseconds and lone surrogates included."""
    data = metadata_to_json(session)
    again = metadata_from_json(data)
    assert session == again
    assert data == metadata_to_json(again)


def test_the_row_is_pinned() -> None:
    """The stored fields and formats are those of schema 1, which other instances read."""
    assert {
        "schema_version": 1,
        "session_id": "session-secret",
        "created_at": "2026-07-28T12:00:00+00:00",
        "updated_at": "2026-07-28T12:00:00.000001+00:00",
        "version": 3,
        "identity_binding": "v1:binding-secret",
        "backends": [
            {
                "backend_id": "files",
                "session_id": "backend-secret",
                "era": "legacy",
                "protocol_version": "2025-11-25",
                "server_capabilities": {"tools": {"listChanged": True}, "experimental": {"x": [1, 2.5, None]}},
                "endpoint_digest": "ab12",
                "is_loss_untold": False,
            },
            {
                "backend_id": "time",
                "session_id": None,
                "era": "modern",
                "protocol_version": "2025-11-25",
                "server_capabilities": {"tools": {"listChanged": True}, "experimental": {"x": [1, 2.5, None]}},
                "endpoint_digest": "ab12",
                "is_loss_untold": True,
            },
        ],
        "bindings": {"tools": {"files_read": "files"}, "prompts": {}},
        "used_at": "2026-07-28T12:00:00.000002+00:00",
        "attributes": {"tenant": "attribute-secret"},
    } == json.loads(metadata_to_json(METADATA))


def test_metadata_is_plain_data() -> None:
    """Object and bytes hold nothing but data, and no token of an identity."""
    alice = Identity(issuer="https://idp.example", subject="alice", token="token-secret")
    session = attrs.evolve(METADATA, identity_binding=bind(alice, (b"key",)))
    data = metadata_to_json(session)
    for root in (session, metadata_from_json(data), json.loads(data)):
        leaves = [str(leaf) for leaf in plain_leaves(root, SessionMetadata, BackendRecord)]
        assert "session-secret" in leaves  # the walk reached the nested records
        assert [] == [leaf for leaf in leaves if "token-secret" in leaf or "alice" in leaf]


@pytest.mark.parametrize("intruder", [print, Identity(issuer="i", subject="s"), object(), {1}, lambda: None])
def test_the_walk_finds_what_is_not_data(intruder: object) -> None:
    """The walk of this suite fails on a function or a live object at any depth."""
    with pytest.raises(AssertionError, match="is not plain data"):
        list(plain_leaves({"a": ({"b": [intruder]},)}))


@pytest.mark.parametrize(
    "intruder", [print, Identity(issuer="i", subject="s", token="t"), b"bytes", math.nan, math.inf]
)
def test_nothing_but_json_is_written(intruder: object) -> None:
    """A live object in a field that holds any JSON is an error of the writer; it is not converted."""
    record = attrs.evolve(RECORD, server_capabilities={"tools": {"x": intruder}})
    with pytest.raises(StorageError, match="server_capabilities") as caught:
        metadata_to_json(attrs.evolve(METADATA, backends=(record,)))
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_capabilities_nested_without_end_are_not_written() -> None:
    """Capabilities that are nested too deep are a StorageError, not a RecursionError."""
    nested: dict[str, Any] = {}
    for _ in range(200_000):
        nested = {"a": nested}
    record = attrs.evolve(RECORD, server_capabilities=nested)
    with pytest.raises(StorageError, match="nested too deep"):
        metadata_to_json(attrs.evolve(METADATA, backends=(record,)))


def test_a_row_of_another_schema_is_not_written() -> None:
    """A row that this version cannot read is not written."""
    with pytest.raises(StorageError, match="schema_version=2"):
        metadata_to_json(attrs.evolve(METADATA, schema_version=2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", True),
        ("schema_version", -1),
        ("version", 1.0),
        ("session_id", None),
        ("identity_binding", Identity(issuer="i", subject="s")),
        ("created_at", "2026-07-28"),
        ("updated_at", datetime(2026, 7, 28)),  # noqa: DTZ001  # naive, which is what is tested
        ("backends", "ab"),
        ("backends", (ROW,)),
        ("used_at", "2026-07-28"),
        ("attributes", {"secret": 1}),
        ("attributes", [("a", "b")]),
    ],
)
def test_metadata_is_checked_when_it_is_made(field: str, value: Any) -> None:
    """A field of the wrong type fails at construction, not when another process reads the row."""
    with pytest.raises((ValueError, TypeError)):
        attrs.evolve(METADATA, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend_id", 1),
        ("session_id", b"s"),
        ("era", "auto"),
        ("protocol_version", None),
        ("server_capabilities", []),
        ("endpoint_digest", None),
        ("is_loss_untold", None),
    ],
)
def test_a_record_is_checked_when_it_is_made(field: str, value: Any) -> None:
    """A field of a BackendRecord of the wrong type fails at construction."""
    with pytest.raises((ValueError, TypeError)):
        attrs.evolve(RECORD, **{field: value})


def test_instants_are_utc() -> None:
    """A datetime with any offset is kept in UTC."""
    session = attrs.evolve(METADATA, created_at=datetime(2026, 7, 28, 14, tzinfo=timezone(timedelta(hours=2))))
    assert "2026-07-28T12:00:00+00:00" == session.created_at.isoformat()


def test_bindings_are_read_only_and_complete() -> None:
    """A binding cannot be changed in place, and both kinds are always present."""
    tools = {"read": "files"}
    session = attrs.evolve(METADATA, bindings={"tools": tools})
    tools["read"] = "mallory"
    assert {"tools": {"read": "files"}, "prompts": {}} == session.bindings
    with pytest.raises(TypeError):
        session.bindings["tools"]["read"] = "mallory"  # type: ignore[index]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        session.version = 4  # type: ignore[misc]


def test_names_that_are_read_only_are_held_once() -> None:
    """Each write of a row makes its metadata anew, and sessions may have ten thousand names in common."""
    tools = MappingProxyType({"read": "files"})
    session = attrs.evolve(METADATA, bindings={"tools": tools})
    assert tools is session.bindings["tools"]
    assert tools is attrs.evolve(session, version=5).bindings["tools"]


def test_no_repr_shows_a_secret() -> None:
    """Session ids, the backends' too, and the binding stay out of logs."""
    assert "secret" not in repr(METADATA)
    assert "files" in repr(METADATA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", 2),
        ("schema_version", "1"),
        ("schema_version", True),
        ("schema_version", 1.0),
        ("session_id", None),
        ("session_id", 7),
        ("created_at", "2026-07-28T12:00:00"),
        ("created_at", "secret"),
        ("created_at", 1.5),
        ("updated_at", "0001-01-01T00:00:00+05:00"),
        ("version", True),
        ("version", "3"),
        ("version", 3.0),
        ("version", -1),
        ("identity_binding", {"secret": 1}),
        ("backends", ""),
        ("backends", {}),
        ("backends", None),
        ("backends[0]", "secret"),
        ("backends[1]", None),
        ("backends[0].backend_id", ["secret"]),
        ("backends[1].session_id", 1),
        ("backends[0].era", "secret"),
        ("backends[0].era", ["legacy"]),
        ("backends[0].protocol_version", None),
        ("backends[0].server_capabilities", [["tools", "secret"]]),
        ("backends[0].is_loss_untold", "secret"),
        ("backends[1].is_loss_untold", 1),
        ("bindings", []),
        ("bindings", {"tools": {}}),
        ("bindings", {"tools": {}, "prompts": []}),
        ("bindings", {"tools": {"secret": 1}, "prompts": {}}),
        ("used_at", None),
        ("used_at", "2026-07-28T12:00:00"),
        ("attributes", None),
        ("attributes", {"secret": 1}),
        ("attributes", [["secret", "a"]]),
    ],
)
def test_a_field_that_does_not_fit_is_named(path: str, value: object) -> None:
    """Values are not coerced; the error names the field and does not show its value."""
    told = refusal(changed(path.replace("[", ".").replace("]", ""), value))
    assert told.rstrip().endswith(f" @ $.{path}")
    assert "secret" not in told


@pytest.mark.parametrize(
    "path", [*sorted(ROW.keys() - ADDED), *(f"backends.0.{name}" for name in sorted(ROW["backends"][0].keys() - ADDED))]
)
def test_a_missing_field_is_named(path: str) -> None:
    """A field that rows have always had has no default: a row without it is refused."""
    row = json.loads(json.dumps(ROW))
    *parents, name = path.split(".")
    del (row["backends"][0] if parents else row)[name]
    assert refusal(json.dumps(row).encode()).rstrip().endswith(" @ $." + path.replace(".0", "[0]"))


def test_a_row_without_added_fields_is_read() -> None:
    """A row of an earlier version was used when it was written, and has no attributes and no news."""
    row = {name: value for name, value in ROW.items() if name not in ADDED}
    row["backends"] = [{name: value for name, value in each.items() if name not in ADDED} for each in ROW["backends"]]
    session = metadata_from_json(json.dumps(row).encode())
    assert METADATA.updated_at == session.used_at
    assert {} == session.attributes
    assert [False, False] == [record.is_loss_untold for record in session.backends]
    assert session == metadata_from_json(metadata_to_json(session))


@pytest.mark.parametrize("fits", [True, False])
def test_attributes_have_a_size_limit(fits: bool) -> None:
    """16 KiB in UTF-8, keys and values together; one byte more is refused, in a row, too."""
    attributes = {"a": "ä" * (8 * 1024 - 1), "b": "" if fits else "b"}
    if fits:
        session = attrs.evolve(METADATA, attributes=attributes)
        assert attributes == metadata_from_json(metadata_to_json(session)).attributes
    else:
        with pytest.raises(ValueError, match=r"16385 bytes, more than 16384 \(MAX_ATTRIBUTES_BYTES\)"):
            attrs.evolve(METADATA, attributes=attributes)
        assert refusal(changed("attributes", attributes)).rstrip().endswith(" @ $.attributes")


def test_attributes_are_read_only() -> None:
    """Neither the mapping that was given nor the one that is read changes a session's attributes."""
    given = {"tenant": "a"}
    session = attrs.evolve(METADATA, attributes=given)
    given["tenant"] = "b"
    with pytest.raises(TypeError):
        session.attributes["tenant"] = "b"  # type: ignore[index]
    assert {"tenant": "a"} == session.attributes


@pytest.mark.parametrize(("path", "place"), [("secret", "$"), ("backends.1.secret", "$.backends[1]")])
def test_an_unknown_field_is_refused(path: str, place: str) -> None:
    """A reader that ignored the field would lose it with its next write. The error does not show the field's name."""
    told = refusal(changed(path, "secret"))
    assert told.rstrip().endswith(f"unknown fields @ {place}")
    assert "secret" not in told


def test_every_field_that_does_not_fit_is_named() -> None:
    """One error names all fields of a row that do not fit."""
    told = refusal(changed("version", None).replace(b'"files_read": "files"', b'"files_read": 1'))
    assert "@ $.version" in told
    assert "@ $.bindings" in told


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[1]", id="array"),
        pytest.param(b'"secret"', id="string"),
        pytest.param(metadata_to_json(METADATA)[:-1], id="cut off"),
        pytest.param(metadata_to_json(METADATA) + b"}", id="too much"),
        pytest.param(metadata_to_json(METADATA).replace(b"session-secret", b"\xff"), id="not UTF-8"),
        pytest.param(metadata_to_json(METADATA).replace(b"session-secret", b"\xed\xa0\x80"), id="UTF-8 surrogate"),
        pytest.param(metadata_to_json(METADATA).decode().encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf" + metadata_to_json(METADATA), id="byte order mark"),
        pytest.param(metadata_to_json(METADATA).replace(b"2.5", b"NaN"), id="NaN"),
        pytest.param(metadata_to_json(METADATA).replace(b"2.5", b"-Infinity"), id="Infinity"),
        pytest.param(metadata_to_json(METADATA).replace(b"2.5", b"1e999"), id="1e999"),
        pytest.param(metadata_to_json(METADATA).replace(b"2.5", b"9" * 5000), id="5000 digits"),
        pytest.param(metadata_to_json(METADATA).replace(b"2.5", b"[" * 200_000 + b"]" * 200_000), id="deep arrays"),
        pytest.param(metadata_to_json(METADATA).replace(b"2.5", b'{"a":' * 200_000 + b"1" + b"}" * 200_000), id="deep"),
    ],
)
def test_a_row_that_is_not_json_is_refused(data: bytes) -> None:
    """A row is a JSON object in UTF-8, also where json.loads accepts more or raises another error."""
    told = refusal(data)
    assert told.rstrip().endswith("is not a JSON object in UTF-8 @ $")
    assert "secret" not in told


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@example(b'{"schema_version":1}')
def test_any_bytes_are_metadata_or_an_error(data: bytes) -> None:
    """Reading any bytes gives metadata or raises UnreadableMetadata, a StorageError."""
    refusal(data)


@given(st.sampled_from([*ROW, *(f"backends.0.{name}" for name in ROW["backends"][0]), "bindings.tools"]), json_values)
def test_any_damaged_field_is_metadata_or_an_error(path: str, value: object) -> None:
    """A row with one replaced field is refused, or read and written again without a difference."""
    data = changed(path, value)
    try:
        session = metadata_from_json(data)
    except UnreadableMetadata:
        return
    assert session == metadata_from_json(metadata_to_json(session))
    if not path.endswith("_at"):
        assert canonical(data) == canonical(metadata_to_json(session))


@given(st.integers(0, len(metadata_to_json(METADATA)) - 1), st.binary(max_size=3))
def test_any_damaged_byte_is_metadata_or_an_error(at: int, replacement: bytes) -> None:
    """A flipped, lost or added byte gives other metadata or StorageError, and no other error."""
    data = metadata_to_json(METADATA)
    with contextlib.suppress(UnreadableMetadata):
        metadata_from_json(data[:at] + replacement + data[at + 1 :])


def test_a_row_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the limit is written and read; one byte more is refused both ways, and the error names the limit."""
    data = metadata_to_json(METADATA)
    monkeypatch.setattr(metadata_module, "MAX_METADATA_BYTES", len(data))
    assert METADATA == metadata_from_json(metadata_to_json(METADATA))
    monkeypatch.setattr(metadata_module, "MAX_METADATA_BYTES", len(data) - 1)
    limit = rf"takes {len(data)} bytes, more than {len(data) - 1} \(MAX_METADATA_BYTES\)"
    with pytest.raises(StorageError, match=limit):
        metadata_to_json(METADATA)
    with pytest.raises(UnreadableMetadata, match=limit):
        metadata_from_json(data)


def test_a_large_session_fits() -> None:
    """A session over a hundred backends with a thousand tools each is within the limit."""
    owners = {
        f"backend-{number}_{'tool' * 5}_{tool}": f"backend-{number}" for number in range(100) for tool in range(1000)
    }
    data = metadata_to_json(attrs.evolve(METADATA, bindings={"tools": owners}))
    assert len(data) < MAX_METADATA_BYTES / 2


def test_an_endpoint_is_its_transport_and_url() -> None:
    """Another url or transport is another endpoint, to which a stored session id is not sent; another header is not."""
    backend = Backend(id="a", url="http://a.example/mcp")
    assert hashlib.sha256(b"streamable-http\0http://a.example/mcp").hexdigest() == endpoint_digest(backend)
    others = [
        Backend(id="a", url="http://b.example/mcp"),
        Backend(id="a", url="http://a.example/mcp?x=1"),
        Backend(id="a", url="http://a.example/mcp", transport="sse"),
    ]
    assert 4 == len({endpoint_digest(other) for other in (backend, *others)})
    assert endpoint_digest(backend) == endpoint_digest(attrs.evolve(backend, id="b", headers={"X": "secret"}))


def test_a_process_is_its_command_line() -> None:
    """The digest covers command line and working directory; from one of the environment secrets could be guessed."""
    backend = Backend(id="a", transport="stdio", command="server", args=["--all"])
    others = [
        attrs.evolve(backend, command="other"),
        attrs.evolve(backend, args=["--", "all"]),
        attrs.evolve(backend, args=[]),
        attrs.evolve(backend, cwd="/srv"),
        Backend(id="a", url="http://a.example/mcp"),
    ]
    assert 6 == len({endpoint_digest(other) for other in (backend, *others)})
    assert endpoint_digest(backend) == endpoint_digest(attrs.evolve(backend, id="b", env={"TOKEN": "secret"}))


def test_any_url_has_a_digest() -> None:
    """A url with a lone surrogate has a digest, too."""
    assert 64 == len(endpoint_digest(Backend(id="a", url="http://a.example/\ud800")))
