"""Backends that are child processes: `Backend(transport="stdio", command=…)`.

The process belongs to the nursery that the connector is given, and ends with the connection. There is no session to
take up again: to connect anew is to start another process. The rest is in `_process` (its life), `_lines` (what goes
through its pipes), `_stderr` (what it says beside them) and `_duplex` (the protocol).
"""

from __future__ import annotations

import logging

import attrs
import trio

from trio_vmcp._client.channels.duplex import DuplexClient, Listens
from trio_vmcp._client.channels.inbox import Inbox
from trio_vmcp._client.channels.lines import LineLink
from trio_vmcp._client.channels.process import ChildProcess
from trio_vmcp._client.channels.streamable import Answer, HttpRefusal, refusal
from trio_vmcp._client.eras import MODERN_VERSION, EraCache, Verdict, is_modern_error, judge
from trio_vmcp._client.handshake import InitializeRefused
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._nursery import start_clean
from trio_vmcp._protocol.jsonrpc import ErrorReply, Result
from trio_vmcp.connector import EventSink
from trio_vmcp.errors import BackendProtocolError, BackendUnavailable, MessageTooLarge
from trio_vmcp.metadata import BackendRecord, endpoint_digest
from trio_vmcp.models import JSON, Backend
from trio_vmcp.settings import FactorySettings

__all__ = ["connect_stdio"]

logger: logging.Logger = logging.getLogger("trio_vmcp.client.stdio")


@attrs.define(eq=False)
class _StdioConnection(LineLink):
    """The `Wire` of a child process."""

    child: ChildProcess = attrs.field(init=False)

    async def aclose(self) -> None:
        self.child.end()
        try:
            await self.child.gone.wait()
        finally:
            self.child.kill()  # cancelled: whoever asked has no more time. Else it is gone, and nothing happens


async def connect_stdio(
    backend: Backend,
    *,
    settings: FactorySettings,
    eras: EraCache,
    probe_timeout: float,
    nursery: trio.Nursery,
    events: EventSink,
    requests: ServerRequests,
) -> DuplexClient:
    """Start the backend's process and greet it, in the era that it speaks.

    Args:
        probe_timeout: s, for `server/discover`, which an old server may ignore.
        nursery: Owns the process, whatever becomes of this call.
        requests: Answers what the backend asks.

    Raises:
        BackendError: The process could not be started, ended, or does not speak MCP.
    """
    attempt = _Attempt(backend, settings, eras, probe_timeout, nursery, events, requests)
    try:
        client = await attempt.connect()
        attempt.child.rely()
        return client
    except BaseException:
        attempt.abandon()
        raise


@attrs.define(eq=False)
class _Attempt:
    """One connection on its way to a client."""

    backend: Backend
    settings: FactorySettings
    eras: EraCache
    probe_timeout: float
    nursery: trio.Nursery
    events: EventSink
    requests: ServerRequests
    client: DuplexClient = attrs.field(init=False)
    child: ChildProcess = attrs.field(init=False)
    discovered: JSON | None = attrs.field(default=None, init=False)
    probed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._make()

    async def connect(self) -> DuplexClient:
        await self._start()
        match self.backend.era:
            case "legacy":
                await self._initialize()
            case "modern":
                await self._discover()
            case _:
                await self._probe()
        return self.client

    def abandon(self) -> None:
        """Nobody wants it any more. Its own task ends it, which is bounded."""
        self.client.abandon()
        self.child.end()

    def _make(self) -> None:
        settings = self.settings
        wire = _StdioConnection(
            Inbox(
                backend_id=self.backend.id,
                max_message_bytes=settings.max_message_bytes,
                max_json_depth=settings.max_json_depth,
            )
        )
        self.child = wire.child = ChildProcess(
            backend=self.backend, link=wire, teardown_timeout=settings.teardown_timeout
        )
        self.client = DuplexClient(
            record=BackendRecord(self.backend.id, None, "legacy", "", {}, endpoint_digest(self.backend)),
            events=self.events,
            inbox=wire.inbox,
            wire=wire,
            requests=self.requests,
            listens=Listens(
                self.backend.listen, self.nursery, (settings.reconnect_delay, settings.reconnect_max_delay)
            ),
        )

    async def _start(self) -> None:
        start_clean(self.nursery, self.child.serve)
        await self.child.started.wait()
        if self.client.loss is not None:
            raise self.client.loss.error(self.backend.id)

    async def _probe(self) -> None:
        endpoint = self.client.record.endpoint_digest
        verdict = await self.eras.verdict(endpoint, self._ask_for_era)
        if verdict is Verdict.MODERN and self.discovered is None:  # somebody else's probe, of another process
            verdict = await self._ask_for_era()
            self.eras.correct(endpoint, verdict)
        if self._adopted(verdict):
            return
        try:
            await self._greet()
            return
        except InitializeRefused as error:
            refused = error
        if is_modern_error(refused.outcome) or not self.probed:  # the verdict is wrong, or may be out of date
            verdict = await self._ask_for_era()
            self.eras.correct(endpoint, verdict)
            if self._adopted(verdict):
                return
        raise refusal(self.backend.id, "initialize", refused.outcome)

    async def _greet(self) -> None:
        """`initialize`; with another process, where the question before it has ended the first, as some servers do."""
        if self.client.loss is None:
            try:
                await self.client.initialize(None)
                return
            except BackendUnavailable:
                if not self.probed:
                    raise
        await self.child.gone.wait()
        self.requests.forget()
        self._make()
        await self._start()
        await self.client.initialize(None)
        self.eras.correct(self.client.record.endpoint_digest, Verdict.LEGACY)  # it need not die of it again

    def _adopted(self, verdict: Verdict) -> bool:
        if verdict is not Verdict.MODERN or self.discovered is None:
            return False
        self.client.adopt(self.discovered)
        return True

    async def _ask_for_era(self) -> Verdict:
        self.probed = True
        with trio.move_on_after(self.probe_timeout):
            try:
                outcome = await self._ask_twice()
            except (BackendProtocolError, MessageTooLarge):
                return Verdict.LEGACY  # what it answers is not MCP of this era
            except BackendUnavailable:
                return Verdict.INCONCLUSIVE  # it has ended; perhaps of that question
            verdict = judge(Answer(outcome, 200))
            if isinstance(outcome, Result):
                self.discovered = outcome.result
            elif verdict is Verdict.MODERN:
                raise refusal(self.backend.id, "server/discover", outcome)
            return verdict
        return Verdict.INCONCLUSIVE

    async def _ask_twice(self) -> Result | ErrorReply | HttpRefusal:
        outcome = await self.client.discover(None)
        if is_modern_error(outcome):  # "retry with a mutual version, once"
            outcome = await self.client.discover(None)
        return outcome

    async def _discover(self) -> None:
        outcome = await self._ask_twice()
        if not isinstance(outcome, Result):
            raise refusal(self.backend.id, "server/discover", outcome)
        versions = outcome.result.get("supportedVersions")
        if not isinstance(versions, list) or MODERN_VERSION not in versions:
            raise BackendProtocolError(self.backend.id, f"does not list {MODERN_VERSION} among its supported versions")
        self.client.adopt(outcome.result)

    async def _initialize(self) -> None:
        try:
            await self.client.initialize(None)
        except InitializeRefused as refused:
            raise refusal(self.backend.id, "initialize", refused.outcome) from None
