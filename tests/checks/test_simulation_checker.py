"""Each check of the simulation can fail: a library with a planted defect is reported by the check that is meant to.

Every defect has a small history of its own, in which the library without the defect breaks no promise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio
from simulation.checker import CHECKS, judge
from simulation.history import (
    AddBackend,
    BackendSpec,
    Call,
    CancelCaller,
    ChangeList,
    Close,
    Disturb,
    Exit,
    FailStorage,
    Freeze,
    Guard,
    HealStorage,
    History,
    InjectFault,
    Inspect,
    Open,
    RemoveBackend,
    Restore,
    RotateTokens,
    SetAttributes,
    SetLogLevel,
    Step,
    WithholdTokens,
)
from simulation.identities import ALICE
from simulation.world import run_history
from support.leaks import WATCH

import trio_vmcp._client.cache
import trio_vmcp._client.channels.process
import trio_vmcp._client.http.link
import trio_vmcp._session.call
import trio_vmcp._session.calls
import trio_vmcp._session.connecting
import trio_vmcp._session.observed_calls
import trio_vmcp._session.row
import trio_vmcp._session.stopping
import trio_vmcp._session.stored_row
from trio_vmcp import JSON, Backend, BackendUnavailable, Bare, FactorySettings, SessionClosed, SessionMetadata
from trio_vmcp._client.channels.channel import Ask
from trio_vmcp._client.client import Client
from trio_vmcp._client.handlers import BoundHandlers
from trio_vmcp._client.handshake import HandshakeClient
from trio_vmcp._client.http.credentials import Credentials
from trio_vmcp._client.http.link import HttpLink
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._client.notice_feed import NoticeFeed
from trio_vmcp._client.server_requests import ServerRequests
from trio_vmcp._client.stateless import StatelessClient
from trio_vmcp._protocol.methods import Method
from trio_vmcp._request_note import Silence
from trio_vmcp._session.admission import Admission
from trio_vmcp._session.admission import Call as AdmittedCall
from trio_vmcp._session.attribute_changes import AttributeChanges
from trio_vmcp._session.breaker import Breaker
from trio_vmcp._session.calls import Calls
from trio_vmcp._session.connecting import Attempt
from trio_vmcp._session.connection import Connection
from trio_vmcp._session.health import Health
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.log_levels import LevelTeller
from trio_vmcp._session.member import Member, Waking
from trio_vmcp._session.members import Membership
from trio_vmcp._session.observed_calls import ObservedCalls
from trio_vmcp._session.observing import SessionReporter
from trio_vmcp._session.owner import SessionOwner
from trio_vmcp._session.reconnects import Backoff, Endpoints
from trio_vmcp._session.refresh import Refresher
from trio_vmcp._session.row import RowContents, SessionRow
from trio_vmcp._session.row_storage import RowStorage
from trio_vmcp._session.stored_row import Held, Sent
from trio_vmcp._session.use_marks import MARKS_PER_LIFE
from trio_vmcp.factory import DefaultSessionFactory
from trio_vmcp.routing import Router
from trio_vmcp.testing import CONNECT, Hang

Plant = Callable[[pytest.MonkeyPatch], None]

SETTINGS = FactorySettings(drain_timeout=5.0, teardown_timeout=2.0, request_timeout=3.0)
PATIENT = FactorySettings(backend_init_timeout=3.0, reconnect_max_delay=2.0, teardown_timeout=0.5)
LEGACY = (BackendSpec(id="b0", configured_era="legacy"),)
STREAMS = (BackendSpec(id="b0", answers="sse"),)
LASTING = (BackendSpec(id="b0", era="modern", ttl=1.0),)
DEAF = (BackendSpec(id="b0", transport="stdio", manners="deaf"),)
PARENT = (BackendSpec(id="b0", transport="stdio", manners="parent"),)
LONG = (Exit(at=40.0),)
TWINS = (BackendSpec(id="b0"), BackendSpec(id="b1"))  # whatever one of them offers, the other does, too

CLOSED: tuple[Step, ...] = (Open(), Call(at=1.0), Close(at=2.0))
TIMED_OUT: tuple[Step, ...] = (Open(), Call(at=1.0, seconds=20.0), Close(at=5.0))
CUT_OFF: tuple[Step, ...] = (Open(), Call(at=1.0, seconds=20.0), Close(at=1.0, drain_timeout=1.0))
REFUSED: tuple[Step, ...] = (Open(), Call(at=1.0, seconds=2.0), Close(at=2.0), Call(at=2.5))
GIVEN_UP: tuple[Step, ...] = (Open(), Call(at=1.0, seconds=2.0, cancel=CancelCaller(1.0)), Close(at=3.0))
STRANGER: tuple[Step, ...] = (Open(bound=True), Call(at=1.0, caller="wrong"), Close(at=2.0))
RETURNED: tuple[Step, ...] = (Open(), Close(at=1.0, terminate=False), Restore(at=2.0), Call(at=3.0), Close(at=4.0))
OUTAGE: tuple[Step, ...] = (
    Disturb(what="crash"),
    Open(),
    Disturb(at=2.0, what="return"),
    Inspect(at=20.0),
    Close(at=21.0),
)
TWO_WAIT: tuple[Step, ...] = (InjectFault(matches="POST", times=math.inf), Open(), Open(session=1), Inspect(at=20.0))
FORGOTTEN: tuple[Step, ...] = (
    Open(),
    Disturb(at=1.0, what="lose_sessions"),
    Call(at=2.0),
    Inspect(at=20.0),
    Close(at=21.0),
)
REMOVED: tuple[Step, ...] = (Open(), RemoveBackend(at=1.0), Close(at=5.0))
RELIST = ChangeList(at=1.0, names=("echo", "now"))
CHANGED: tuple[Step, ...] = (Open(), RELIST, Call(at=2.0), Inspect(at=20.0), Close(at=21.0))
QUESTION: tuple[Step, ...] = (Open(bound=True), Call(at=1.0, asks=1, question="sampling"), Close(at=10.0))
GIVEN_UP_ON: tuple[Step, ...] = (
    Open(),
    Call(at=1.0, asks=1, question="elicitation", reply="hang", timeout=0.5),
    Close(at=10.0),
)
TOO_OFTEN: tuple[Step, ...] = (
    Open(),
    InjectFault(at=1.0, matches=CONNECT, times=math.inf),
    Disturb(at=1.0, what="crash"),
    *[Call(at=2.0, timeout=1.5)] * 6,
    *[Call(at=5.0, timeout=1.5)] * 2,
    Close(at=20.0),
)
READ_TWICE: tuple[Step, ...] = (
    Open(),
    Call(at=1.0, kind="resource", plain=True),
    Disturb(at=2.0, what="update"),
    Call(at=5.0, kind="resource", plain=True),
    Close(at=6.0),
)
MODERN = (BackendSpec(id="b0", era="modern", configured_era="modern", answers="sse"),)
ASKED = Call(at=1.0, asks=1, question="elicitation", rounds="hand out")
HANDED_OUT: tuple[Step, ...] = (Open(), ASKED, Call(at=2.0, rounds="answer"), Close(at=3.0))
ANSWERED_BY_A_STRANGER: tuple[Step, ...] = (
    Open(bound=True),
    ASKED,
    Call(at=2.0, rounds="answer", caller="wrong"),
    Close(at=3.0),
)
LOG: tuple[Step, ...] = (Open(), Call(at=1.0, logs=3), Close(at=3.0))
GUARDED = (BackendSpec(id="b0", guard=Guard(seconds=0.1)),)
ROTATED: tuple[Step, ...] = (Open(), RotateTokens(at=1.0), Call(at=2.0), Close(at=3.0))
STOPPING = (BackendSpec(id="b0", stop_after=5.0),)
ASKING_LATE = (BackendSpec(id="b0", transport="sse", is_named=False, answers="sse", latency=0.001, stop_after=5.0),)
ASKED_TOO_LATE: tuple[Step, ...] = (
    Open(),
    Call(at=1.0, asks=1, question="sampling", reply="hang", timeout=0.001),  # over before the question arrives
    Inspect(at=20.0),
    Close(at=21.0),
)
FAR = (BackendSpec(id="b0", configured_era="legacy", answers="sse", latency=0.1),)
FROZEN: tuple[Step, ...] = (
    Open(),
    Freeze(at=0.15, seconds=10.0),  # the connection is made meanwhile, and the time for its lists is over
    Freeze(at=20.0, seconds=0.5),
    Call(at=21.0),
    Close(at=30.0),
)
STOPPED: tuple[Step, ...] = (Open(), Inspect(at=8.0), *[Call(at=10.0)] * 3, Inspect(at=14.0), Close(at=15.0))
WORKING = (BackendSpec(id="b0", answers="sse", progress_timeout=1.0),)
RENAMED = (BackendSpec(id="b0", renamed=(("echo", "fetch"),)),)
ALL_HANG: tuple[Step, ...] = tuple(InjectFault(backend=index, matches="POST", times=9) for index in range(2))


def wrapped(owner: type, name: str, around: Callable[..., Any]) -> Plant:
    """Replace a method by `around(original, self, …)`."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *args, **kw: around(original, self, *args, **kw))

    return plant


def replaced(module: object, name: str, value: object) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


def tells_of_answers(end: Any, self: ObservedCalls, seen: Any, method: str, outcome: str, **options: Any) -> None:
    if outcome == "ok":
        end(self, seen, method, outcome, **options)


def tells_nothing(report: Any, self: SessionReporter, **options: Any) -> None: ...


async def lingers(original: Any, factory: Any, *args: Any) -> None:
    await original(factory, *args)
    await trio.sleep(1.0)


async def never_returns(original: Any, *args: Any, **kw: Any) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def breaks_on_calls(original: Any, client: Any, method: str, *args: Any, **kw: Any) -> Any:
    if method == "tools/call":
        raise ExceptionGroup("of one error", [ValueError("raw")])
    return await original(client, method, *args, **kw)


async def sends_no_delete(original: Any, client: Any, *, terminate: bool) -> None:
    await original(client, terminate=False)


async def tells_its_id(original: Any, client: HandshakeClient, *, terminate: bool) -> None:
    logging.getLogger("trio_vmcp.client").debug("closes %s", client.record.session_id)
    await original(client, terminate=terminate)


async def hands_nothing_out(original: Any, client: Any, first: JSON, ask: Ask, method: Method) -> JSON:
    ask.note.hands_out_rounds = False
    result: JSON = await original(client, first, ask, method)
    return result


async def sends_answers_twice(original: Any, client: Any, ask: Ask, method: Method) -> JSON:
    if "requestState" in ask.params:
        await original(client, attrs.evolve(ask, id=next(client._channel.ids)), method)
    result: JSON = await original(client, ask, method)
    return result


async def sends_twice(original: Any, client: Any, ask: Ask, method: Any) -> Any:
    if ask.method in ("tools/call", "resources/read"):
        await original(client, ask, method)
    return await original(client, ask, method)


async def takes_longer(original: Any, session: Any, services: Any) -> None:
    if not session.life.is_closing:
        await trio.sleep(0.01)
    await original(session, services)


async def waits_longer(original: Any, client: Any, *args: Any, timeout: float, **kw: Any) -> Any:
    return await original(client, *args, timeout=timeout + 0.01, **kw)


def drains_longer(original: Any, session: Any, limit: float) -> None:
    original(session, limit + 1.0)


def has_one_place(original: Any, membership: Membership, *args: Any) -> Any:
    membership._places = trio.CapacityLimiter(1)
    return original(membership, *args)


async def admits_late(original: Any, admission: Admission, call: AdmittedCall) -> None:
    admission._calls.add(call)


@asynccontextmanager
async def counts_twice(original: Any, admission: Admission) -> AsyncIterator[Any]:
    again = AdmittedCall(admission=admission, outer=None)
    admission._calls.add(again)
    async with original(admission) as call:
        yield call
    admission._calls.discard(again)  # the `finally` is missing, too: a call that fails is never uncounted


@asynccontextmanager
async def forgets_its_slot(original: Any, link: Any, *args: Any, **kw: Any) -> AsyncIterator[Any]:
    assert link.limit.calls.take_nowait()
    async with original(link, *args, **kw) as reply:
        yield reply
    link.limit.calls.give_back()  # no `finally`


@asynccontextmanager
async def renames_cancels(original: Any, admission: Admission) -> AsyncIterator[Any]:
    async with original(admission) as call:
        try:
            yield call
        except trio.Cancelled:
            raise SessionClosed("closed, or so it says") from None  # noqa: ASYNC104  # the planted defect


async def lets_go_of_nothing(original: Any, reply: Any) -> None:
    await trio.lowlevel.checkpoint()


async def stays_away(original: Any, row: Any) -> None:
    await trio.lowlevel.checkpoint()


async def is_refused(member: Member, *args: Any) -> Any:
    raise BackendUnavailable(member.backend_id, "is away, or so it says")


def hurries(original: Any, backoff: Backoff, chance: float) -> float:
    return original(backoff, chance) / 10  # type: ignore[no-any-return]


def turns_are_not_shared(original: Any, endpoints: Endpoints, endpoint: str) -> Any:
    endpoints._turns.clear()
    return original(endpoints, endpoint)


def starts_afresh(member: Member) -> None:
    assert member.connection is not None
    member.replace_connection(member.connection, BackendUnavailable(member.backend_id, "is better asked anew"))


async def waits_on(original: Any, connection: Connection, *args: Any) -> None:
    await original(connection, *args)
    await trio.sleep(1.0)


async def keeps_hold(original: Any, attempt: Attempt, connection: Connection) -> None:
    await trio.lowlevel.checkpoint()


def does_nothing(original: Any, *args: Any) -> None: ...


async def ends_at_once(*args: Any) -> None:
    await trio.lowlevel.checkpoint()


def declares_nothing(original: Any, handlers: BoundHandlers) -> None:
    handlers.capabilities = {}


def tells_no_caller(
    original: Any, handlers: BoundHandlers, kind: str, params: Any, caller: Any, *args: Any, **kw: Any
) -> Any:
    return original(handlers, kind, params, None, *args, **kw)


async def runs_twice(original: Any, handlers: BoundHandlers, *args: Any, **kw: Any) -> Any:
    await original(handlers, *args, **kw)
    return await original(handlers, *args, **kw)


def tells_twice(original: Any, feed: NoticeFeed, *args: Any) -> None:
    original(feed, *args)
    original(feed, *args)


def swaps_owners(original: Any, session: Any, *args: Any) -> Any:
    target = original(session, *args)
    return attrs.evolve(target, backend_id={"b0": "b1", "b1": "b0"}[target.backend_id])


def routes_to_the_last(original: Any, router: Any, offers: Any, **kw: Any) -> Any:
    return original(router, offers[::-1], **kw)


def is_never_in_use(original: Any, member: Member, connection: Connection) -> bool:
    return False


def wakes_at_once(original: Any, member: Member, *args: Any) -> None:
    original(member, *args)
    member.wake()


def tries_twice(original: Any, membership: Membership, member: Member, *args: Any) -> Any:
    if isinstance(member.state, Waking):
        original(membership, member, *args)
    return original(membership, member, *args)


def forgets_its_lists(original: Any, member: Member, *args: Any) -> None:
    member.listing = Listing()
    original(member, *args)


def counts_from_the_beginning(original: Any, silence: Silence) -> None:
    if math.isinf(silence.scope.deadline):
        original(silence)


def counts_on(original: Any, silence: Silence) -> Any:
    return nullcontext()


async def lets_progress_extend(
    original: Any, member: Member, connection: Connection, call: Any, asked: Any, timeout: float
) -> Any:
    return await original(member, connection, call, asked, math.inf)


def calls_by_another_name(original: Any, calls: Calls, name: str, arguments: Any) -> Any:
    target, params = original(calls, name, arguments)
    return target, params | {"name": "fetch"}


# The defect, the history that shows it, and the check that must report it.
DEFECTS: dict[str, tuple[Plant, History, str]] = {
    "a leaked task": (
        wrapped(DefaultSessionFactory, "_own", lingers),
        History(steps=CLOSED),
        "nothing_is_left",
    ),
    "a call that never ends": (
        wrapped(Client, "_on_other", never_returns),
        History(
            backends=(BackendSpec(id="b0", answers="sse"),),
            steps=(Open(), Call(at=1.0, progress=1)),
        ),
        "nothing_hangs_or_crashes",
    ),
    "an operation without an outcome": (
        wrapped(Client, "_on_other", never_returns),
        History(
            backends=(BackendSpec(id="b0", answers="sse"),),
            steps=(Open(), Call(at=1.0, progress=1)),
        ),
        "one_outcome_each",
    ),
    "a crash of the owner": (
        lambda monkeypatch: monkeypatch.setattr(Admission, "cut_off", lambda *_: 1 / 0),
        History(steps=CLOSED),
        "nothing_hangs_or_crashes",
    ),
    "a session id in the log": (
        wrapped(HandshakeClient, "aclose", tells_its_id),
        History(steps=CLOSED),
        "no_secret_leaks",
    ),
    "an error of no listed type": (
        wrapped(Client, "request", breaks_on_calls),
        History(steps=CLOSED),
        "only_listed_errors",
    ),
    "a call admitted after closing began": (
        wrapped(Admission, "add_call", admits_late),
        History(steps=REFUSED),
        "nothing_admitted_while_closing",
    ),
    "a call counted twice": (
        wrapped(Admission, "admit", counts_twice),
        History(steps=(Open(), Call(at=1.0, seconds=2.0), Close(at=2.0))),
        "calls_are_counted_once",
    ),
    "a missing finally in admission": (
        wrapped(Admission, "admit", counts_twice),
        History(settings=SETTINGS, steps=TIMED_OUT),
        "closings_end_in_time",
    ),
    "a missing finally around a slot": (
        wrapped(HttpLink, "exchange", forgets_its_slot),
        History(steps=CUT_OFF),
        "nothing_is_left",
    ),
    "a response that is never closed": (
        wrapped(HttpReply, "aclose", lets_go_of_nothing),
        History(steps=CLOSED),
        "nothing_is_left",
    ),
    "a cancel of the caller that comes out as an error": (
        wrapped(Admission, "admit", renames_cancels),
        History(steps=GIVEN_UP),
        "cancels_surface_alone",
    ),
    "a call sent twice": (
        wrapped(HandshakeClient, "exchange", sends_twice),
        History(steps=CLOSED),
        "executed_at_most_once",
    ),
    "a call executed by the wrong backend": (
        wrapped(Calls, "_find", swaps_owners),
        History(backends=TWINS, steps=(Open(backends=(0, 1)), Call(at=1.0), Close(at=2.0))),
        "executed_by_the_owner_alone",
    ),
    "a name given to the last backend that lists it": (
        wrapped(Router, "update_in_steps", routes_to_the_last),
        History(
            settings=FactorySettings(conflict_resolution=Bare()),
            backends=TWINS,
            steps=(Open(backends=(0, 1)), Close(at=2.0)),
        ),
        "a_name_means_one_backend",
    ),
    "a call that ran and is said not to have": (
        replaced(trio_vmcp._client.http.link, "note_written", lambda _: None),
        History(settings=SETTINGS, steps=TIMED_OUT),
        "no_false_claim_of_not_executed",
    ),
    "a caller that is not checked": (
        wrapped(Calls, "check_caller", lambda *_: None),
        History(steps=STRANGER),
        "other_callers_get_nothing",
    ),
    "a call that outlasts its timeout": (
        wrapped(Client, "request", waits_longer),
        History(settings=SETTINGS, steps=TIMED_OUT),
        "calls_end_in_time",
    ),
    "an opening that is late": (
        wrapped(SessionOwner, "_open", takes_longer),
        History(
            settings=FactorySettings(session_init_timeout=2.0),
            steps=(InjectFault(matches="POST", fault=Hang()), Open()),
        ),
        "openings_end_in_time",
    ),
    "a bound off by one": (
        wrapped(Membership, "connect_all", has_one_place),
        History(
            settings=FactorySettings(max_backend_init_concurrency=2, backend_init_timeout=3.0),
            backends=TWINS,
            steps=(*ALL_HANG, Open(backends=(0, 1))),
        ),
        "openings_end_in_time",
    ),
    "a drain that is longer than asked for": (
        wrapped(SessionOwner, "shorten_drain", drains_longer),
        History(settings=FactorySettings(teardown_timeout=0.5), steps=CUT_OFF),
        "closings_end_in_time",
    ),
    "a lost DELETE": (
        wrapped(HandshakeClient, "aclose", sends_no_delete),
        History(steps=CLOSED),
        "every_backend_session_gets_its_delete",
    ),
    "metadata that outlives its session": (
        wrapped(SessionRow, "discard", stays_away),
        History(steps=CLOSED),
        "rows_live_and_die_with_their_sessions",
    ),
    "a backend that is never tried again": (
        wrapped(Membership, "_ensure_retrying", does_nothing),
        History(settings=PATIENT, instances=LONG, steps=OUTAGE),
        "a_healthy_backend_is_ready_again",
    ),
    "a failing call to a healthy backend": (
        replaced(trio_vmcp._session.calls, "request_member", is_refused),
        History(steps=CLOSED),
        "calls_to_healthy_backends_succeed",
    ),
    "a backoff that is too short": (
        wrapped(Backoff, "next", hurries),
        History(settings=PATIENT, instances=LONG, steps=(Disturb(what="crash"), Open(), Close(at=20.0))),
        "attempts_keep_to_the_backoff",
    ),
    "sessions that try one backend at the same time": (
        wrapped(Endpoints, "turns", turns_are_not_shared),
        History(settings=PATIENT, instances=LONG, steps=TWO_WAIT),
        "one_attempt_at_a_time",
    ),
    "a connection that is made anew for nothing": (
        replaced(trio_vmcp._session.call, "note_answer", starts_afresh),
        History(backends=LEGACY, steps=CLOSED),
        "no_reconnect_without_a_reason",
    ),
    "a connection that is made anew for nothing, after a freeze": (
        replaced(trio_vmcp._session.call, "note_answer", starts_afresh),
        History(settings=PATIENT, backends=FAR, instances=LONG, steps=FROZEN),
        "no_reconnect_without_a_reason",
    ),
    "a connection that was replaced and is kept": (
        wrapped(Attempt, "_close_in_time", keeps_hold),
        History(settings=PATIENT, instances=LONG, steps=FORGOTTEN),
        "connections_are_closed",
    ),
    "a read that was answered, and is sent again": (
        wrapped(HandshakeClient, "exchange", sends_twice),
        History(steps=(Open(), Call(at=1.0, kind="resource"), Close(at=2.0))),
        "sent_again_only_if_it_did_not_run",
    ),
    "metadata that names a session of before": (
        wrapped(SessionRow, "note_change", does_nothing),
        History(settings=PATIENT, instances=LONG, steps=FORGOTTEN),
        "rows_say_what_sessions_say",
    ),
    "a backend that is removed without a DELETE": (
        wrapped(HandshakeClient, "aclose", sends_no_delete),
        History(steps=REMOVED),
        "removed_backends_get_their_delete",
    ),
    "a removal that is late": (
        wrapped(Connection, "drain", waits_on),
        History(settings=PATIENT, steps=(Open(), RemoveBackend(at=1.0, drain_timeout=0.0), Close(at=5.0))),
        "members_come_and_go_in_time",
    ),
    "a change that is ignored": (
        wrapped(Refresher, "note", does_nothing),
        History(settings=PATIENT, instances=LONG, backends=STREAMS, steps=CHANGED),
        "announced_lists_are_fetched",
    ),
    "a question that gets no answer": (
        wrapped(HandshakeClient, "on_request", does_nothing),
        History(backends=STREAMS, steps=(Open(), Call(at=1.0, asks=1), Close(at=10.0))),
        "questions_are_answered",
    ),
    "a circuit that never opens": (
        wrapped(Breaker, "admit", does_nothing),
        History(settings=PATIENT, backends=LEGACY, instances=LONG, steps=TOO_OFTEN),
        "a_missing_backend_costs_no_time",
    ),
    "an error that is not counted": (
        wrapped(Health, "failed", does_nothing),
        History(settings=SETTINGS, steps=(Open(), Call(at=1.0, seconds=20.0), Inspect(at=5.0), Close(at=6.0))),
        "health_counts_every_call",
    ),
    "a result that is kept for too long": (
        replaced(trio_vmcp._client.cache, "_fresh_for", lambda _: math.inf),
        History(backends=LASTING, steps=READ_TWICE),
        "cached_reads_are_fresh",
    ),
    "a process that is killed at once": (
        replaced(trio_vmcp._client.channels.process, "TERM_SHARE", 0.0),
        History(backends=DEAF, steps=CLOSED),
        "processes_are_asked_before_they_are_killed",
    ),
    "a process that leaves a helper behind": (
        replaced(trio_vmcp._client.channels.process, "_signal_group", lambda *_: None),
        History(backends=PARENT, steps=CLOSED),
        "nothing_is_left",
    ),
    "handlers that are not declared": (
        wrapped(BoundHandlers, "__attrs_post_init__", declares_nothing),
        History(backends=STREAMS, given=("sampling",), steps=QUESTION),
        "given_handlers_are_declared",
    ),
    "a handler that is not told the caller": (
        wrapped(BoundHandlers, "run_handler", tells_no_caller),
        History(backends=STREAMS, given=("sampling",), steps=QUESTION),
        "handlers_know_session_backend_and_caller",
    ),
    "a question that is asked twice": (
        wrapped(BoundHandlers, "run_handler", runs_twice),
        History(backends=STREAMS, given=("sampling",), steps=QUESTION),
        "a_question_is_asked_once",
    ),
    "a question that comes to a handler and not to its caller": (
        wrapped(StatelessClient, "_finished", hands_nothing_out),
        History(backends=MODERN, given=("elicitation",), steps=HANDED_OUT),
        "handlers_are_not_asked_what_is_handed_out",
    ),
    "an answer of another identity": (
        wrapped(Calls, "check_caller", does_nothing),
        History(backends=MODERN, given=("elicitation",), steps=ANSWERED_BY_A_STRANGER),
        "answers_are_taken_once",
    ),
    "an answer that is sent twice": (
        wrapped(StatelessClient, "_result", sends_answers_twice),
        History(backends=MODERN, given=("elicitation",), steps=HANDED_OUT),
        "sent_again_only_if_it_did_not_run",
    ),
    "a question that is counted as an answer": (
        replaced(trio_vmcp._session.observed_calls, "_outcome_in", lambda _: "ok"),
        History(backends=MODERN, given=("elicitation",), steps=HANDED_OUT),
        "observers_are_told_of_every_call",
    ),
    "a handler that outlives its call": (
        wrapped(ServerRequests, "cancel_answers_for", does_nothing),
        History(backends=STREAMS, given=("elicitation",), steps=GIVEN_UP_ON),
        "handlers_end_with_their_calls",
    ),
    "a log message that is told twice": (
        wrapped(NoticeFeed, "put", tells_twice),
        History(backends=STREAMS, given=("log",), steps=LOG),
        "log_messages_come_in_order",
    ),
    "metadata that is lost": (
        wrapped(SessionRow, "write_last", lambda _, row, *args: row.discard()),
        History(steps=RETURNED),
        "rows_live_and_die_with_their_sessions",
    ),
}


def asks_without_identity(original: Any, credentials: Any, identity: Any) -> Any:
    return original(credentials, None)


def asks_for_the_opener(original: Any, credentials: Any, identity: Any) -> Any:
    return original(credentials, None if identity is None else ALICE)


def mistakes_the_backend(original: Any, credentials: Any, identity: Any) -> Any:
    own = credentials._backend
    credentials._backend = attrs.evolve(own, id={"b0": "b1", "b1": "b0"}[own.id])
    try:
        return original(credentials, identity)
    finally:
        credentials._backend = own


async def parts_unsigned(original: Any, link: HttpLink, request: Any, body: Any, identity: Any) -> HttpReply:
    if request.method == "DELETE":
        return (await link._send(request, body))[0]
    return await original(link, request, body, identity)  # type: ignore[no-any-return]


async def gives_up(original: Any, credentials: Any, request: Any, body: Any, identity: Any) -> HttpReply:
    return await credentials._run_auth(credentials._ask_auth(identity), request, body, [], None)  # type: ignore[no-any-return]


async def insists(original: Any, credentials: Any, request: Any, body: Any, identity: Any) -> HttpReply:
    reply = await original(credentials, request, body, identity)
    if reply.status != 401:
        return reply  # type: ignore[no-any-return]
    await reply.aclose()
    again = httpx.Request(request.method, request.url, headers=request.headers.raw, stream=body)
    return await original(credentials, again, body, identity)  # type: ignore[no-any-return]


async def asks_alone(original: Any, credentials: Any, *args: Any) -> HttpReply:
    credentials._renewals.clear()
    return await original(credentials, *args)  # type: ignore[no-any-return]


async def touches_any_version(storage: RowStorage, session_id: str, *, expected_version: int) -> None:
    await storage._do("touch", partial(storage._storage.touch, session_id))


async def replaces_any_version(storage: RowStorage, row: SessionMetadata, *, expected_version: int) -> None:
    stored = await storage.load(row.session_id)
    row = attrs.evolve(row, version=stored.version + 1)
    await storage._do("update", partial(storage._storage.replace, row, expected_version=stored.version))


async def deletes_any_version(storage: RowStorage, session_id: str, *, expected_version: int) -> None:
    await storage._do("delete", partial(storage._storage.delete, session_id))


async def takes_any_row(original: Any, row: SessionRow) -> bool:
    if row._held.version is None:
        row.metadata = await row._storage.load(row.metadata.session_id)
        row._held = Held(sent=(Sent(row.metadata, row._base),))
        row.marks.add_first(row.metadata.used_at)
    return await original(row)  # type: ignore[no-any-return]  # a method that is taken as it is, without types


async def never_sends(*_: Any) -> None:
    await trio.lowlevel.checkpoint()


async def keeps_its_attributes(original: Any, row: SessionRow) -> bool:
    before = row._attributes
    is_news: bool = await original(row)
    row._attributes = before
    return is_news


async def writes_nothing(changes: AttributeChanges, write: object) -> None:
    for change in changes._waiting:
        change.done.set()
    changes._waiting.clear()


def keeps_ours(ours: RowContents, base: RowContents, theirs: RowContents) -> RowContents:
    return ours


def is_never_out_of_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def create(storage: RowStorage, row: SessionMetadata, *, within: float) -> None:
        await storage._do("store", lambda: storage._storage.create(row))

    monkeypatch.setattr(SessionRow, "_is_out_of_touch", property(lambda row: False))
    monkeypatch.setattr(RowStorage, "create", create)


async def lasts_too_long(original: Any, storage: RowStorage, row: SessionMetadata, *, within: float) -> None:
    await original(storage, row, within=math.inf)


async def deletes_unseen(original: Any, row: SessionRow) -> None:
    row._seen_at = trio.current_time()
    await original(row)


async def tells_no_news(original: Any, row: SessionRow) -> bool:
    await original(row)
    return False


def asks_for_the_mark_alone(original: Any, row: SessionRow, *args: Any, **kw: Any) -> bool:
    return not row.marks.is_own(row.metadata.used_at)


async def forgets_a_late_write(original: Any, row: SessionRow) -> None:
    await original(row)
    if row._held.version is not None:
        row._held = Held(row._held.version)


def terminates_always(opening: Any, owner: SessionOwner, services: Any) -> Any:
    async def open_it() -> None:
        await opening(owner, services)
        if owner._opening_error is not None:
            owner.life.terminates = True

    return open_it()


def compares_clocks(original: Any, row: SessionRow, *args: Any, **kw: Any) -> bool:
    age = vars(trio_vmcp._session.row)["datetime"].now(UTC) - row.metadata.used_at
    return bool(age.total_seconds() < MARKS_PER_LIFE * row.marks.every)


TRIPLETS = (*TWINS, BackendSpec(id="b2"))
TWO = (Exit(at=40.0), Exit(at=40.0))
ONE_LEAVES = (Exit(at=5.0), Exit(at=40.0))
QUICK = FactorySettings(storage_timeout=1.0, idle_timeout=1000.0, identity_keys=(b"one for all instances",))
MOVED: tuple[Step, ...] = (Open(), Restore(at=1.0, instance=1), Call(at=2.0, instance=1))
BOTH_CHANGE: tuple[Step, ...] = (
    *MOVED,
    AddBackend(at=3.0, instance=1, backend=1),
    AddBackend(at=4.0, instance=0, backend=2),
)
SET_ON_BOTH: tuple[Step, ...] = (
    *MOVED,
    SetAttributes(at=3.0, instance=0),
    SetAttributes(at=4.0, instance=1),
    AddBackend(at=5.0, instance=0, backend=1),
)
# Instance 0 does not hear that its session is terminated, and comes back when the tombstone has ended.
TERMINATED_ELSEWHERE: tuple[Step, ...] = (
    *MOVED,
    FailStorage(at=2.0, operation=None, instance=0, times=math.inf),
    Close(at=3.0, instance=1),
    HealStorage(at=10.0),
    Inspect(at=20.0),
)
# Both open a session of one id; instance 0 does not hear what became of its row.
OPENED_TWICE: tuple[Step, ...] = (
    FailStorage(operation="create", instance=0, how="slow", seconds=20.0),
    Open(),
    Open(at=0.5, instance=1),
)

# A create under way when the tombstone ends.
CREATED_SLOWLY: tuple[Step, ...] = (
    Open(),
    Restore(at=0.5, instance=1),
    FailStorage(at=1.4, operation="create", instance=0, how="slow", seconds=3.6),
    Close(at=1.5, instance=1),
)
# Instance 0 cannot reach the storage for over a TTL, and its copy ends in the moment when the storage is back.
AWAY: tuple[Step, ...] = (
    Open(),
    FailStorage(at=0.5, operation=None, instance=0, times=math.inf),
    Restore(at=0.6, instance=1),
    HealStorage(at=10.2),
)
AWAY_WHILE_REOPENED: tuple[Step, ...] = (
    *AWAY[:3],
    Close(at=1.0, instance=1),
    Open(at=5.0, instance=1),
    HealStorage(at=10.2),
    Close(at=10.25, instance=0),
)
BACK_AND_LEFT = (Exit(at=10.25), Exit(at=40.0))
ONE_IS_AHEAD = (Exit(at=40.0, ahead=3600.0), Exit(at=40.0))
USED_ELSEWHERE: tuple[Step, ...] = (
    Open(),
    Restore(at=1.0, instance=1),
    *[Call(at=float(at), instance=1) for at in range(2, 12)],
)
# The write that names a backend lasts until the backend was removed. Its names are bound already, so that the row says
# then what it said before.
RETRACTED: tuple[Step, ...] = (
    Open(),
    Restore(at=1.0, instance=1),
    AddBackend(at=2.0, instance=0, backend=1),
    RemoveBackend(at=3.0, instance=0, backend=1),
    FailStorage(at=4.5, operation="replace", instance=0, how="late", seconds=3.0),
    AddBackend(at=4.5, instance=0, backend=1),
    RemoveBackend(at=5.7, instance=0, backend=1),
    Inspect(at=15.0),
)
CREATED_LATE: tuple[Step, ...] = (
    FailStorage(operation="create", how="late", seconds=11.0),  # longer than the tombstone of the delete lasts
    Open(),
    FailStorage(at=5.0, operation="create", how="late", seconds=3.0),
    Open(at=5.0, session=1),
    Inspect(at=15.0),
)
RESTORED_IN_VAIN: tuple[Step, ...] = (
    Open(),
    FailStorage(at=1.0, operation="replace", instance=1),
    Restore(at=1.0, instance=1),
)
ALTERNATING: tuple[Step, ...] = (
    Open(),
    Restore(at=1.0, instance=1),
    Call(at=3.0, instance=0),
    AddBackend(at=3.5, instance=1, backend=1),
)

# The same, of what several instances do to one row.
DEFECTS |= {
    "a missing row that is always created anew": (
        is_never_out_of_touch,
        History(settings=QUICK, instances=TWO, ttl=6.0, steps=TERMINATED_ELSEWHERE),
        "no_terminated_session_comes_back",
    ),
    "an instance that is left and does not ask the row": (
        wrapped(SessionRow, "is_needed_elsewhere", lambda *args, **kw: False),
        History(settings=QUICK, instances=ONE_LEAVES, ttl=6.0, steps=MOVED),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "a delete without its version": (
        replaced(RowStorage, "delete", deletes_any_version),
        History(settings=QUICK, instances=ONE_LEAVES, steps=MOVED),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "any row that is taken for ours after an unknown create": (
        wrapped(SessionRow, "_read", takes_any_row),
        History(settings=QUICK, instances=TWO, steps=OPENED_TWICE),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "a create that lasts until the tombstone ends": (
        wrapped(RowStorage, "create", lasts_too_long),
        History(settings=attrs.evolve(QUICK, storage_timeout=5.0), instances=TWO, ttl=3.0, steps=CREATED_SLOWLY),
        "no_terminated_session_comes_back",
    ),
    "a delete after a TTL without a look": (
        wrapped(SessionRow, "_delete_once", deletes_unseen),
        History(settings=QUICK, instances=TWO, ttl=3.0, steps=AWAY_WHILE_REOPENED),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "a delete of the version that another instance has written": (
        wrapped(SessionRow, "_read", tells_no_news),
        History(settings=QUICK, instances=BACK_AND_LEFT, ttl=3.0, steps=AWAY),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "an instance that is left and asks for the mark alone": (
        wrapped(SessionRow, "is_needed_elsewhere", asks_for_the_mark_alone),
        History(settings=QUICK, instances=ONE_LEAVES, backends=TWINS, ttl=6.0, steps=ALTERNATING),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "a late write that is forgotten": (
        wrapped(SessionRow, "_require_seen", forgets_a_late_write),
        History(settings=QUICK, instances=TWO, backends=TWINS, ttl=6.0, steps=RETRACTED),
        "a_removed_backend_leaves_the_row",
    ),
    "an opening that fails and leaves its row to come": (
        wrapped(SessionRow, "_delete_once", stays_away),
        History(settings=QUICK, instances=TWO, ttl=6.0, steps=CREATED_LATE),
        "rows_live_and_die_with_their_sessions",
    ),
    "a restore that fails and terminates": (
        wrapped(SessionOwner, "_open", terminates_always),
        History(settings=QUICK, instances=TWO, steps=RESTORED_IN_VAIN),
        "rows_live_and_die_with_their_sessions",
    ),
    "an idle instance that compares its clock with a mark": (
        wrapped(SessionRow, "is_needed_elsewhere", compares_clocks),
        History(settings=attrs.evolve(QUICK, idle_timeout=5.0), instances=ONE_IS_AHEAD, steps=USED_ELSEWHERE),
        "no_live_session_is_ended_by_an_instance_that_it_left",
    ),
    "a replace without its version": (
        replaced(RowStorage, "replace", replaces_any_version),
        History(settings=QUICK, instances=TWO, backends=TRIPLETS, steps=BOTH_CHANGE),
        "no_write_undoes_anothers",
    ),
    "a writer that reads the version and not the row": (
        replaced(trio_vmcp._session.stored_row, "_join", keeps_ours),
        History(settings=QUICK, instances=TWO, backends=TRIPLETS, steps=BOTH_CHANGE),
        "no_write_undoes_anothers",
    ),
    "attributes of another instance that are not read": (
        wrapped(SessionRow, "_read", keeps_its_attributes),
        History(settings=QUICK, instances=TWO, backends=TRIPLETS, steps=SET_ON_BOTH),
        "no_write_undoes_attributes",
    ),
    "a level that is acknowledged and not sent": (
        wrapped(LevelTeller, "_set", never_sends),
        History(
            backends=(BackendSpec(id="a", era="modern", logs=True),),
            steps=(Open(), SetLogLevel(at=1.0, level="error"), Call(at=2.0), Close(at=3.0)),
        ),
        "requests_say_the_level",
    ),
    "attributes that are acknowledged and not written": (
        replaced(AttributeChanges, "write_latest", writes_nothing),
        History(settings=QUICK, steps=(Open(), SetAttributes(at=1.0), Close(at=2.0))),
        "acknowledged_attributes_are_written",
    ),
    "a touch without its version": (
        replaced(RowStorage, "touch", touches_any_version),
        History(settings=QUICK, instances=TWO, ttl=6.0, steps=(*MOVED, Inspect(at=20.0))),
        "a_copy_knows_what_others_have_done",
    ),
}


# The same, of what is done with credentials.
DEFECTS |= {
    "credentials that are asked for without an identity": (
        wrapped(Credentials, "_ask_auth", asks_without_identity),
        History(backends=GUARDED, steps=(Open(bound=True), Call(at=1.0), Close(at=2.0))),
        "credentials_match_backend_and_principal",
    ),
    "credentials of the opener for another caller": (
        wrapped(Credentials, "_ask_auth", asks_for_the_opener),
        History(backends=GUARDED, steps=(Open(bound=True), Call(at=1.0), Close(at=2.0))),
        "credentials_match_backend_and_principal",
    ),
    "credentials for another backend": (
        wrapped(Credentials, "_ask_auth", mistakes_the_backend),
        History(backends=(*GUARDED, *TWINS[1:]), steps=(Open(backends=(0, 1)), Close(at=2.0))),
        "credentials_match_backend_and_principal",
    ),
    "a goodbye without credentials": (
        wrapped(HttpLink, "_authenticated", parts_unsigned),
        History(backends=GUARDED, steps=CLOSED),
        "every_request_has_its_own_credentials",
    ),
    "a lost DELETE of a backend that could be satisfied": (
        wrapped(HandshakeClient, "aclose", sends_no_delete),
        History(backends=GUARDED, steps=ROTATED),
        "every_backend_session_gets_its_delete",
    ),
    "a DELETE that is refused and not sent again": (
        wrapped(Credentials, "send", gives_up),
        History(backends=GUARDED, steps=(Open(), RotateTokens(at=1.0), Close(at=2.0))),
        "every_backend_session_gets_its_delete",
    ),
    "a call that is sent again and again, refused": (
        wrapped(Credentials, "send", insists),
        History(backends=GUARDED, steps=(Open(), WithholdTokens(at=1.0, how="refuse"), Call(at=2.0), Close(at=3.0))),
        "a_refused_request_is_sent_again_once",
    ),
    "new credentials that are not shared": (
        wrapped(Credentials, "send", asks_alone),
        History(backends=GUARDED, steps=(Open(), RotateTokens(at=1.0), *[Call(at=2.0)] * 5, Close(at=3.0))),
        "refused_requests_share_new_credentials",
    ),
    "a rotation that costs a call": (
        wrapped(Credentials, "send", gives_up),
        History(backends=GUARDED, steps=ROTATED),
        "a_rotation_costs_no_call",
    ),
    "a failing call to a healthy guarded backend": (
        wrapped(Credentials, "send", gives_up),
        History(backends=GUARDED, steps=ROTATED),
        "calls_to_healthy_backends_succeed",
    ),
    "a timeout that observers are not told of": (
        wrapped(ObservedCalls, "_end", tells_of_answers),
        History(steps=TIMED_OUT, settings=SETTINGS),
        "observers_are_told_of_every_call",
    ),
    "an end of a session that observers are not told of": (
        wrapped(SessionReporter, "report_closed", tells_nothing),
        History(steps=CLOSED),
        "observers_are_told_of_every_session",
    ),
    "a call that a guarded backend runs twice": (
        wrapped(HandshakeClient, "exchange", sends_twice),
        History(backends=GUARDED, steps=ROTATED),
        "executed_at_most_once",
    ),
    "a backend that is stopped in the middle of a call": (
        wrapped(Member, "is_in_use", is_never_in_use),
        History(backends=STOPPING, steps=(Open(), Call(at=4.0, seconds=2.0), Close(at=9.0))),
        "only_unused_backends_are_stopped",
    ),
    "a backend that is never stopped": (
        replaced(trio_vmcp._session.connecting, "stop_when_unused", ends_at_once),
        History(backends=STOPPING, steps=(Open(), Inspect(at=12.0), Close(at=13.0))),
        "unused_backends_are_stopped_in_time",
    ),
    "a backend that is stopped in the middle of its question": (
        replaced(trio_vmcp._session.stopping, "asked_at_of", lambda _: -math.inf),
        History(backends=ASKING_LATE, given=("sampling",), steps=ASKED_TOO_LATE),
        "only_unused_backends_are_stopped",
    ),
    "a stopped backend that is connected without a call": (
        wrapped(Member, "stop", wakes_at_once),
        History(backends=STOPPING, steps=STOPPED),
        "a_stopped_backend_is_connected_once_for_its_calls",
    ),
    "a stopped backend that is connected twice for one call": (
        wrapped(Membership, "_begin", tries_twice),
        History(backends=STOPPING, steps=STOPPED),
        "a_stopped_backend_is_connected_once_for_its_calls",
    ),
    "a stopped backend whose tools are gone": (
        wrapped(Member, "stop", forgets_its_lists),
        History(backends=STOPPING, steps=STOPPED),
        "entries_of_a_stopped_backend_stay",
    ),
    "a backend that comes back with its old list": (
        wrapped(Refresher, "list_again", does_nothing),
        History(backends=STOPPING, steps=(*STOPPED[:2], ChangeList(at=9.0, names=("echo", "now")), *STOPPED[2:])),
        "lists_are_read_again_on_return",
    ),
    "progress that is not heard": (
        wrapped(Silence, "begin", counts_from_the_beginning),
        History(
            backends=WORKING, steps=(Open(), Call(at=1.0, progress=4, pace=0.6, hears_progress=False), Close(at=9.0))
        ),
        "progress_keeps_a_call_alive",
    ),
    "progress that the caller alone hears": (
        wrapped(Silence, "paused", counts_on),
        History(backends=WORKING, steps=(Open(), Call(at=1.0, progress=4, pace=0.6), Close(at=9.0))),
        "progress_keeps_a_call_alive",
    ),
    "a silence that is not heard": (
        wrapped(Silence, "begin", does_nothing),
        History(backends=WORKING, steps=(Open(), Call(at=1.0, seconds=2.5), Close(at=9.0))),
        "progress_keeps_a_call_alive",
    ),
    "progress that extends the whole": (
        lambda monkeypatch: monkeypatch.setattr(
            trio_vmcp._session.call,
            "_request_with_progress",
            partial(lets_progress_extend, trio_vmcp._session.call._request_with_progress),
        ),
        History(backends=WORKING, steps=(Open(), Call(at=1.0, progress=9, pace=0.6), Close(at=9.0)), settings=SETTINGS),
        "calls_end_in_time",
    ),
    "a call by the overridden name": (
        wrapped(Calls, "route_tool", calls_by_another_name),
        History(backends=RENAMED, steps=CLOSED),
        "calls_carry_the_own_name",
    ),
    "an override of a name without effect": (
        replaced(Backend, "renamed_tools", {}),
        History(backends=RENAMED, steps=CLOSED),
        "overridden_names_are_advertised",
    ),
}


@pytest.fixture(autouse=True)
def leaks_are_wanted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Planted defects leave things behind on purpose: they are no error of these tests."""
    yield
    request.config.stash[WATCH].found.clear()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_reported(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The named check reports the defect; without the defect, no check reports the same history."""
    plant, history, check = DEFECTS[defect]
    assert [] == judge(history, run_history(history))
    plant(monkeypatch)
    assert check in {violation.check for violation in judge(history, run_history(history))}


def test_every_check_has_a_defect() -> None:
    """For every check there is a defect that makes the check fail."""
    assert set(CHECKS) == {check for _, _, check in DEFECTS.values()}
