"""How long to wait before the next attempt to connect: by endpoint, by principal and by backend, in one place.

A turn is the permission to make one attempt. An endpoint's turns are shared by all sessions of a factory. When a
thousand sessions lose the same backend, one attempt at a time runs against it: a failure makes all of them wait, a
success lets the next attempt begin at once. Otherwise all sessions would hit a backend together when it comes back.

Only failures that tell about the endpoint count there (`tells_of_endpoint`), and an attempt that hangs holds the line
for `LINE_TIMEOUT` s at most: what a backend answers to one principal, or leaves unanswered, delays no other. Sessions
of one principal share turns of their own for that, one attempt at a time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable
from weakref import WeakSet, WeakValueDictionary

import attrs
import trio

from trio_vmcp._light_event import LightEvent
from trio_vmcp._principal import principal_key
from trio_vmcp._protocol.headers import limited
from trio_vmcp.errors import BackendError, BackendRejected, BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.metadata import endpoint_digest
from trio_vmcp.models import Backend, FailureReason

__all__ = ["JITTER", "Backoff", "Endpoints", "Reconnects", "Turns", "tells_of_endpoint"]

JITTER = 0.2  # of a delay, either way: attempts that failed together must not be repeated together
# s. Words: the text of a refusal says that the session is gone, and its HTTP status does not. They are believed once
# within WORDS_INTERVAL; after that they are ignored for DOUBT.
WORDS_INTERVAL, DOUBT = 60.0, 600.0
LEAST_DELAY = 0.05  # s, also if 0 is configured: else attempts would run in a tight loop
LINE_TIMEOUT, LEAST_LINE_TIMEOUT = 0.5, 0.01  # s, that an attempt holds the line of its endpoint


def tells_of_endpoint(error: BackendError) -> bool:
    """Whether an error of an attempt or connection is about the endpoint: it was not reached, it died, or something
    there answered HTTP 5xx (RFC 9110 §15.6). Any other answer, or none in time, may be about the credentials.
    """
    if error.in_credentials:
        return False
    if isinstance(error, BackendRejected):
        return 500 <= error.code < 600  # HTTP; the codes of JSON-RPC errors are negative
    return isinstance(error, BackendUnavailable)


@attrs.define(eq=False)
class Backoff:
    """Delays that double. Pure: chance is passed in.

    Attributes:
        min_delay: s, the first; `math.inf`: never try again.
        max_delay: s, the longest, unless the first is longer.
    """

    min_delay: float
    max_delay: float
    _delay: float = attrs.field(default=0.0, init=False)

    def next(self, chance: float) -> float:
        """s to wait after one more failure in a row; `chance`, 0 to 1, is the point between -20 % and +20 %."""
        self._delay = max(min(self._delay * 2, self.max_delay), self.min_delay, LEAST_DELAY)
        return self._delay * (1 - JITTER + 2 * JITTER * chance)

    def reset(self) -> None:
        """The next failure counts as the first again."""
        self._delay = 0.0


@attrs.define(eq=False)
class Turns:
    """Which session may connect to one endpoint next, and when: of all sessions of a factory, or those of a principal.
    Most are never waited for, so what a wait needs is made on first use.
    """

    _backoff: Backoff
    _line: trio.Lock | None = attrs.field(default=None, init=False)
    _not_before: float = attrs.field(default=0.0, init=False)
    _reached: trio.Event | None = attrs.field(default=None, init=False)  # set by a success, and replaced
    _succeeded_at: float | None = attrs.field(default=None, init=False)
    _line_timeout: float = attrs.field(default=LINE_TIMEOUT, init=False)  # s
    # Of principals whose latest failure was the endpoint's: once it is reached, they may try at once, too.
    _waiting: WeakSet[Turns] | None = attrs.field(default=None, init=False, repr=False)

    @property
    def line(self) -> trio.Lock:
        """FIFO lock around one attempt; never held while sleeping."""
        if self._line is None:
            self._line = trio.Lock()
        return self._line

    @property
    def wait(self) -> float:
        """s until the next attempt may begin."""
        return max(self._not_before - trio.current_time(), 0.0)

    async def pause(self) -> None:
        """Sleep until the next turn is due, or until any session has reached the endpoint."""
        if self._reached is None:
            self._reached = trio.Event()
        reached = self._reached
        with trio.move_on_at(self._not_before):
            await reached.wait()

    async def hold_line(self, reported: LightEvent) -> None:
        """Wait for an attempt in the line: until it has reported, but not for ever. An attempt that takes longer halves
        the time for the next, so that many that hang hold up the line for `2 * LINE_TIMEOUT` s and little more.
        """
        with trio.move_on_after(self._line_timeout):
            await reported.wait()
        self._line_timeout = LINE_TIMEOUT if reported.is_set() else max(self._line_timeout / 2, LEAST_LINE_TIMEOUT)

    def note_success(self) -> None:
        """Other sessions may try at once. The delay is reset only once this success has lasted: else a
        backend that comes and goes would be tried at the shortest delay every time.
        """
        self._succeeded_at = trio.current_time()
        self._end_wait()
        for turns in self._waiting or ():
            turns._end_wait()
        self._waiting = None

    def note_own_failure(self, own: Turns, *, is_of_endpoint: bool) -> None:
        """An attempt of a principal failed, or its connection was lost. Each failure counts in its `own` turns; one
        that is of the endpoint, here as well.
        """
        if is_of_endpoint:
            self.note_failure()
            self._waiting = WeakSet() if self._waiting is None else self._waiting
            self._waiting.add(own)
        elif self._waiting is not None:
            self._waiting.discard(own)
        own.note_failure()

    def _end_wait(self) -> None:
        self._not_before = 0.0
        if self._reached is not None:
            self._reached.set()
            self._reached = None

    def note_failure(self) -> None:
        """An attempt failed, or a connection was lost. Failures before the next turn is due report the same outage:
        they count once.
        """
        now = trio.current_time()
        if now < self._not_before:
            return
        if self._succeeded_at is not None and now - self._succeeded_at > self._backoff.max_delay:
            self._backoff.reset()
        self._succeeded_at = None
        self._not_before = now + self._backoff.next(random.random())


@attrs.define(eq=False)
class Endpoints:
    """The endpoints of one factory, each for as long as a session has a backend there, and their principals.

    Attributes:
        min_delay, max_delay: s between attempts: from the first, doubled up to the second, ±20 %.
    """

    min_delay: float
    max_delay: float
    _turns: WeakValueDictionary[Hashable, Turns] = attrs.field(factory=WeakValueDictionary, init=False, repr=False)

    def reconnects(self, backend: Backend, identity: Identity | None) -> Reconnects:
        """Those of one backend of a session that connects with this identity."""
        endpoint = endpoint_digest(backend)
        own = self.turns((endpoint, principal_key(backend, identity)))
        return Reconnects(self.turns(endpoint), own, self)

    def no_reconnects(self) -> Reconnects:
        """Those of a backend that is never connected."""
        turns = Turns(self.new_backoff())
        return Reconnects(turns, turns, self)

    def turns(self, key: Hashable) -> Turns:
        """The turns of an endpoint, or of a principal there. Keep them: they are forgotten with the last reference."""
        turns = self._turns.get(key)
        if turns is None:
            turns = self._turns[key] = Turns(self.new_backoff())
        return turns

    def new_backoff(self) -> Backoff:
        return Backoff(self.min_delay, self.max_delay)


@attrs.define(eq=False)
class Reconnects:
    """When one backend of a session may be connected anew, and when its connection may be replaced.

    Attributes:
        endpoint_turns: Shared with all sessions that have a backend at this endpoint.
        own_turns: Shared with those of them that connect as the same principal.
    """

    endpoint_turns: Turns = attrs.field(repr=False)
    own_turns: Turns = attrs.field(repr=False)
    _endpoints: Endpoints = attrs.field(repr=False)
    # These two are made when they are needed, which is seldom.
    _auth: Backoff | None = attrs.field(default=None, init=False, repr=False)
    _replace: Backoff | None = attrs.field(default=None, init=False, repr=False)
    _authorized_after: float = attrs.field(default=0.0, init=False)
    _joined_at: float = attrs.field(default=-math.inf, init=False)
    _no_replacement_before: float = attrs.field(default=-math.inf, init=False)
    _asked_until: float = attrs.field(default=-math.inf, init=False)  # the backend asked to be left alone until then
    _believed_at: float = attrs.field(default=-math.inf, init=False)  # when words last had a connection replaced
    _doubted_until: float = attrs.field(default=-math.inf, init=False)

    @property
    def _auth_backoff(self) -> Backoff:
        """Of this session alone: refused credentials say nothing about other sessions."""
        if self._auth is None:
            self._auth = self._endpoints.new_backoff()
        return self._auth

    @property
    def _replace_backoff(self) -> Backoff:
        """A backend may report each new session as gone (on a stream, or with 503) although calls work. This delay
        keeps it from being sent `initialize` again and again.
        """
        if self._replace is None:
            self._replace = self._endpoints.new_backoff()
        return self._replace

    @property
    def is_due(self) -> bool:
        """The next turn may begin, the endpoint's and the principal's."""
        return self.endpoint_turns.wait <= 0 and self.own_turns.wait <= 0

    def note_joined(self) -> None:
        """An attempt has succeeded."""
        self._joined_at = trio.current_time()
        self._auth = None
        self.own_turns.note_success()
        self.endpoint_turns.note_success()

    def note_failure(
        self, reason: FailureReason, retry_after: float | None = None, *, is_of_endpoint: bool = False
    ) -> None:
        """An attempt failed, or a connection was lost.

        Args:
            retry_after: s, from the backend. Delays this session alone: a 429 is about one caller.
            is_of_endpoint: The failure is one that other principals would meet as well.
        """
        self._asked_until = trio.current_time() + limited(retry_after)
        self.confirm_words()
        if reason is FailureReason.LIMIT:  # the next attempt will be over the limit, too: wait the longest delay
            self._asked_until = max(self._asked_until, trio.current_time() + self._replace_backoff.max_delay)
        if reason is FailureReason.UNAUTHORIZED:
            self._authorized_after = trio.current_time() + self._auth_backoff.next(random.random())
        else:
            self.endpoint_turns.note_own_failure(self.own_turns, is_of_endpoint=is_of_endpoint)

    async def wait_until_allowed(self) -> None:
        """Sleep while this session's credentials count as refused, or as long as the backend asked."""
        await trio.sleep_until(max(self._authorized_after, self._asked_until))

    async def wait_turn(self) -> None:
        """Sleep until the next attempt may begin."""
        await self.wait_until_allowed()
        await self.own_turns.pause()
        await self.endpoint_turns.pause()

    def take_replacement_time(self) -> float:
        """A stream says that the backend session is gone. Returns when to replace the connection, by
        `trio.current_time()`: once it has lasted as long as the current delay. Each request for a time doubles the
        delay; a connection that lasts longer than `max_delay` resets it.
        """
        if trio.current_time() - self._joined_at > self._replace_backoff.max_delay:
            self._replace_backoff.reset()
        return self._joined_at + self._replace_backoff.next(random.random())

    def try_words(self) -> bool:
        """A call was refused in words which say that the session is gone. Returns whether to believe them: the first
        time, yes. If the new session gets the same refusal within WORDS_INTERVAL, no: the cause is something else.
        """
        now = trio.current_time()
        if now < self._doubted_until:
            return False
        if now - self._believed_at < WORDS_INTERVAL:
            self.doubt_words()
            return False
        self._believed_at = now
        return True

    def confirm_words(self) -> None:
        """The words were true: the refused call was answered in a new session, or the backend had been away. The next
        words are believed at once.
        """
        self._believed_at = -math.inf

    def doubt_words(self) -> None:
        """Such words of this backend mean nothing for DOUBT seconds."""
        self._doubted_until = trio.current_time() + DOUBT

    def try_to_replace(self) -> bool:
        """A 503 may mean a lost session or a busy backend. Returns whether to replace the connection: yes, unless that
        was done a short time ago. An `initialize` for each 503 would keep a busy backend busy.
        """
        now = trio.current_time()
        if now < self._no_replacement_before:
            return False
        if now - self._no_replacement_before > self._replace_backoff.max_delay:
            self._replace_backoff.reset()
        self._no_replacement_before = now + self._replace_backoff.next(random.random())
        return True
