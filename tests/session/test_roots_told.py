"""`tell_roots_changed` of one connection: a client of the user's own may lack it, hang or raise."""

from __future__ import annotations

import attrs
import pytest
import trio
from support.harness import ALICE
from trio.testing import MockClock

from trio_vmcp import JSON, BackendRecord, Identity
from trio_vmcp._limits import TimeLimit
from trio_vmcp._session.connection import Connection
from trio_vmcp._session.log_levels import LevelTeller, LogLevel

LIMIT = TimeLimit(2.0, "request_timeout")


class OldClient:
    """Has no such message, as those of the stateless era."""

    server_capabilities: JSON = {}  # noqa: RUF012  # a Protocol's member; never written

    @property
    def record(self) -> BackendRecord:
        raise AssertionError

    async def request(self, method: str, params: JSON, **more: object) -> JSON:
        raise AssertionError

    async def aclose(self, *, terminate: bool) -> None:
        raise AssertionError


@attrs.define(eq=False)
class NewClient(OldClient):
    takes: float = 0.0  # s
    error: Exception | None = None
    told: list[Identity | None] = attrs.field(factory=list)

    async def tell_roots_changed(self, identity: Identity | None) -> None:
        self.told.append(identity)
        await trio.sleep(self.takes)
        if self.error is not None:
            raise self.error


class NoSubscriptions:
    def subscribe(self, uri: str) -> None: ...

    def unsubscribe(self, uri: str) -> None: ...


class NeverOver:
    is_over = False


def connection_of(client: OldClient) -> Connection:
    teller = LevelTeller(LogLevel(), client, "b", NeverOver(), LIMIT)
    return Connection(client, (), NoSubscriptions(), reports_writes=False, log_level=teller)


@pytest.mark.parametrize(
    ("client", "failure", "took"),
    [
        (OldClient(), None, 0.0),
        (NewClient(), None, 0.0),
        (NewClient(takes=1.0), None, 1.0),
        (NewClient(takes=3.0), f"timeout of {LIMIT}", 2.0),
        (NewClient(error=LookupError("secret")), "LookupError", 0.0),
    ],
    ids=["lacks it", "tells", "is slow", "hangs", "raises"],
)
async def test_a_failure_to_tell_is_logged_and_raises_nothing(
    client: OldClient, failure: str | None, took: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Within the limit, with the identity of the caller, and without the text of the error."""
    await connection_of(client).tell_roots_changed(ALICE, LIMIT)
    assert took == trio.current_time()
    said = [] if failure is None else [f"a backend was not told that the roots have changed: {failure}"]
    assert said == [record.getMessage() for record in caplog.records]
    if isinstance(client, NewClient):
        assert [ALICE] == client.told
