"""`subscriptions/listen` of the modern era: a request that stays open and brings notifications of changes.

Over HTTP its response is a stream of its own; over stdio its messages arrive among all others (see `Channel.hold`).

The subscriptions of an open stream cannot be changed. So another stream is opened for the new set, and the stream
before is closed once the new one is acknowledged: no notification is missed in between.

Source: MCP 2026-07-28, subscriptions. The page contradicts itself on the end of a stream, so all three are accepted: a
result, `notifications/cancelled`, and an end without a message.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from trio_vmcp._client.channels.channel import Ask, Channel, Headers
from trio_vmcp._client.listening import HeldStream, Listening, OnReached, StreamBackoff, report_missed
from trio_vmcp._nursery import start_if_open
from trio_vmcp._protocol.jsonrpc import ErrorReply, Message, Notification, Result, encode_request, same_id
from trio_vmcp._protocol.methods import (
    ACKNOWLEDGED,
    CANCELLED,
    LIST_CHANGED,
    LIST_KEYS,
    LISTEN,
    RESOURCE_UPDATED,
    SUBSCRIPTION_ID,
    Kind,
)
from trio_vmcp._protocol.outcomes import MOST_QUOTED, Answer, Refusal, rejection
from trio_vmcp.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["Subscriptions"]

logger = logging.getLogger("trio_vmcp.client")

METHOD_NOT_FOUND, INVALID_PARAMS = -32601, -32602
_NOT_OFFERED = frozenset({404, 405, 406, 501, METHOD_NOT_FOUND})  # HTTP statuses, and a JSON-RPC code
# s from the request to the acknowledgement, which is the first message. Later there is no limit: a stream may be silent
# for days.
ACKNOWLEDGE_TIMEOUT = 30.0

Compose: TypeAlias = Callable[[str, JSON, Identity | None], tuple[Ask, bytes, Headers]]
"""Makes a request of this method with these params and an identity; returns its body and headers, too."""


@attrs.frozen
class Wanted:
    """The subscriptions of one stream: to kinds of lists, and to resources."""

    kinds: tuple[Kind, ...]
    uris: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.kinds or self.uris)

    def params(self) -> JSON:
        wanted: JSON = {LIST_KEYS[kind]: True for kind in self.kinds}
        if self.uris:
            wanted["resourceSubscriptions"] = list(self.uris)
        return {"notifications": wanted}

    def honoured_by(self, acknowledgement: JSON) -> Wanted:
        """The subscriptions that the server has acknowledged."""
        agreed = acknowledgement.get("notifications")
        if not isinstance(agreed, dict):
            return Wanted((), ())
        uris = agreed.get("resourceSubscriptions")
        kept = {uri for uri in uris if isinstance(uri, str)} if isinstance(uris, list) else set()
        return Wanted(
            tuple(kind for kind in self.kinds if agreed.get(LIST_KEYS[kind]) is True),
            tuple(uri for uri in self.uris if uri in kept),
        )


@attrs.define(eq=False, kw_only=True)
class Subscriptions:
    """The subscriptions of one client to changes of one backend. They share one stream, which carries the credentials
    of the caller that changed them last: those of the opener may have expired by then.
    """

    _channel: Channel = attrs.field(alias="channel", repr=False)
    _compose: Compose = attrs.field(alias="compose", repr=False)
    _on_event: Callable[[str, JSON], None] = attrs.field(alias="on_event", repr=False)
    # Called when a stream opens, with the kinds of lists that it reports changes of.
    _on_listening: Callable[[tuple[Kind, ...]], None] = attrs.field(alias="on_listening", repr=False)
    _on_reached: OnReached = attrs.field(alias="on_reached", repr=False)
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _retries: tuple[float, float] = attrs.field(alias="retries")  # s, the first and the longest delay
    _identity: Identity | None = attrs.field(alias="identity", repr=False)  # of the next stream; first the opener's
    _kinds: tuple[Kind, ...] = attrs.field(default=(), init=False)
    _current: _Subscription | None = attrs.field(default=None, init=False)
    _trial: _Subscription | None = attrs.field(default=None, init=False)  # it becomes `_current`, or is closed
    _changing: trio.Lock | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    @property
    def listening(self) -> Listening:
        return "none" if self._current is None else self._current.listening

    @property
    def uris(self) -> tuple[str, ...]:
        return () if self._current is None else self._current.wanted.uris

    def open(self, kinds: tuple[Kind, ...]) -> None:
        """Subscribe to these kinds of lists, and again to the resources so far."""
        self._kinds = kinds
        before, wanted = self._current, Wanted(kinds, self.uris)
        self._current = self._start(wanted, is_trial=False) if wanted else None
        if before is not None:
            before.close()

    def close(self) -> None:
        """End every stream, without waiting, and open no more."""
        self._closed = True
        for stream in (self._current, self._trial):
            if stream is not None:
                stream.close()

    def renew_identity(self, identity: Identity) -> None:
        """Streams that are opened from now on carry the newer token of this identity."""
        self._identity = identity
        for stream in (self._current, self._trial):
            if stream is not None:
                stream.identity = identity

    async def subscribe(self, uri: str, identity: Identity | None) -> None:
        """Subscribe to a resource, for a caller.

        Raises:
            BackendRejected: The backend does not offer a subscription to this resource.
            BackendError: The backend did not acknowledge. The subscriptions are as before.
        """
        async with self._one_at_a_time():
            if uri in self.uris and self.listening == "open":
                return
            uris = (*(known for known in self.uris if known != uri), uri)
            await self._change(uris, uri, identity)

    async def unsubscribe(self, uri: str, identity: Identity | None) -> None:
        """End the subscription to a resource.

        Raises:
            BackendError: As for `subscribe`.
        """
        async with self._one_at_a_time():
            if uri in self.uris:
                await self._change(tuple(known for known in self.uris if known != uri), None, identity)

    def _one_at_a_time(self) -> trio.Lock:
        if self._changing is None:  # few clients have subscriptions
            self._changing = trio.Lock()
        return self._changing

    async def _change(self, uris: tuple[str, ...], needed: str | None, identity: Identity | None) -> None:
        self._identity = self._identity if identity is None else identity
        before, wanted, trial, honoured = self._current, Wanted(self._kinds, uris), None, None
        if wanted:
            trial = self._trial = self._start(wanted, is_trial=True)
            try:
                await trial.settled.wait()
                honoured = trial.require(needed)
            except BaseException:
                trial.close()
                raise
            finally:
                self._trial = None
        self._current = trial
        if before is not None:
            # A stream that is not open would report the changes of its gap when it is opened again: do that for it.
            if honoured is not None and before.listening in ("retrying", "ended"):
                report_missed(self._on_event, honoured.kinds, honoured.uris)
            before.close()

    def _start(self, wanted: Wanted, *, is_trial: bool) -> _Subscription:
        if self._closed:
            raise BackendUnavailable(self._channel.backend_id, "cannot be listened to: its connection is closed")
        # Params that cannot be sent are an error of the caller: raise it here and not in the task.
        encode_request(0, LISTEN, wanted.params())
        stream = _Subscription(
            backend_id=self._channel.backend_id,
            backoff=StreamBackoff(*self._retries),
            on_reached=self._on_reached,
            channel=self._channel,
            compose=self._compose,
            on_event=self._on_event,
            on_listening=self._on_listening,
            identity=self._identity,
            wanted=wanted,
            is_trial=is_trial,
        )
        if not start_if_open(self._nursery, stream.run):
            raise BackendUnavailable(self._channel.backend_id, "cannot be listened to: its connection is closed")
        return stream


@attrs.define(eq=False, kw_only=True)
class _Subscription(HeldStream):
    """One stream for one set of subscriptions.

    Attributes:
        identity: The requests for the stream carry its credentials.
        is_trial: A caller waits for the first acknowledgement, so there is only one attempt to get it.
        honoured: The subscriptions of the last acknowledgement; None: there was none.
        problem: The reason for a missing acknowledgement.
    """

    _channel: Channel = attrs.field(alias="channel", repr=False)
    _compose: Compose = attrs.field(alias="compose", repr=False)
    _on_event: Callable[[str, JSON], None] = attrs.field(alias="on_event", repr=False)
    _on_listening: Callable[[tuple[Kind, ...]], None] = attrs.field(alias="on_listening", repr=False)
    identity: Identity | None = attrs.field(repr=False)
    wanted: Wanted
    is_trial: bool
    honoured: Wanted | None = attrs.field(default=None, init=False)
    problem: BackendError | None = attrs.field(default=None, init=False)
    # The id of the open request.
    _request_id: int = attrs.field(default=0, init=False)
    _acknowledging: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _is_acknowledged: bool = attrs.field(default=False, init=False)

    def require(self, uri: str | None) -> Wanted:
        """The subscriptions that the server has acknowledged to a trial; `uri` must be among them.

        Raises:
            BackendError: There was no acknowledgement, or it does not include `uri`.
        """
        if self.honoured is None:
            raise self.problem or BackendUnavailable(self.backend_id, "closed a stream before it acknowledged it")
        if uri is not None and uri not in self.honoured.uris:
            raise BackendRejected(
                self.backend_id,
                f"does not tell of changes of the resource {uri!r}",
                code=INVALID_PARAMS,
                message="not honoured",
            )
        return self.honoured

    async def open_once(self) -> bool:
        self._is_acknowledged, self.problem = False, None
        outcome: Answer | Refusal | None = None
        opened_at = trio.current_time()
        ask, data, headers = self._compose(LISTEN, self.wanted.params(), self.identity)
        self._request_id = ask.id
        try:
            with trio.CancelScope(deadline=opened_at + ACKNOWLEDGE_TIMEOUT) as self._acknowledging:
                outcome = await self._channel.hold(ask, data, headers, self._accept, self._note_retry)
        except BackendError as error:
            self.problem = error
            self.backoff.note_error(error)
            logger.debug("%s, on its subscriptions", error)
            if self._channel.is_lost:
                return False
            if not self._is_acknowledged:
                self.note_attempt(opened_at, error)
        if self._acknowledging.cancelled_caught:
            detail = f"did not acknowledge {LISTEN!r} within {ACKNOWLEDGE_TIMEOUT} s"
            self.problem = BackendTimeout(self.backend_id, detail)
        if self._is_acknowledged:
            self.note_ended(opened_at)
        again = self._judge(outcome, opened_at)
        return again and not (self.is_trial and self.honoured is None)

    def _judge(self, outcome: Answer | Refusal | None, asked_at: float) -> bool:
        """Whether to open another stream after this outcome."""
        if outcome is None or (isinstance(outcome, Answer) and isinstance(outcome.reply, Result)):
            if outcome is not None:
                self.note_attempt(asked_at, None)
            return not self._is_acknowledged or bool(self.honoured)
        self.problem = rejection(self.backend_id, LISTEN, outcome)
        self.note_attempt(asked_at, self.problem)
        logger.debug("%s", self.problem)
        reply = outcome.reply if isinstance(outcome, Answer) else None
        code = reply.code if isinstance(reply, ErrorReply) else outcome.status
        self.backoff.note_retry_after(self.problem.retry_after)
        if self.honoured is not None:
            self.backoff.note_status(code)
        return code not in _NOT_OFFERED

    def _note_retry(self, retry: float) -> None:
        self.backoff.retry = retry

    def _accept(self, message: Message) -> bool:
        """Take one message of the stream; returns whether more are wanted.

        Raises:
            BackendProtocolError: The message came before the acknowledgement.
        """
        match message:
            case Notification(method=method) if method == CANCELLED:
                return not same_id(message.params.get("requestId"), self._request_id)
            case Notification() if self._is_own(message.params):
                return self._accept_own(message.method, message.params)
            case _:  # a request, which servers must not send here, or a message for another request
                pass
        if not self._is_acknowledged:
            detail = f"answered {LISTEN!r} with something else before {ACKNOWLEDGED!r}"
            raise BackendProtocolError(self.backend_id, detail)
        return True

    def _is_own(self, params: JSON) -> bool:
        meta = params.get("_meta")
        return isinstance(meta, dict) and same_id(meta.get(SUBSCRIPTION_ID), self._request_id)

    def _accept_own(self, method: str, params: JSON) -> bool:
        if method == ACKNOWLEDGED and not self._is_acknowledged:
            return self._note_acknowledgement(self.wanted.honoured_by(params))
        if self.honoured is None or not self._is_acknowledged:
            shown = self._channel.blot(method)[:MOST_QUOTED]
            detail = f"answered {LISTEN!r} with {shown!r} before {ACKNOWLEDGED!r}"
            raise BackendProtocolError(self.backend_id, detail)
        of_a_list = any(method == LIST_CHANGED[kind] for kind in self.honoured.kinds)
        of_a_resource = method == RESOURCE_UPDATED and bool(self.honoured.uris) and isinstance(params.get("uri"), str)
        if of_a_list or of_a_resource:  # "only what was asked for"
            self.backoff.note_use()
            self._on_event(method, params)
        return True

    def _note_acknowledgement(self, honoured: Wanted) -> bool:
        again = self.listening == "retrying"
        self._acknowledging.deadline = math.inf
        self._is_acknowledged, self.honoured = True, honoured
        self.was_open = self.was_open or bool(honoured)
        self.note_attempt(trio.current_time(), None)
        if not honoured:
            return False
        if honoured != self.wanted:
            logger.info("backend %r: tells of changes of less than it was asked to", self._channel.backend_id)
        self.listening = "open"
        self.settled.set()
        if again:
            report_missed(self._on_event, honoured.kinds, honoured.uris)
        else:
            self._on_listening(honoured.kinds)
        return True
