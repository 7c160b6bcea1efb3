"""The two layers of a session: which class implements which interface, what is stored, and what no log shows."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pkgutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import ModuleType
from typing import Protocol

import attrs
import httpx
import pytest
import trio
from support.harness import ALICE, BOB, open_world, slow_backend
from trio.testing import MockClock

import trio_vmcp
from trio_vmcp import (
    Backend,
    BackendConnector,
    DefaultSession,
    DefaultSessionFactory,
    FactorySettings,
    Identity,
    LocalStorage,
    Session,
    SessionFactory,
    SessionMetadata,
    Storage,
    TransportSession,
    VmcpError,
    metadata_to_json,
    open_session_factory,
)
from trio_vmcp._client.built_in import BuiltInConnector
from trio_vmcp.testing import CONNECT, Disconnect, Error, Hang, Refuse, ScriptedBackend, Status

CANARY = "canary-8d1f"


# Interfaces


def accept_session(session: Session) -> TransportSession:
    """For the type checker: a `Session` is a `TransportSession`."""
    return session


def accept_all(
    session: DefaultSession, factory: DefaultSessionFactory, local: LocalStorage, http: BuiltInConnector
) -> tuple[Session, SessionFactory, Storage, BackendConnector]:
    """For the type checker: what implements what."""
    return session, factory, local, http


def members(protocol: type) -> set[str]:
    """The public names that a protocol and its bases ask for."""
    own = (base for base in protocol.__mro__ if getattr(base, "_is_protocol", False) and base is not Protocol)
    return {name for base in own for name in vars(base) if not name.startswith("_")}


def test_default_session_implements_both_interfaces() -> None:
    """Every name, with the same parameters and in the class itself; what is not a method is a read-only property."""
    assert {"id", "created_at", "updated_at", "metadata"} == members(TransportSession)
    assert members(TransportSession) < members(Session)
    assert members(Session) == {name for name in vars(DefaultSession) if not name.startswith("_")}
    for name in members(Session):
        declared, made = getattr(Session, name), getattr(DefaultSession, name)
        if isinstance(declared, property):
            assert isinstance(made, property)
            assert made.fset is None
        else:
            assert inspect.signature(declared).parameters == inspect.signature(made).parameters
            assert inspect.iscoroutinefunction(declared) == inspect.iscoroutinefunction(made)
    assert issubclass(DefaultSession, trio.abc.AsyncResource)


@pytest.mark.parametrize(
    ("interface", "implementation"),
    [(Session, DefaultSession), (SessionFactory, DefaultSessionFactory), (Storage, LocalStorage)],
)
def test_help_shows_what_the_interface_promises(interface: type, implementation: type) -> None:
    """`help(session.call_tool)` and an editor's tooltip find the docstring of the interface, for every member."""
    for name in members(interface):
        declared = inspect.getdoc(getattr(interface, name))
        assert declared, name
        assert declared == inspect.getdoc(getattr(implementation, name)), name


async def test_properties_cannot_be_set() -> None:
    """A caller changes a session by closing it, and in no other way."""
    async with open_session_factory() as factory, factory.open_session([]) as session:
        for holder in (session, session.as_caller(None)):
            for name in members(Session):
                if isinstance(getattr(Session, name), property):
                    with pytest.raises(AttributeError):
                        setattr(holder, name, None)


async def test_a_view_shows_the_session(autojump_clock: MockClock) -> None:
    """Every property of a view is the session's own."""
    async with open_world({"a": slow_backend()}) as world, world.open_session(identity=ALICE) as session:
        view = session.as_caller(ALICE)
        for name in members(Session):
            if isinstance(getattr(Session, name), property):
                assert getattr(session, name) == getattr(view, name)


def modules() -> Iterator[ModuleType]:
    """Every module of the library, but for the command's, which needs an extra."""
    yield trio_vmcp
    for found in pkgutil.walk_packages(trio_vmcp.__path__, "trio_vmcp."):
        if not found.name.endswith(("._rich_view", ".__main__")):
            yield importlib.import_module(found.name)


def test_exports_equal_all() -> None:
    """`__all__` names what is there and public, and a package offers nothing that it does not name."""
    for module in modules():
        named = getattr(module, "__all__", None)
        assert named is not None, module.__name__
        assert len(named) == len(set(named)), module.__name__
        assert [] == [name for name in named if not hasattr(module, name)], module.__name__  # some are loaded late
    offered = {
        name
        for name, value in vars(trio_vmcp).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert offered == {*trio_vmcp.__all__}


def test_the_contracts_names_are_importable() -> None:
    """Every name of the design, from the package itself."""
    names = """open_session_factory SessionFactory Session TransportSession DefaultSession SessionState SessionChange
        FactorySettings Backend Identity BackendFailure FailureReason NameConflict Tool Resource ResourceTemplate Prompt
        ToolResult ResourceResult PromptResult CompletionResult BackendConnector BackendClient ClientHandlers
        ServerRequest OutgoingAuth Storage LocalStorage SessionMetadata BackendRecord metadata_to_json
        metadata_from_json RoutingTable Target Prefix Bare Priority Manual VmcpError SessionClosed SessionNotFound
        SessionExists InvalidSessionId SessionLimitReached NoBackends CapabilityNotFound ToolNotFound ResourceNotFound
        PromptNotFound NotAuthorized NilCaller UnauthorizedCaller StorageError MetadataConflict BackendError
        BackendUnavailable BackendTimeout BackendProtocolError BackendRejected BackendUnauthorized MessageTooLarge"""
    assert set(names.split()) <= {*trio_vmcp.__all__}


# Metadata holds no runtime


def leaves(value: object, path: str = "$") -> Iterator[tuple[str, object]]:
    """Everything reachable from a value, with the path to it."""
    if attrs.has(kind := type(value)):
        for name in attrs.fields_dict(kind):
            yield from leaves(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(key, f"{path}.key")
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


async def test_what_is_stored_is_plain_data(autojump_clock: MockClock) -> None:
    """The object graph of the metadata, and its bytes, hold no client, routing table, token or function."""

    def configure(backend: Backend) -> Backend:
        return attrs.evolve(
            backend, headers={"Authorization": f"Bearer {CANARY}-header"}, url=f"{backend.url}?{CANARY}"
        )

    identity = Identity(issuer=f"{CANARY}-issuer", subject=f"{CANARY}-subject", token=f"{CANARY}-token")
    backends = {"a": slow_backend(), "b": slow_backend(era="modern")}
    async with open_world(backends, configure=configure) as world:
        async with world.open_session(identity=identity) as session:
            await session.call_tool("a_echo", caller=identity)
            (stored,) = await world.storage.rows()
            assert stored == session.metadata
            plain = (str, int, float, bool, type(None), datetime)
            assert [] == [(path, value) for path, value in leaves(stored) if type(value) not in plain]
            kinds = {type(stored), *map(type, stored.backends)}
            assert {SessionMetadata, trio_vmcp.BackendRecord} == kinds
            data = metadata_to_json(stored)
            assert CANARY.encode() not in data
            secrets = {record.session_id for record in stored.backends} - {None}
            assert {"scripted-session-1"} == secrets  # the one bearer token that a restore needs, in its one field
            assert 1 == data.count(b"scripted-session-1")
            assert {"schema_version", *(f.name for f in attrs.fields(SessionMetadata))} == {*json.loads(data)}
            for text in (repr(stored), str(stored), repr(session), repr(session.as_caller(identity))):
                assert "scripted-session-1" not in text
                assert session.id not in text


async def test_timestamps_are_wall_time_in_utc(autojump_clock: MockClock) -> None:
    """For people to read: no deadline depends on them."""
    begun = datetime.now(UTC)
    async with open_session_factory() as factory, factory.open_session([]) as session:
        assert begun <= session.created_at <= session.updated_at <= datetime.now(UTC)
        assert (session.metadata.created_at, session.metadata.updated_at) == (session.created_at, session.updated_at)


async def test_a_repr_shows_tag_state_and_counts(autojump_clock: MockClock) -> None:
    """The tag, the state, how many backends and calls: no id."""
    async with open_world({"a": slow_backend()}) as world:
        async with world.open_session(session_id="one") as session:
            assert repr(session).endswith(" open, 1 backends, 0 in flight>")
            assert "one" not in repr(session).replace("session", "")
        assert " closed, " in repr(session)


# Secrets


def secretive_backend() -> ScriptedBackend:
    """Its session ids, which begin with its name, hold the canary."""
    backend = ScriptedBackend(name=f"{CANARY}-sid", server_info={"name": "server", "version": "1"})
    backend.add_tool("echo")
    return backend


FAULTS: dict[str, Callable[[ScriptedBackend], object]] = {
    "none": lambda backend: None,
    "refused": lambda backend: backend.fail(CONNECT, Refuse()),
    "unauthorized": lambda backend: backend.fail("initialize", Status(401)),
    "cut": lambda backend: backend.fail("initialize", Disconnect(60)),
    "hang": lambda backend: backend.fail("tools/list", Hang()),
    "rejected": lambda backend: backend.fail("tools/list", Error(-32603, "no")),
    "call rejected": lambda backend: backend.fail("tools/call", Error(-32603, "no")),
    "call cut": lambda backend: backend.fail("tools/call", Disconnect(60)),
    "call hangs": lambda backend: backend.fail("tools/call", Hang()),
    "elsewhere": lambda backend: backend.fail("POST", Status(307, headers={"location": f"http://b.test/{CANARY}"})),
    "goodbye hangs": lambda backend: backend.fail("DELETE", Hang()),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_logs_errors_and_reprs_hold_no_secret(
    fault: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Headers, userinfo, query, tokens, session ids: in no log record at DEBUG, no traceback and no repr."""

    def configure(backend: Backend) -> Backend:
        return attrs.evolve(
            backend,
            url=f"http://user:{CANARY}-userinfo@a.test/mcp?key={CANARY}-query",
            headers={"X-Api-Key": f"{CANARY}-header"},
        )

    def auth(backend: Backend, identity: Identity | None) -> httpx.Auth | None:
        return httpx.BasicAuth("user", identity.token) if identity else None

    identity = Identity(issuer="https://issuer.test", subject="alice", token=f"{CANARY}-token")
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    settings = FactorySettings(identity_keys=(f"{CANARY}-key".encode(),))
    async with open_world({"a": secretive_backend()}, configure=configure, auth=auth, settings=settings) as world:
        FAULTS[fault](world["a"])
        world.leaves_sessions = True
        async with world.open_session(identity=identity, session_id=f"{CANARY}-own") as session:
            texts += [repr(session), repr(session.failures), repr(session.metadata), repr(session.tools)]
            for caller in (identity, BOB, None):
                try:
                    result = await session.call_tool("a_echo", caller=caller, timeout=3)
                    texts.append(repr(result))
                except VmcpError as error:
                    texts += [str(error), repr(error), *traceback.format_exception(error)]
            with pytest.raises(trio_vmcp.SessionExists) as exists:
                await world.make_session(session_id=session.id)
            texts += [*traceback.format_exception(exists.value)]
        with pytest.raises(trio_vmcp.SessionNotFound) as missing:
            await world.factory.restore_session(f"{CANARY}-own", world.configured, identity=identity)
        texts += [*traceback.format_exception(missing.value), repr(world.factory), repr(world.configured)]
    texts += [record.getMessage() for record in caplog.records if record.name.startswith("trio_vmcp")]
    assert [] == [text for text in texts if CANARY in text]
    assert [] != texts
