"""`subscriptions/listen` of the modern era: one request that stays open and brings the changes asked for.

Over HTTP its response is a stream of its own, over stdio what it brings is among everything else: see `Carrier`.

What is asked for cannot be changed on an open stream. So whoever changes the set of subscribed resources opens another
stream, and the one before ends once the new one is acknowledged: nothing is missed in between.

Source: MCP 2026-07-28, subscriptions. It contradicts itself on how a stream ends: a result, a `cancelled`, and an end
without a word are all taken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import attrs
import trio

from trio_vmcp._client.channels.streamable import MOST_QUOTED, HttpRefusal, refusal
from trio_vmcp._client.listening import (
    HELD_LONG,
    LIST_CHANGED,
    LIST_KEYS,
    MOST_SUBSCRIPTIONS,
    RESOURCE_UPDATED,
    Listening,
    Patience,
    tell_missed,
    too_many_subscriptions,
)
from trio_vmcp._nursery import start_if_open
from trio_vmcp._protocol.jsonrpc import ErrorReply, Message, Notification, Result, encode_request, same_id
from trio_vmcp.connector import EventSink
from trio_vmcp.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from trio_vmcp.models import JSON

__all__ = ["LISTEN", "SUBSCRIPTION_ID", "Carrier", "Ear", "Refused", "Subscriptions"]

logger = logging.getLogger("trio_vmcp.client")

LISTEN = "subscriptions/listen"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"
METHOD_NOT_FOUND, INVALID_PARAMS = -32601, -32602
_NOT_OFFERED = frozenset({404, 405, 406, 501, METHOD_NOT_FOUND})  # HTTP's ways to say it, and JSON-RPC's
# s from the request to the acknowledgement, which is the first message. Behind it there is no limit: a stream may be
# silent for days.
ACKNOWLEDGE_TIMEOUT = 30.0

Refused: TypeAlias = Result | ErrorReply | HttpRefusal
"""What a backend answers in place of a stream, or to end one."""
Watched: TypeAlias = Callable[[tuple[str, ...]], None]
"""Told of the kinds of lists whose changes are heard of from now on."""


class Ear(Protocol):
    """Whoever a stream is for."""

    def begin(self, request_id: int) -> None:
        """A request of this id goes out now; what comes by its stream is tagged with it."""
        ...

    def take(self, message: Message) -> bool:
        """One message of the stream. False: no more is wanted.

        Raises:
            BackendProtocolError: It has no place there.
        """
        ...

    def be_patient(self, retry: float) -> None:
        """The stream asks not to be opened again within so many seconds of its end."""
        ...


class Carrier(Protocol):
    """What such a request goes out by, and its stream comes back by."""

    @property
    def backend_id(self) -> str: ...

    @property
    def is_over(self) -> bool:
        """Nothing is carried any more, whoever asks."""
        ...

    async def carry(self, params: JSON, ear: Ear) -> Refused | None:
        """Send `subscriptions/listen`, and hand over what comes of it until it ends or `ear` wants no more. Cancelled,
        it takes the request back. Returns an answer that `ear` has not seen.

        Raises:
            BackendError: There was no stream, or it broke.
        """
        ...


@attrs.frozen
class Wanted:
    """What a stream is to bring: kinds of lists, and resources."""

    kinds: tuple[str, ...]
    uris: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.kinds or self.uris)

    def params(self) -> JSON:
        wanted: JSON = {LIST_KEYS[kind]: True for kind in self.kinds}
        if self.uris:
            wanted["resourceSubscriptions"] = list(self.uris)
        return {"notifications": wanted}

    def honoured_by(self, acknowledgement: JSON) -> Wanted:
        """The part of it that a server has agreed to."""
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
    """What one client is told of by one backend."""

    _carrier: Carrier = attrs.field(alias="carrier")
    _events: EventSink = attrs.field(alias="events", repr=False)
    _watched: Watched = attrs.field(alias="watched", repr=False)
    _nursery: trio.Nursery = attrs.field(alias="nursery", repr=False)
    _retries: tuple[float, float] = attrs.field(alias="retries")  # s, the first and the longest
    _kinds: tuple[str, ...] = attrs.field(default=(), init=False)
    _current: _Listener | None = attrs.field(default=None, init=False)
    _trial: _Listener | None = attrs.field(default=None, init=False)  # becomes the current one, or nothing
    _changing: trio.Lock | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    @property
    def listening(self) -> Listening:
        return "none" if self._current is None else self._current.listening

    @property
    def uris(self) -> tuple[str, ...]:
        return () if self._current is None else self._current.wanted.uris

    def open(self, kinds: tuple[str, ...]) -> None:
        """Hear of changes of these kinds of lists from now on, and of the resources subscribed to so far."""
        self._kinds = kinds
        before, wanted = self._current, Wanted(kinds, self.uris)
        self._current = self._listener(wanted, is_trial=False) if wanted else None
        if before is not None:
            before.close()

    def close(self) -> None:
        """End every stream, without waiting; none is opened any more."""
        self._closed = True
        for listener in (self._current, self._trial):
            if listener is not None:
                listener.close()

    async def subscribe(self, uri: str) -> None:
        """Hear of changes of a resource.

        Raises:
            MessageTooLarge: There are MOST_SUBSCRIPTIONS already.
            BackendRejected: The backend does not offer it.
            BackendError: It did not answer; the subscriptions are as before.
        """
        async with self._one_at_a_time():
            if uri in self.uris and self.listening == "open":
                return
            uris = (*(known for known in self.uris if known != uri), uri)
            if len(uris) > MOST_SUBSCRIPTIONS:
                raise too_many_subscriptions(self._carrier.backend_id)
            await self._change(uris, uri)

    async def unsubscribe(self, uri: str) -> None:
        """Hear of it no more.

        Raises:
            BackendError: As for `subscribe`.
        """
        async with self._one_at_a_time():
            if uri in self.uris:
                await self._change(tuple(known for known in self.uris if known != uri), None)

    def _one_at_a_time(self) -> trio.Lock:
        if self._changing is None:  # few clients have subscriptions
            self._changing = trio.Lock()
        return self._changing

    async def _change(self, uris: tuple[str, ...], needed: str | None) -> None:
        before, wanted, trial = self._current, Wanted(self._kinds, uris), None
        if wanted:
            trial = self._trial = self._listener(wanted, is_trial=True)
            try:
                await trial.settled.wait()
                trial.require(needed)
            except BaseException:
                trial.close()
                raise
            finally:
                self._trial = None
        self._current = trial
        if before is not None:
            # It would have told of its gap once it was back.
            if trial is not None and before.listening in ("retrying", "given up"):
                tell_missed(self._events, trial.heard_of.kinds, trial.heard_of.uris)
            before.close()

    def _listener(self, wanted: Wanted, *, is_trial: bool) -> _Listener:
        if self._closed:
            raise BackendUnavailable(self._carrier.backend_id, "cannot be listened to: its connection is closed")
        encode_request(0, LISTEN, wanted.params())  # what cannot be sent is the caller's mistake, and not the task's
        listener = _Listener(
            carrier=self._carrier,
            events=self._events,
            watched=self._watched,
            patience=Patience(*self._retries),
            wanted=wanted,
            is_trial=is_trial,
        )
        if not start_if_open(self._nursery, listener.run):
            raise BackendUnavailable(self._carrier.backend_id, "cannot be listened to: its connection is closed")
        return listener


@attrs.define(eq=False, kw_only=True)
class _Listener:
    """One task: a stream for one set of wishes, opened again for as long as there is patience. An `Ear`.

    Attributes:
        settled: It was acknowledged for the first time, or never will be.
        is_trial: Somebody waits for that: then the first attempt is the only one until it was.
        honoured: By the last acknowledgement.
        problem: Why there was none.
    """

    _carrier: Carrier = attrs.field(alias="carrier")
    _events: EventSink = attrs.field(alias="events", repr=False)
    _watched: Watched = attrs.field(alias="watched", repr=False)
    _patience: Patience = attrs.field(alias="patience")
    wanted: Wanted
    is_trial: bool
    listening: Listening = attrs.field(default="none", init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    honoured: Wanted | None = attrs.field(default=None, init=False)
    problem: BackendError | None = attrs.field(default=None, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    # Of the request that is out now.
    _request_id: int = attrs.field(default=0, init=False)
    _patient: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _is_acknowledged: bool = attrs.field(default=False, init=False)
    _outcome: Refused | None = attrs.field(default=None, init=False)

    @property
    def heard_of(self) -> Wanted:
        return self.honoured or Wanted((), ())

    def close(self) -> None:
        """End it, without waiting. "Closing the response stream" is how a subscription is cancelled."""
        self.listening = "none"
        self._scope.cancel(reason="these subscriptions are over")

    def require(self, uri: str | None) -> None:
        """Raise what became of a trial, if it is not what was wanted.

        Raises:
            BackendError: There was no acknowledgement, or it leaves `uri` out.
        """
        if self.honoured is None:
            raise self.problem or BackendUnavailable(
                self._carrier.backend_id, "closed a stream before it acknowledged it"
            )
        if uri is not None and uri not in self.honoured.uris:
            raise BackendRejected(
                self._carrier.backend_id,
                f"does not tell of changes of the resource {uri!r}",
                code=INVALID_PARAMS,
                message="not honoured",
            )

    async def run(self) -> None:
        """Listen, until it is closed, not offered, or given up."""
        try:
            with self._scope:
                await self._keep()
        finally:
            self.settled.set()

    async def _keep(self) -> None:
        while await self._once():
            if self.is_trial and self.honoured is None:
                break
            delay = self._patience.next_delay()
            if delay is None:
                self.listening = "given up"
                logger.warning(
                    "backend %r: its subscriptions ended too often without use; not listening any more",
                    self._carrier.backend_id,
                )
                return
            self.listening = "retrying"
            await trio.sleep(delay)
        self.listening = "none"

    async def _once(self) -> bool:
        """One request and what comes by it. False: there is no use in another."""
        self._outcome, self._is_acknowledged, self.problem = None, False, None
        started_at = trio.current_time()
        try:
            with trio.CancelScope(deadline=started_at + ACKNOWLEDGE_TIMEOUT) as self._patient:
                self._outcome = await self._carrier.carry(self.wanted.params(), self) or self._outcome
        except BackendError as error:
            self.problem = error
            self._patience.note(error)
            logger.debug("%s, on its subscriptions", error)
            if self._carrier.is_over:
                return False
        if self._patient.cancelled_caught:
            detail = f"did not acknowledge {LISTEN!r} within {ACKNOWLEDGE_TIMEOUT} s"
            self.problem = BackendTimeout(self._carrier.backend_id, detail)
        if self._is_acknowledged and trio.current_time() - started_at >= HELD_LONG:
            self._patience.reward()
        if isinstance(self._outcome, ErrorReply | HttpRefusal):
            self.problem = refusal(self._carrier.backend_id, LISTEN, self._outcome)
            logger.debug("%s", self.problem)
            code = self._outcome.code if isinstance(self._outcome, ErrorReply) else self._outcome.status
            if self.honoured is not None:
                self._patience.note_status(code)
            return code not in _NOT_OFFERED
        return not self._is_acknowledged or bool(self.honoured)

    def begin(self, request_id: int) -> None:
        self._request_id = request_id

    def be_patient(self, retry: float) -> None:
        self._patience.retry = retry

    def take(self, message: Message) -> bool:
        match message:
            case Result() | ErrorReply():
                if same_id(message.id, self._request_id) or (isinstance(message, ErrorReply) and message.id is None):
                    self._outcome = message
                    return False
            case Notification(method="notifications/cancelled"):
                return not same_id(message.params.get("requestId"), self._request_id)
            case Notification() if self._is_ours(message.params):
                return self._hear(message.method, message.params)
            case _:  # a request, which servers must not send here, or somebody else's
                pass
        if not self._is_acknowledged:
            detail = f"answered {LISTEN!r} with something else before {ACKNOWLEDGED!r}"
            raise BackendProtocolError(self._carrier.backend_id, detail)
        return True

    def _is_ours(self, params: JSON) -> bool:
        meta = params.get("_meta")
        return isinstance(meta, dict) and same_id(meta.get(SUBSCRIPTION_ID), self._request_id)

    def _hear(self, method: str, params: JSON) -> bool:
        if method == ACKNOWLEDGED and not self._is_acknowledged:
            return self._acknowledged(self.wanted.honoured_by(params))
        if self.honoured is None or not self._is_acknowledged:
            detail = f"answered {LISTEN!r} with {method[:MOST_QUOTED]!r} before {ACKNOWLEDGED!r}"
            raise BackendProtocolError(self._carrier.backend_id, detail)
        of_a_list = any(method == LIST_CHANGED[kind] for kind in self.honoured.kinds)
        of_a_resource = method == RESOURCE_UPDATED and bool(self.honoured.uris) and isinstance(params.get("uri"), str)
        if of_a_list or of_a_resource:  # "only what was asked for"
            self._patience.reward()
            self._events(method, params)
        return True

    def _acknowledged(self, honoured: Wanted) -> bool:
        again = self.listening == "retrying"
        self._patient.deadline = math.inf
        self._is_acknowledged, self.honoured = True, honoured
        if not honoured:
            return False
        if honoured != self.wanted:
            logger.info("backend %r: tells of changes of less than it was asked to", self._carrier.backend_id)
        self.listening = "open"
        self.settled.set()
        if again:
            tell_missed(self._events, honoured.kinds, honoured.uris)
        else:
            self._watched(honoured.kinds)
        return True
