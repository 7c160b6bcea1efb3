"""No secret is in the repr of an object of the package, in a log record or in a traceback, whatever the channel.

The canary stands in session ids (ours and the backends'), headers, environments, userinfo, queries, tokens, arguments,
`meta` and in what handlers answer.
"""

from __future__ import annotations

import gc
import logging
import traceback
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from support.channels import CHANNELS, COMMAND, EVERY_CHANNEL, Channel
from support.endpoint import Endpoint, open_endpoint
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp import (
    JSON,
    Backend,
    BearerAuth,
    ClientHandlers,
    FactorySettings,
    Identity,
    ServerRequest,
    Session,
    VmcpError,
)
from trio_vmcp.testing import CallContext, Disconnect, Error, Fault, Hang, Status

CANARY = "CANARY"
OWNER = Identity(issuer="https://issuer.test", subject="alice", token=f"{CANARY}-token")
SETTINGS = FactorySettings(identity_keys=(f"{CANARY}-key".encode(),), reconnect_delay=0.1)
URL = f"http://user:{CANARY}-userinfo@b.test/mcp?key={CANARY}-query"


def live_reprs() -> dict[str, str]:
    """The repr of each live object of the package, by type and text. Those of `trio_vmcp.testing` are no part of it."""
    found = {}
    for thing in gc.get_objects():
        kind = type(thing)
        if kind.__module__.startswith("trio_vmcp.") and not kind.__module__.startswith("trio_vmcp.testing"):
            text = repr(thing)
            name = f"{kind.__module__}.{kind.__qualname__}"
            found[f"{name}: {text}" if CANARY in text else name] = text
    return found


def whose(backend: Backend, identity: Identity | None) -> str | None:
    return None if identity is None else identity.token


async def hang(arguments: JSON, context: CallContext) -> str:
    await context.progress(1)
    await trio.sleep_forever()
    raise AssertionError


async def curious(arguments: JSON, context: CallContext) -> str:
    return str(await context.elicit("which?"))


async def answer_late(request: ServerRequest) -> JSON:
    await trio.sleep(5)
    return {"action": "accept", "content": {"answer": f"{CANARY}-answer"}}


async def on_progress(progress: float, total: float | None, message: str | None) -> None:
    await trio.lowlevel.checkpoint()


def configured(endpoint: Endpoint) -> Backend:
    where: dict[str, Any] = {"url": URL, "headers": {"X-Who": OWNER.subject, "X-Api-Key": f"{CANARY}-header"}}
    if endpoint.channel.transport == "stdio":
        where = {"env": {"WHO": OWNER.subject, "SECRET": f"{CANARY}-env"}, "args": (), "command": COMMAND}
    return endpoint.configured(OWNER, **where)


def open_secretive(channel: Channel) -> Any:
    handlers = ClientHandlers(elicitation=answer_late)
    return open_endpoint(channel, settings=SETTINGS, handlers=handlers, auth=BearerAuth(whose))


def prepare(endpoint: Endpoint) -> Backend:
    backend = endpoint.backends[OWNER.subject]
    backend.name, backend.listens = f"{CANARY}-backend-session", True
    backend.add_tool("hang", hang)
    backend.add_tool("curious", curious)
    backend.add_resource("file:///x")
    return configured(endpoint)


@EVERY_CHANNEL
async def test_no_live_object_shows_a_secret(
    channel: Channel, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """While calls, a question, a subscription and a recovery are under way, and after the end."""
    caplog.set_level(logging.DEBUG)
    texts: dict[str, str] = {}
    async with open_secretive(channel) as endpoint, trio.open_nursery() as nursery:
        backend = prepare(endpoint)
        session = await endpoint.factory.make_session([backend], identity=OWNER, session_id=f"{CANARY}-session")
        assert () == session.failures
        view = session.as_caller(OWNER)
        await view.subscribe_resource("file:///x")
        secret: JSON = {"password": f"{CANARY}-argument"}

        async def call(name: str, **options: Any) -> None:
            with suppress(VmcpError):  # the connection is lost under it
                await view.call_tool(name, secret, meta={"trace": f"{CANARY}-meta"}, **options)

        nursery.start_soon(call, "b_hang")
        nursery.start_soon(partial(call, "b_hang", on_progress=on_progress))
        nursery.start_soon(call, "b_curious")
        await wait_all_tasks_blocked()
        texts |= live_reprs()
        endpoint.fail(OWNER, Hang())
        await endpoint.lose(OWNER)
        with trio.move_on_after(0.5):
            await call("b_echo")
        texts |= live_reprs()
        nursery.cancel_scope.cancel()
        await session.aclose()
    assert [] == sorted(name[:300] for name, text in texts.items() if CANARY in text)
    assert {"trio_vmcp._session.member.Member", "trio_vmcp.models.Backend"} <= texts.keys()
    assert [] == [line for line in caplog.text.splitlines() if CANARY in line]


FAULTS: dict[str, Fault] = {
    "rejected": Error(-32603, "no"),
    "unauthorized": Status(401),
    "page": Status(500, b"<html>sorry</html>"),
    "cut": Disconnect(60),
    "hangs": Hang(),
    "no JSON": Status(200, b"hello"),
}
EVERY_FAULT = pytest.mark.parametrize(
    ("channel", "fault"),
    [(c, name) for c in CHANNELS for name in FAULTS if c.transport != "stdio" or name in ("rejected", "hangs")],
    ids=str,
)


@EVERY_FAULT
async def test_no_error_of_a_call_shows_a_secret(
    channel: Channel, fault: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text, its repr, its traceback with all causes, and the log at DEBUG; of calls, openings and restores."""
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    async def note_error(session: Session, method: str, *args: Any) -> None:
        with pytest.raises(VmcpError) as caught:
            await getattr(session.as_caller(OWNER), method)(*args, timeout=2)
        texts.extend([str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)])

    async with open_secretive(channel) as endpoint:
        backend = prepare(endpoint)
        async with endpoint.factory.open_session([backend], identity=OWNER, session_id=f"{CANARY}-session") as session:
            assert () == session.failures
            endpoint.fail(OWNER, FAULTS[fault])
            await note_error(session, "call_tool", "b_echo", {"password": f"{CANARY}-argument"})
            await note_error(session, "read_resource", "file:///x")
            await note_error(session, "subscribe_resource", "file:///x")
            texts += [repr(session.failures), repr(session.backends), repr(session.metadata), repr(session)]
            texts += live_reprs().values()
        async with endpoint.factory.open_session([backend], identity=OWNER) as session:
            texts += [repr(session.failures), repr(session.backends)]
    texts += caplog.text.splitlines()
    assert [] == [text for text in texts if CANARY in text]
