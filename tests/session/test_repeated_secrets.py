"""A backend repeats what it was given: no log record, error, failure, status or event shows it, whatever it stands in.

The canary stands in headers, tokens, the userinfo and query of the url, environments, command lines, ids of backend
sessions and arguments of calls. An argument may stand in the error of its own call, which goes to its caller.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import attrs
import pytest
import trio
from support.channels import CHANNELS, COMMAND, URL, Channel
from support.endpoint import Endpoint, open_endpoint
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import JSON, Backend, BearerAuth, ClientHandlers, Identity, ServerRequest, Session, VmcpError
from trio_vmcp.observe import Event
from trio_vmcp.testing import CallContext, Error, Rewrite, ScriptedBackend, Status

CANARY = "CANARY"
OWNER = Identity(issuer="https://issuer.test", subject="alice", token=f"{CANARY}-token")
ARGUMENT = f"{CANARY}-argument"


@attrs.define
class Events:
    """An observer."""

    seen: list[str] = attrs.field(factory=list)

    def on_event(self, event: Event) -> None:
        self.seen.append(repr(event))


@attrs.frozen
class Place:
    """Where a backend repeats what it was given.

    Attributes:
        strike: Prepares the backend; `said` holds all secrets.
        fits: Whether the channel has such a place.
        asks: A method of a session with its arguments, to be called then.
        at_opening: The backend does so while it is connected.
    """

    strike: Callable[[Endpoint, ScriptedBackend, str], None]
    fits: Callable[[Channel], bool] = lambda channel: True
    asks: tuple[Any, ...] = ("call_tool", "b_echo", {"password": ARGUMENT})
    at_opening: bool = False


def failing(method: str | None, make: Callable[[str], Any]) -> Callable[[Endpoint, ScriptedBackend, str], None]:
    def strike(endpoint: Endpoint, backend: ScriptedBackend, said: str) -> None:
        if method is None:
            endpoint.fail(OWNER, make(said))
        else:
            backend.fail(method, make(said))

    return strike


def call_answered(code: int, *, body: str = "", **headers: str) -> Callable[[Endpoint, ScriptedBackend, str], None]:
    """A call is answered with this HTTP status. In body and headers, "%" stands for the secrets; in a location, as HTTP
    can carry them.
    """

    def make(said: str) -> Status:
        filled = {
            name.replace("_", "-"): value.replace("%", quote(said) if name == "location" else said)
            for name, value in headers.items()
        }
        return Status(code, body.replace("%", said).encode(), filled)

    return failing("tools/call", make)


def answer_elsewhere(endpoint: Endpoint, backend: ScriptedBackend, said: str) -> None:
    """The error comes by the stream for messages outside of requests, before the response has begun."""

    async def elsewhere(arguments: JSON, context: CallContext) -> str:
        error = {"code": -32603, "message": said}
        backend.send({"jsonrpc": "2.0", "id": context.exchange.request_id, "error": error})
        await trio.sleep_forever()
        raise AssertionError

    backend.add_tool("echo", elsewhere)


def ask_back(endpoint: Endpoint, backend: ScriptedBackend, said: str) -> None:
    async def curious(arguments: JSON, context: CallContext) -> str:
        return str(await context.request(said, {}))

    backend.add_tool("echo", curious)


def offer_badly(endpoint: Endpoint, backend: ScriptedBackend, said: str) -> None:
    backend.add_tool(said[:120], inputSchema={"type": "object", "properties": {"x": {"x-mcp-header": "not a name"}}})


def with_version(version: str) -> Rewrite:
    return Rewrite(lambda response: response | {"result": response["result"] | {"protocolVersion": version}})


def stream_of_error(said: str) -> Status:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": said}}
    return Status(200, f"data: {json.dumps(error)}\n\n".encode(), {"content-type": "text/event-stream"})


def over_http(channel: Channel) -> bool:
    return channel.transport != "stdio"


def streamable(channel: Channel) -> bool:
    return channel.transport == "streamable-http"


PLACES: dict[str, Place] = {
    "error of a call": Place(failing("tools/call", lambda said: Error(-32603, said))),
    "refusal of a call": Place(failing("tools/call", lambda said: Error(-32603, said, status=500)), over_http),
    "page": Place(call_answered(500, body="<html>%</html>"), over_http),
    "text": Place(call_answered(400, body="%", content_type="text/plain"), over_http),
    "challenge": Place(call_answered(401, www_authenticate='Bearer error="%"'), over_http),
    "type": Place(call_answered(200, body="x", content_type="%"), streamable),
    "no JSON": Place(call_answered(200, body="%", content_type="application/json"), streamable),
    "redirect": Place(call_answered(302, location="/%"), over_http),
    "other host": Place(call_answered(307, location=f"http://{CANARY}-token.test/"), over_http),
    "error elsewhere": Place(answer_elsewhere, lambda channel: not channel.is_modern),
    "question": Place(ask_back),
    "refused stream": Place(
        failing("subscriptions/listen", lambda said: Error(-32603, said)),
        lambda channel: channel.is_modern,
        ("subscribe_resource", "file:///x"),
    ),
    "stream that ends in an error": Place(
        failing("subscriptions/listen", stream_of_error),
        lambda channel: channel.is_modern and over_http(channel),
        ("subscribe_resource", "file:///x"),
    ),
    "stream that is no stream": Place(
        failing("subscriptions/listen", lambda said: Status(400, said.encode(), {"content-type": "text/plain"})),
        lambda channel: channel.is_modern and over_http(channel),
        ("subscribe_resource", "file:///x"),
    ),
    "error of a GET": Place(
        failing("GET", lambda said: Status(500, said.encode())), lambda channel: not channel.is_modern, at_opening=True
    ),
    "error of a DELETE": Place(failing("DELETE", lambda said: Status(500, said.encode())), streamable),
    "error of a list": Place(failing("tools/list", lambda said: Error(-32603, said)), at_opening=True),
    "bad tool": Place(offer_badly, lambda channel: channel.is_modern and over_http(channel), at_opening=True),
    "error of the opening": Place(failing(None, lambda said: Error(-32603, said)), at_opening=True),
    "version": Place(
        failing("initialize", with_version),
        lambda channel: not channel.is_modern,
        at_opening=True,
    ),
}
CASES = [(channel, name) for name, place in PLACES.items() for channel in CHANNELS if place.fits(channel)]


def whose(backend: Backend, identity: Identity | None) -> str | None:
    return None if identity is None else identity.token


async def decline(request: ServerRequest) -> JSON:
    return {"action": "decline"}


def configured(endpoint: Endpoint) -> Backend:
    url = URL.replace("http://", f"http://user:{CANARY}-userinfo@") + f"?key={CANARY}-query"
    where: dict[str, Any] = {"url": url, "headers": {"X-Who": OWNER.subject, "X-Api-Key": f"{CANARY}-header"}}
    if endpoint.channel.transport == "stdio":
        env = {"WHO": OWNER.subject, "SECRET": f"{CANARY}-env"}
        where = {"env": env, "args": ("--token", f"{CANARY}-option"), "command": COMMAND}
    return endpoint.configured(OWNER, **where)


def given(endpoint: Endpoint, session: Session | None) -> str:
    """All that the backend was given, in the forms in which a backend may repeat it."""
    kinds = ("env", "option") if endpoint.channel.transport == "stdio" else ("token", "userinfo", "query", "header")
    secrets = [f"{CANARY}-{kind}" for kind in kinds]
    if session is not None:
        secrets += session.backend_sessions.values()
    return " and ".join(secrets)


@pytest.mark.parametrize(("channel", "name"), CASES, ids=str)
async def test_what_a_backend_repeats_is_not_shown(
    channel: Channel, name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The texts of errors, their reprs and tracebacks; the log at DEBUG; failures, states and events of observers."""
    caplog.set_level(logging.DEBUG)
    place, events = PLACES[name], Events()
    texts: list[str] = []
    handlers = ClientHandlers(elicitation=decline)
    async with open_endpoint(channel, handlers=handlers, auth=BearerAuth(whose), observers=[events]) as endpoint:
        backend = endpoint.backends[OWNER.subject]
        backend.name, backend.listens = f"{CANARY}-assigned", True
        backend.add_resource("file:///x")
        entry = configured(endpoint)
        if place.at_opening:
            place.strike(endpoint, backend, given(endpoint, None))
        async with endpoint.factory.open_session([entry], identity=OWNER) as session:
            if not place.at_opening:
                place.strike(endpoint, backend, given(endpoint, session))
            method, *args = place.asks
            with suppress(VmcpError):
                try:
                    await getattr(session.as_caller(OWNER), method)(*args, timeout=5)
                except VmcpError as error:
                    shown = [str(error), repr(error), *traceback.format_exception(error)]
                    texts += [text.replace(ARGUMENT, "") for text in shown]
                    raise
            await wait_all_tasks_blocked()
            texts += [repr(session.failures), repr(session.backends), repr(session.conflicts), repr(session)]
    texts += caplog.text.splitlines()  # as they were when they were logged: an error in a record changes afterwards
    texts += events.seen
    assert [] == [text for text in texts if CANARY in text]
