"""The probe finds out which era a backend speaks, over any channel. A factory keeps the verdicts by endpoint; a probe
that is under way is shared by the sessions of one principal, since another principal may be answered at once.

The order is `server/discover`, `initialize`, HTTP+SSE. With handlers for sampling or elicitation `initialize` comes
first: a server that speaks both eras asks its client in the handshake era only, as a rule. A verdict belongs to the
endpoint and the order.

Source: MCP 2026-07-28, versioning: "try modern first, and look at the body before falling back".
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar

import attrs
import trio

from trio_vmcp._client.handshake import HandshakeClient, InitializeRefused
from trio_vmcp._client.stateless import StatelessClient
from trio_vmcp._nursery import start_task
from trio_vmcp._protocol.eras import MODERN_VERSION, Verdict, is_modern_error, judge, lists_modern_version
from trio_vmcp._protocol.jsonrpc import Result
from trio_vmcp._protocol.methods import DISCOVER, INITIALIZE
from trio_vmcp._protocol.outcomes import Answer, Loss, RequestOutcome, rejection
from trio_vmcp.connector import BackendClient
from trio_vmcp.errors import BackendError, BackendProtocolError, BackendRejected, BackendUnavailable, MessageTooLarge
from trio_vmcp.models import JSON, Backend

__all__ = ["Opening", "Probe", "VerdictCache"]

_MOST_CACHED = 4096  # endpoints; the oldest entry is discarded first
# The answer is not MCP of the era that was asked for: plain text, 204, a redirect, a body that is too long.
NOT_OF_THIS_ERA = (BackendProtocolError, BackendRejected, MessageTooLarge)
# s without an answer to `initialize`, after `server/discover` was not answered either.
SILENT_AGAIN = 1.0


@attrs.define(eq=False)
class _RunningProbe:
    done: trio.Event = attrs.field(factory=trio.Event)
    verdict: Verdict | None = None


@attrs.define(eq=False)
class VerdictCache:
    """The verdicts of one factory, by endpoint. Sessions of one principal that connect at the same time share a probe:
    its answer, or its silence, may be about their credentials.
    """

    _verdicts: dict[str, Verdict] = attrs.field(factory=dict, init=False)
    _running: dict[tuple[str, bytes], _RunningProbe] = attrs.field(factory=dict, init=False, repr=False)

    def record_verdict(self, endpoint: str, verdict: Verdict) -> None:
        """The endpoint proved to be of this era: replace any verdict on it. INCONCLUSIVE only discards the old one."""
        self._verdicts.pop(endpoint, None)
        if verdict is not Verdict.INCONCLUSIVE:
            self._verdicts[endpoint] = verdict
            if len(self._verdicts) > _MOST_CACHED:
                del self._verdicts[next(iter(self._verdicts))]

    def known(self, endpoint: str) -> Verdict | None:
        """The verdict on an endpoint; None: there is none."""
        return self._verdicts.get(endpoint)

    async def find_verdict(self, endpoint: str, principal: bytes, probe: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """The verdict on an endpoint. If a probe fails or is cancelled, the next session that waits probes.

        Args:
            principal: The key of the sessions that `probe` may be shared with.
        """
        while True:
            known = self.known(endpoint)
            if known is not None:
                return known
            running = self._running.get((endpoint, principal))
            if running is None:
                return await self._run_probe(endpoint, principal, probe)
            await running.done.wait()
            if running.verdict is not None:
                return running.verdict

    async def _run_probe(self, endpoint: str, principal: bytes, probe: Callable[[], Awaitable[Verdict]]) -> Verdict:
        running = self._running[endpoint, principal] = _RunningProbe()
        try:
            running.verdict = await probe()
        finally:
            del self._running[endpoint, principal]
            running.done.set()
        self.record_probed(endpoint, running.verdict)
        return running.verdict

    def record_probed(self, endpoint: str, verdict: Verdict) -> None:
        """Keep what a probe found. LEGACY is kept once a handshake has worked: a refusal of `server/discover` may be
        about the credentials of the session that asked, and the verdict is for all.
        """
        if verdict is not Verdict.LEGACY:
            self.record_verdict(endpoint, verdict)
        elif self.known(endpoint) is not Verdict.LEGACY:
            self._verdicts.pop(endpoint, None)  # out of date


class Opening(abc.ABC):
    """One attempt to connect to a backend over one kind of channel.

    Attributes:
        endpoint: The digest of the endpoint, which its record has.
        greets_first: `initialize` comes before `server/discover`.
        principal: The key of the sessions that this opening's probe may be shared with.
        verdict_on_loss: The verdict if the stream that was to bring the answer to `server/discover` ends.
    """

    endpoint: str
    greets_first: bool
    principal: bytes
    verdict_on_loss: ClassVar[Verdict] = Verdict.LEGACY

    @property
    def verdict_key(self) -> str:
        """The verdict is kept under this: the endpoint and the order."""
        return f"{self.endpoint} initialize" if self.greets_first else self.endpoint

    @property
    @abc.abstractmethod
    def backend(self) -> Backend: ...

    @property
    @abc.abstractmethod
    def stateless(self) -> StatelessClient:
        """The client for the modern era."""

    @abc.abstractmethod
    async def discover(self) -> RequestOutcome:
        """Send `server/discover` and return its outcome."""

    @abc.abstractmethod
    async def greet(self, *, was_probed: bool) -> HandshakeClient:
        """Do the handshake.

        Args:
            was_probed: This opening has sent `server/discover` before.

        Raises:
            InitializeRefused: The backend answered with an error.
        """

    def survives(self, error: BackendError) -> bool:
        """Whether the other era can be tried after `initialize` has ended in this error."""
        return not isinstance(error, BackendUnavailable)

    async def open_event_stream(self) -> BackendClient:
        """Connect over HTTP+SSE (2024-11-05): the verdict on the endpoint says so."""
        raise AssertionError("there is no such stream over this channel")

    async def open_older_stream(self) -> BackendClient | None:
        """`initialize` is not answered: connect over HTTP+SSE and record the verdict; None: this channel has no such
        way.

        Raises:
            BackendError: The backend does not speak HTTP+SSE.
        """
        return None

    def discard_handshake(self, client: BackendClient) -> None:  # noqa: B027  # empty on purpose
        """`client` is used in place of the handshake that was begun: end what came of that."""

    async def fall_back(self, refused: InitializeRefused) -> BackendClient:
        """The backend refused both `server/discover` and `initialize`: connect in another way, or raise."""
        raise rejection(self.backend.id, INITIALIZE, refused.outcome)


@attrs.define(eq=False)
class Probe:
    """Finds the client of the right era for one opening."""

    _opening: Opening = attrs.field(alias="opening")
    _verdicts: VerdictCache = attrs.field(alias="verdicts")
    # s for `server/discover`, which a server of the handshake era may ignore.
    _timeout: float = attrs.field(alias="timeout")
    _discovered: JSON | None = attrs.field(default=None, init=False, repr=False)
    _was_asked: bool = attrs.field(default=False, init=False)
    _was_silent: bool = attrs.field(default=False, init=False)  # nothing came of the question

    async def connect(self) -> BackendClient:
        """
        Raises:
            BackendError: The backend cannot be reached, or does not speak MCP.
        """
        match self._opening.backend.era:
            case "legacy":
                return await self._initialize()
            case "modern":
                return await self._discover()
            case _:
                return await self._find_out()

    async def _initialize(self) -> BackendClient:
        try:
            return await self._opening.greet(was_probed=False)
        except InitializeRefused as refused:
            raise rejection(self._opening.backend.id, INITIALIZE, refused.outcome) from None

    async def _discover(self) -> BackendClient:
        backend_id = self._opening.backend.id
        outcome = await self._ask_twice()
        if not isinstance(outcome, Answer) or not isinstance(outcome.reply, Result):
            raise self._error(outcome)
        if not lists_modern_version(outcome.reply.result.get("supportedVersions")):
            raise BackendProtocolError(backend_id, f"does not list {MODERN_VERSION} among its supported versions")
        self._opening.stateless.adopt(outcome.reply.result)
        return self._opening.stateless

    async def _find_out(self) -> BackendClient:
        opening = self._opening
        if opening.greets_first:
            verdict = self._verdicts.known(opening.verdict_key)
        else:
            verdict = await self._verdicts.find_verdict(opening.verdict_key, opening.principal, self._ask_for_era)
        if verdict is Verdict.SSE:
            try:
                return await opening.open_event_stream()
            except NOT_OF_THIS_ERA:  # the cached verdict is out of date
                verdict = await self._ask_again()
        if verdict is Verdict.MODERN and self._discovered is None:  # another session's probe, perhaps long ago
            verdict = await self._ask_again()
        adopted = self._adopt(verdict)
        if adopted is not None:
            return adopted
        failure: Exception
        try:
            return await self._greet(verdict)
        except InitializeRefused as refused:
            failure = refused
        except (*NOT_OF_THIS_ERA, BackendUnavailable) as error:
            if self._was_asked or not opening.greets_first or not opening.survives(error):
                raise
            failure = error
        is_modern = isinstance(failure, InitializeRefused) and is_modern_error(failure.outcome)
        # The verdict is wrong, or may be old; or a slow server has got ready since it was silent.
        asks_again = is_modern or not self._was_asked or self._was_silent
        if isinstance(failure, InitializeRefused):
            return await (self._fall_back_and_ask(failure) if asks_again else opening.fall_back(failure))
        adopted = self._adopt(await self._ask_again()) if asks_again else None
        if adopted is None:
            raise failure
        opening.discard_handshake(adopted)  # an answer that cannot be read may have named a session
        return adopted

    async def _fall_back_and_ask(self, refused: InitializeRefused) -> BackendClient:
        """Ask for the era again, and connect in another way beside it: the refusal may be that of an older server,
        which need not answer the question. The first that works is taken.

        Raises:
            BackendError: Neither works.
        """
        adopted: BackendClient | None = None
        client: BackendClient | None = None
        errors: list[Exception] = []  # that of the question first

        async def ask() -> None:
            nonlocal adopted
            try:
                adopted = await self._try_modern()
            except Exception as error:  # noqa: BLE001  # raised below: the nursery would group it
                errors.insert(0, error)
            if adopted is not None:
                nursery.cancel_scope.cancel(reason="the backend speaks the stateless era")

        async with trio.open_nursery() as nursery:
            start_task(nursery, ask)
            try:
                client = await self._opening.fall_back(refused)
                nursery.cancel_scope.cancel(reason="the backend was connected in another way")
            except Exception as error:  # noqa: BLE001  # likewise
                errors.append(error)
        if client is not None:
            return client
        if adopted is None:
            raise errors[0]
        return adopted

    async def _greet(self, verdict: Verdict | None) -> BackendClient:
        """Do the handshake, in the way that the verdict calls for.

        Raises:
            InitializeRefused, BackendError: There was none.
        """
        opening, verdicts = self._opening, self._verdicts
        if verdict not in (None, Verdict.INCONCLUSIVE):
            client: BackendClient = await opening.greet(was_probed=self._was_asked)
        else:
            client = await self._greet_beside_others()
        # "Silence means legacy" (2026-07-28, stdio, backward compatibility); so does a refusal, now that this works.
        proves = verdict is Verdict.LEGACY or self._was_silent or opening.greets_first
        is_greeted = isinstance(client, HandshakeClient) and verdicts.known(opening.verdict_key) is not Verdict.SSE
        if is_greeted and proves:
            verdicts.record_verdict(opening.verdict_key, Verdict.LEGACY)
        return client

    async def _greet_beside_others(self) -> BackendClient:
        """Do the handshake. If `initialize` is not answered for some time, try the other ways beside it, since a slow
        server may answer yet; the first that works is taken.
        """
        opening, failure = self._opening, None
        patience = SILENT_AGAIN if self._was_silent else self._timeout
        others: list[BackendClient] = []
        client: BackendClient | None = None

        async def take(way: Callable[[], Awaitable[BackendClient | None]]) -> None:
            await trio.sleep(patience)
            with suppress(BackendError):  # what becomes of the handshake says more
                other = await way()
                if other is not None:
                    others.append(other)
                    nursery.cancel_scope.cancel(reason="the backend answers in another way")

        async with trio.open_nursery() as nursery:
            start_task(nursery, take, opening.open_older_stream)
            if not self._was_asked:
                start_task(nursery, take, self._try_modern)
            try:
                client = await opening.greet(was_probed=self._was_asked)
            except Exception as error:  # noqa: BLE001  # raised below: the nursery would group it
                failure = error
            nursery.cancel_scope.cancel(reason="the handshake has ended")
        if others:
            opening.discard_handshake(others[0])
            return others[0]
        if client is None:
            assert failure is not None
            raise failure
        return client

    async def _try_modern(self) -> BackendClient | None:
        return self._adopt(await self._ask_again())

    def _adopt(self, verdict: Verdict | None) -> BackendClient | None:
        if verdict is not Verdict.MODERN:
            return None
        assert self._discovered is not None
        self._opening.stateless.adopt(self._discovered)
        return self._opening.stateless

    async def _ask_again(self) -> Verdict:
        verdict = await self._ask_for_era()
        self._verdicts.record_probed(self._opening.verdict_key, verdict)
        return verdict

    async def _ask_for_era(self) -> Verdict:
        """Send `server/discover` and judge the outcome. The result of a modern server is kept for `_adopt`."""
        self._was_asked = True
        with trio.move_on_after(self._timeout):
            try:
                outcome = await self._ask_twice()
            except NOT_OF_THIS_ERA:
                return Verdict.LEGACY
            if isinstance(outcome, Loss):
                return self._opening.verdict_on_loss
            verdict = judge(outcome)
            if isinstance(outcome, Answer) and isinstance(outcome.reply, Result):
                self._discovered = outcome.reply.result
            elif verdict is Verdict.MODERN:
                raise self._error(outcome)
            return verdict
        self._was_silent = True
        return Verdict.INCONCLUSIVE

    async def _ask_twice(self) -> RequestOutcome:
        outcome = await self._opening.discover()
        if is_modern_error(outcome):  # "retry with a mutual version, once" (2026-07-28, versioning)
            outcome = await self._opening.discover()
        return outcome

    def _error(self, outcome: RequestOutcome) -> BackendError:
        backend_id = self._opening.backend.id
        if isinstance(outcome, Loss):
            return outcome.error(backend_id, DISCOVER)
        return rejection(backend_id, DISCOVER, outcome)
