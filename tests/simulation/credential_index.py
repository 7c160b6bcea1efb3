"""The events of a trace that are about credentials, indexed for the checks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

import attrs

from simulation.history import GrantTokens, History, WithholdTokens
from simulation.trace import AuthCalled, RequestSigned, Seen, Sent, SessionIdRead, TokenFetched, TokensRotated, Trace

__all__ = ["CredentialIndex"]


@attrs.define
class CredentialIndex:
    """Events about credentials. A position is an index into the trace's events.

    Attributes:
        asked, signed, sent, fetched: Events by the number of the call of `auth`.
        seen: By request number: the request each time its backend received it.
        is_in_use: The factories have an `auth`.
    """

    history: History
    trace: Trace
    asked: dict[int, tuple[int, AuthCalled]] = attrs.field(factory=dict, init=False)
    signed: dict[int, list[tuple[int, RequestSigned]]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    sent: dict[int | None, list[tuple[int, Sent]]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    fetched: dict[int, list[TokenFetched]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    seen: dict[int, list[Seen]] = attrs.field(factory=dict, init=False)
    _rotated: dict[tuple[str, int], float] = attrs.field(factory=dict, init=False)
    _attempts: dict[tuple[str, str], set[int]] = attrs.field(factory=lambda: defaultdict(set), init=False)

    def __attrs_post_init__(self) -> None:
        for position, event in enumerate(self.trace.events):
            match event:
                case AuthCalled():
                    self.asked[event.number] = position, event
                case RequestSigned():
                    self.signed[event.auth_call].append((position, event))
                case TokenFetched():
                    self.fetched[event.auth_call].append(event)
                case TokensRotated():
                    self._rotated[event.backend_id, event.generation] = event.at
                case Sent():
                    self.sent[event.auth_call].append((position, event))
                    self._note_attempt(event)
                case SessionIdRead():
                    self._note_attempt(event)
                case _:
                    pass
        for seen in self.trace.seen:
            if seen.number is not None:
                self.seen.setdefault(seen.number, []).append(seen)

    @property
    def is_in_use(self) -> bool:
        return any(spec.guard is not None for spec in self.history.backends)

    def is_guarded(self, backend_id: str) -> bool:
        return any(spec.id == backend_id and spec.guard is not None for spec in self.history.backends)

    def attempt_of(self, auth_call: int | None) -> int | None:
        """The attempt that made the connection for which `auth` was called."""
        return None if auth_call is None else self.asked[auth_call][1].attempt

    def was_withheld(self, backend_id: str, since: float, until: float) -> bool:
        """At some moment of this time a guarded backend had no good token for anything."""
        began: float | None = None
        for step in self.history.steps:
            if (
                not isinstance(step, WithholdTokens | GrantTokens)
                or self.history.backends[step.backend].id != backend_id
            ):
                continue
            if isinstance(step, WithholdTokens):
                began = step.at if began is None else began
            elif began is not None:
                if began <= until and step.at >= since:
                    return True
                began = None
        return began is not None and began <= until

    def _retired_at(self, seen: Seen) -> float:
        """The time from which the request's token was no longer good."""
        if seen.token is None:
            return -math.inf
        return self._rotated.get((seen.token.backend_id, seen.token.generation + 1), math.inf)

    def were_overtaken(self, attempts: set[int], backend_id: str, since: float, until: float) -> bool:
        """A request of these connections was refused twice, since its second token was outdated again by a rotation."""
        return any(
            received[-1].backend_id == backend_id
            and since <= received[-1].at <= until
            and self.attempt_of(received[-1].auth_call) in attempts
            and self._is_overtaken(received)
            for received in self.seen.values()
        )

    def were_struck(self, attempts: set[int], backend_id: str, since: float, until: float) -> bool:
        """A fault answered a request of these connections with 401 or 403, though its token was good."""
        return any(
            seen.backend_id == backend_id
            and since <= seen.at <= until
            and self.attempt_of(seen.auth_call) in (None, *attempts)  # None: no `auth` in this history
            and seen.status in (401, 403)
            and not seen.turned_away
            for seen in self.trace.seen
        )

    def fetching(self, backend_id: str, since: float, until: float) -> float:
        """s of this time in which a new token was being fetched."""
        total, covered = 0.0, since
        for fetched in sorted((each for many in self.fetched.values() for each in many), key=lambda each: each.since):
            if self.asked[fetched.auth_call][1].backend_id == backend_id:
                total += max(0.0, min(fetched.at, until) - max(fetched.since, covered))
                covered = max(covered, fetched.at)
        return total

    def had_no_way_in(self, backend_id: str, session_id: str) -> bool:
        """A backend session's DELETE was refused with 401, or could not be sent without a token."""
        attempts = self._attempts[backend_id, session_id]
        deletes = self._deletes(backend_id, session_id)
        if not any(sent.verb == "DELETE" for sent in self._all_sent(backend_id, session_id)):
            return any(self._went_without(attempt) for attempt in attempts)
        return bool(deletes) and all(self._was_kept_out(received) for received in deletes)

    def sent_again(self, backend_id: str, session_id: str | None) -> int:
        """How many DELETEs of a backend session repeat a refused DELETE with another token."""
        sent = [sent for sent in self._all_sent(backend_id, session_id) if sent.verb == "DELETE"]
        received = self._deletes(backend_id, session_id)
        times = Counter(event.number for event in sent)
        return sum(times[each[0].number] - 1 for each in received if each[0].turned_away)

    def _all_sent(self, backend_id: str, session_id: str | None) -> Iterator[Sent]:
        everything = (event for many in self.sent.values() for _, event in many)
        return (event for event in everything if (event.backend_id, event.session_id) == (backend_id, session_id))

    def _deletes(self, backend_id: str, session_id: str | None) -> list[list[Seen]]:
        return [
            received
            for received in self.seen.values()
            if received[0].verb == "DELETE"
            and (received[0].backend_id, received[0].session_id) == (backend_id, session_id)
        ]

    def _went_without(self, attempt: int) -> bool:
        """For the attempt's last call of `auth` no token was fetched, and nothing was sent."""
        last = max((number for number, (_, asked) in self.asked.items() if asked.attempt == attempt), default=None)
        return last is not None and not self.sent[last] and any(each.token is None for each in self.fetched[last])

    def _was_kept_out(self, received: list[Seen]) -> bool:
        """The request was refused to the end, and with reason."""
        first, last = received[0], received[-1]
        given_up = any(
            asked.after == first.auth_call and any(fetched.token is None for fetched in self.fetched[number])
            for number, (_, asked) in self.asked.items()
        )
        reason = given_up or self._is_overtaken(received) or self.was_withheld(last.backend_id, first.at, last.at)
        return last.turned_away and reason

    def _is_overtaken(self, received: list[Seen]) -> bool:
        first, second = received[0], received[-1]
        if first is second or not second.turned_away or first.auth_call is None:
            return False
        set_out_at = self.asked[first.auth_call][1].at
        is_new = second.token is not None and (first.token is None or second.token.generation > first.token.generation)
        return is_new and self._retired_at(second) >= set_out_at

    def _note_attempt(self, event: Sent | SessionIdRead) -> None:
        attempt = self.attempt_of(event.auth_call)
        if event.session_id is not None and attempt is not None:
            self._attempts[event.backend_id, event.session_id].add(attempt)
