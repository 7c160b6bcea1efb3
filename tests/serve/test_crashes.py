"""Errors that come out of code of the user's, in the middle of a request."""

from __future__ import annotations

from typing import Any

import pytest
from support.front import front_world, modern_request
from support.front_clients import EVERY_CARRIER, EVERY_ERA, front_client, stdio_client
from support.front_http import INITIALIZE
from support.plain_connector import PlainConnector
from trio.testing import MockClock

from trio_vmcp import Backend, Identity, StorageError


class Source:
    """Of backends; raises as long as `error` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def __call__(self, identity: Identity | None) -> list[Backend]:
        if self.error is not None:
            raise self.error
        return [Backend("a", "http://a.test/mcp")]


@pytest.mark.parametrize("error", [RuntimeError("secret-7"), ValueError("secret-7"), OSError("secret-7")], ids=repr)
@pytest.mark.parametrize("carrier", ["http", "stdio"])
@EVERY_ERA
async def test_a_source_of_backends_that_crashes(
    era: str, carrier: str, error: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets an internal error, without the text, and not a connection that ends; afterwards all goes on."""
    request, headers = (INITIALIZE, {}) if era == "legacy" else modern_request("tools/list")
    source = Source()

    async with front_world() as world, stdio_client(world, era, opens=False) as client:
        await world.manager.set_backends(source)

        async def ask() -> Any:
            if carrier == "stdio":
                client.received.clear()
                await client.send(request)
                return await client.response(request["id"])
            return (await world.post(request, headers)).json

        source.error = error
        refused = await ask()
        assert (request["id"], -32603) == (refused["id"], refused["error"]["code"]), refused
        source.error = None
        assert "result" in await ask()
    assert "secret-7" not in caplog.text + str(refused)
    assert f"a request has crashed: {type(error).__name__}" in caplog.text


@pytest.mark.parametrize("error", [KeyError("secret-7"), ValueError("secret-7"), StorageError("secret-7")], ids=repr)
@EVERY_CARRIER
@EVERY_ERA
async def test_a_client_of_a_connector_that_crashes(
    era: str, carrier: str, error: Exception, autojump_clock: MockClock
) -> None:
    """It is the failure of that backend: not of the params, of the session or of its storage."""

    async def crash() -> None:
        raise error

    connector = PlainConnector(on_request={"a": crash})
    async with front_client(carrier, era, connector=connector) as client:
        await client.ask("tools/call", {"name": "a_echo"})
        answer = await client.response()
        assert -32603 == answer["error"]["code"]
        assert {"kind": "BackendError", "backend": "a", "mayHaveExecuted": True} == answer["error"]["data"]
        assert "secret-7" not in str(answer)
        assert "tools" in await client.result("tools/list", request_id=2)
