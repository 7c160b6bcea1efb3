"""Headers and bearer tokens from the user: which are refused, what is sent, and that no secret is shown."""

from __future__ import annotations

import traceback
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clients import ALICE, BOB, call, echo_backend, open_client
from trio.testing import MockClock

from trio_vmcp import Backend, BackendUnauthorized, BearerAuth, HeaderAuth, Identity, OutgoingAuth, PerBackend

BACKEND = Backend(id="b", url="http://b.test/mcp")


def signed(auth: OutgoingAuth, identity: Identity | None = None, **headers: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request with these credentials, without those of its host."""
    request = httpx.Request("GET", "http://b.test", headers=headers)
    kind = auth(BACKEND, identity)
    if kind is not None:
        request = next(kind.sync_auth_flow(request))
    return [pair for pair in request.headers.raw if pair[0] != b"Host"]


def test_headers_are_sent_as_given() -> None:
    """Latin-1 is sent as Latin-1; a header of the same name, in any case, is replaced."""
    auth = HeaderAuth({"X-Key": "k", "authorization": "Basic é", "X-Empty": ""})
    replaced = signed(auth, Authorization="Bearer theirs", other="o")
    assert [(b"other", b"o"), (b"X-Key", b"k"), (b"authorization", b"Basic \xe9"), (b"X-Empty", b"")] == replaced


def test_headers_may_depend_on_the_caller() -> None:
    """A function that returns None leaves its header out."""
    auth = HeaderAuth({"X-User": lambda backend, identity: f"{backend.id}/{identity.subject}" if identity else None})
    assert [(b"X-User", b"b/alice")] == signed(auth, ALICE)
    assert auth(BACKEND, None) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Mcp-Session-Id", "is the protocol's own"),
        ("MCP-Protocol-Version", "is the protocol's own"),
        ("mcp-method", "is the protocol's own"),
        ("Mcp-Param-Region", "is the protocol's own"),
        ("Host", "is the protocol's own"),
        ("content-length", "is the protocol's own"),
        ("Accept", "is the protocol's own"),
        ("Last-Event-ID", "is the protocol's own"),
        ("Connection", "belongs to the connection"),
        ("Transfer-Encoding", "belongs to the connection"),
        ("Proxy-Authorization", "belongs to the connection"),
        ("TE", "belongs to the connection"),
        ("Upgrade", "belongs to the connection"),
        ("", "is not an RFC 9110 token"),
        ("X Key", "is not an RFC 9110 token"),
        ("X-Key:", "is not an RFC 9110 token"),
        ("X-Ké", "is not an RFC 9110 token"),
        ("X-Key\r\nHost", "is not an RFC 9110 token"),
    ],
)
def test_names_that_are_not_the_users_are_refused_at_construction(name: str, problem: str) -> None:
    """Also if the value comes from a function."""
    for value in ("v", lambda backend, identity: "v"):
        with pytest.raises(ValueError, match=problem) as caught:
            HeaderAuth({name: value})
        assert repr(name) in str(caught.value)


def test_one_header_is_given_once() -> None:
    """Names that differ in case only are one header."""
    with pytest.raises(ValueError, match="header 'x-key' is there twice"):
        HeaderAuth({"X-Key": "1", "x-key": "2"})


BAD_VALUES = [
    ("CANARY\r", "control character"),
    ("CANARY\nHost: x", "control character"),
    ("CANARY\0", "control character"),
    ("CANARY\x7f", "control character"),
    ("CANARY€", "beyond Latin-1"),
    ("CANARY\ud800", "beyond Latin-1"),
    (" CANARY", "blank at its edge"),
    ("CANARY\t", "blank at its edge"),
    (b"CANARY", "is bytes, not str"),
    (7, "is int, not str"),
]


@pytest.mark.parametrize(("value", "problem"), BAD_VALUES)
def test_values_that_http_cannot_carry_are_refused_and_not_shown(value: Any, problem: str) -> None:
    """At construction; for a function's value when it is returned, as a failure of this backend alone."""
    with pytest.raises(ValueError, match=f"header 'X-Key' .*{problem}") as static:
        HeaderAuth({"X-Key": value})
    with pytest.raises(BackendUnauthorized, match=f"backend 'b' cannot be asked: header 'X-Key' .*{problem}") as late:
        HeaderAuth({"X-Key": lambda backend, identity: value})(BACKEND, None)
    assert "CANARY" not in "".join(traceback.format_exception(static.value) + traceback.format_exception(late.value))


@given(st.text(max_size=8))
def test_a_value_is_sent_whole_or_refused(value: str) -> None:
    """Whatever the text, no header ends early and no other header appears."""
    try:
        auth = HeaderAuth({"X-Key": value})
    except ValueError:
        return
    ((_, carried),) = signed(auth)
    assert value == carried.decode("latin-1")
    assert value == value.strip()
    assert not set(value) & set("\r\n\0")


def test_a_bearer_token_is_one_text_or_that_of_the_caller() -> None:
    """An empty token from a function sends nothing, since an identity may have none."""
    own = BearerAuth(lambda backend, identity: identity.token if identity else None)
    assert [(b"Authorization", b"Bearer bob-token")] == signed(own, BOB)
    assert [(b"Authorization", b"Bearer static")] == signed(BearerAuth("static"), BOB, authorization="Basic x")
    assert own(BACKEND, None) is None
    assert own(BACKEND, Identity(issuer="i", subject="s")) is None


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("CANARY CANARY", "is not visible ASCII"),
        ("CANARY\n", "is not visible ASCII"),
        ("CANARYé", "is not visible ASCII"),
        (b"CANARY", "is bytes, not str"),
    ],
)
def test_a_token_that_is_none_is_refused_and_not_shown(token: Any, problem: str) -> None:
    """At construction, or when a function returns it."""
    with pytest.raises(ValueError, match=f"bearer token {problem}") as static:
        BearerAuth(token)
    with pytest.raises(BackendUnauthorized, match=f"backend 'b' cannot be asked: its bearer token {problem}") as late:
        BearerAuth(lambda backend, identity: token)(BACKEND, None)
    assert "CANARY" not in "".join(traceback.format_exception(static.value) + traceback.format_exception(late.value))
    with pytest.raises(ValueError, match="bearer token is empty"):
        BearerAuth("")


def test_a_backend_that_is_not_named_gets_nothing() -> None:
    """Each backend has its own credentials; a backend that is not named has none."""
    auth = PerBackend({"b": BearerAuth("b-token"), "c": BearerAuth("c-token")})
    assert [(b"Authorization", b"Bearer b-token")] == signed(auth)
    assert auth(Backend(id="other", url="http://b.test/mcp"), ALICE) is None


def test_what_is_given_cannot_change_behind_ones_back() -> None:
    """The mapping is copied, so that a later change cannot bypass the checks."""
    headers = {"X-Key": "k"}
    auth = HeaderAuth(headers)
    headers["Host"] = "elsewhere"
    assert [(b"X-Key", b"k")] == signed(auth)


def test_no_repr_shows_a_secret() -> None:
    """A repr shows names only."""
    headers = HeaderAuth({"X-Key": "CANARY"})
    assert "HeaderAuth(headers={'X-Key': …})" == repr(headers)
    assert "BearerAuth()" == repr(BearerAuth("CANARY"))
    assert "PerBackend(by_id={'b': …})" == repr(PerBackend({"b": BearerAuth("CANARY")}))
    assert "CANARY" not in repr(headers(BACKEND, None))


async def test_they_go_with_every_request(autojump_clock: MockClock) -> None:
    """The opener's credentials are sent with the handshake and DELETE, the caller's with calls."""
    backend = echo_backend()
    auth = HeaderAuth({"X-User": lambda backend, identity: identity.subject if identity else "nobody"})
    async with open_client(backend, identity=ALICE, auth=auth) as client:
        await call(client, identity=BOB)
    users = [(e.method or e.verb, e.headers["x-user"]) for e in backend.exchanges]
    assert [("tools/call", "bob")] == [user for user in users if user[1] != "alice"]
    assert {"initialize", "notifications/initialized", "tools/call", "DELETE"} == {method for method, _ in users}
