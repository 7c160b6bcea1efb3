"""Draws a history from a seed. A seed gives the same history in every process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypeVar

import attrs
from support.memory_processes import Manners

from simulation.draw_instances import draw_instances
from simulation.draw_keywords import draw_keywords
from simulation.draw_levels import draw_levels
from simulation.draw_options import draw_options
from simulation.draw_rounds import draw_rounds
from simulation.draw_tokens import draw_tokens
from simulation.history import (
    PROMPTS,
    RESOURCES,
    TOOLS,
    AddBackend,
    BackendSpec,
    Call,
    CancelCaller,
    ChangeList,
    Close,
    Disturb,
    Exit,
    ExpireSession,
    FailStorage,
    Given,
    History,
    InjectFault,
    Inspect,
    Kind,
    Open,
    Operation,
    RemoveBackend,
    Restore,
    Step,
    Subscribe,
    WatchChanges,
)
from trio_vmcp import Bare, ConflictResolution, FactorySettings, Prefix, Priority
from trio_vmcp.testing import (
    CONNECT,
    Delay,
    Disconnect,
    Drip,
    Error,
    Fault,
    Hang,
    Raw,
    Refuse,
    Reset,
    Rewrite,
    Stall,
    Status,
)

__all__ = ["draw_history"]

T = TypeVar("T")


def draw_history(seed: int) -> History:
    """The history of this seed."""
    drawn = draw_instances(draw_tokens(_Draw(random.Random(seed)).history(seed)))
    return draw_levels(draw_options(draw_keywords(draw_rounds(drawn))))


def garbled(_: object) -> object:
    """An answer that is JSON, and no JSON-RPC."""
    return {"jsonrpc": "2.0", "id": True, "result": {}, "error": 1}


KEYS: tuple[bytes, ...] = (b"one for all instances",)
SHORT = (0.0, 0.0, 0.001, 0.05, 0.3, 1.0, 3.0)  # s
GARBAGE = (
    b"",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\r\r",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
    b"\x00\xff" * 40,
)
HANDSHAKES = ("initialize", "initialize", "server/discover", "notifications/initialized", "tools/list")
CALLS = ("tools/call", "tools/call", "resources/read", "prompts/get")


@attrs.define
class _Draw:
    random: random.Random

    def history(self, seed: int) -> History:
        end = self.one_of(5.0, 12.0, 30.0, 60.0)
        backends = tuple(self.backend(f"b{number}") for number in range(self.one_of(1, 1, 2, 2, 3, 4, 5)))
        instances = tuple(self.exit(end) for _ in range(self.one_of(1, 1, 1, 2)))
        sessions = self.one_of(1, 2, 3)
        steps = [step for number in range(sessions) for step in self.session(number, backends, end)]
        for _ in range(self.one_of(0, 1, 2, 4, 6, 8)):
            trouble = self.trouble(backends, end)
            steps += [*trouble, *self.aftermath(sessions, trouble)]
        steps += [Inspect(at=self.random.uniform(0, end)) for _ in range(self.one_of(1, 3))]
        return History(
            seed=seed,
            settings=self.settings(backends),
            backends=backends,
            instances=instances,
            given=self.given(),
            steps=tuple(
                attrs.evolve(step, instance=step.instance % len(instances))
                if isinstance(step, Open | Restore)
                else step
                for step in sorted(steps, key=lambda step: step.at)
            ),
        )

    def settings(self, backends: Sequence[BackendSpec]) -> FactorySettings:
        strategies: tuple[ConflictResolution, ...] = (Prefix(), Bare(), Priority(backends[-1].id))
        return FactorySettings(
            max_backend_init_concurrency=self.one_of(1, 2, 10),
            backend_init_timeout=self.one_of(1.0, 3.0, 5.0),
            session_init_timeout=self.one_of(0.5, 4.0, 20.0, 20.0),
            min_backends=self.one_of(0, 0, 0, 0, 0, 0, 0, 1, 2),
            max_connections_per_backend=self.one_of(1, 2, 100),
            request_timeout=self.one_of(0.5, 3.0, 8.0),
            drain_timeout=self.one_of(0.0, 0.5, 3.0, 12.0),
            teardown_timeout=self.one_of(0.5, 2.0),
            storage_timeout=self.one_of(0.5, 5.0),
            reconnect_delay=self.one_of(0.05, 0.5, 0.5),
            reconnect_max_delay=self.one_of(0.5, 0.5, 2.0, 2.0, 60.0),
            idle_timeout=self.one_of(4.0, *[1800.0] * 5),
            on_exit=self.one_of("terminate", "terminate", "suspend"),
            max_message_bytes=self.one_of(1500, *[1 << 20] * 7),
            conflict_resolution=self.one_of(*strategies),
            identity_keys=KEYS,
        )

    def given(self) -> tuple[Given, ...]:
        every: tuple[Given, ...] = ("sampling", "elicitation", "roots", "log")
        return self.one_of((), every, self.some(every))

    def backend(self, backend_id: str) -> BackendSpec:
        transport: Literal["streamable-http", "sse", "stdio"] = self.one_of(
            "streamable-http", "streamable-http", "streamable-http", "streamable-http", "sse", "stdio"
        )
        era: Literal["legacy", "modern", "both"] = self.one_of("legacy", "legacy", "modern", "both")
        if transport == "sse":  # HTTP+SSE is of 2024-11-05, before the handshake and the stateless era
            era = "legacy"
        is_named = transport != "sse" or self.chance(0.5)
        manners: tuple[Manners, ...] = ("polite", "polite", "deaf", "stubborn", "parent")
        return BackendSpec(
            id=backend_id,
            transport=transport,
            is_named=is_named,
            holds_posts=self.chance(0.3),
            manners=self.one_of(*manners) if transport == "stdio" else "polite",
            era=era,
            configured_era=self.one_of("auto", "auto", "legacy" if era == "both" else era) if is_named else "auto",
            answers="sse" if transport == "sse" else self.one_of("json", "sse"),
            resumable=self.chance(0.2) and transport == "streamable-http",
            listens=self.chance(0.3) and (transport, era) != ("stdio", "both"),
            latency=self.one_of(0.0, 0.0, 0.001, 0.05, 0.2),
            is_listened_to=self.chance(0.9),
            ttl=self.one_of(0.0, 0.0, 1.0, 10.0) if era != "legacy" else 0.0,
            cache_scope=self.one_of("private", "public"),
            session_ids=self.chance(0.9),
            page_size=self.one_of(None, None, 1),
            tools=self.some(TOOLS) or TOOLS[: self.one_of(0, 1, 1)],
            resources=self.some(RESOURCES),
            prompts=self.some(PROMPTS),
        )

    def exit(self, end: float) -> Exit:
        at = end + self.one_of(*SHORT)
        return Exit(at=at, cancelled_at=at + self.one_of(-1.0, 0.0, 0.001, 0.5) if self.chance(0.4) else None)

    def session(self, number: int, backends: Sequence[BackendSpec], end: float) -> list[Step]:
        """The steps of one session: it is opened, called, closed by one or more steps, perhaps restored, and so on."""
        members = tuple(self.random.sample(range(len(backends)), self.random.randint(1, len(backends))))
        at = self.moment(end / 3)
        steps: list[Step] = [
            Open(
                at=at,
                session=number,
                instance=self.random.randrange(2),
                backends=members,
                bound=self.chance(0.3),
                held=self.chance(0.3),
                cancel=self.cancel(0.08),
            )
        ]
        while True:
            at += self.one_of(0.0, 0.5, 2.0, 2.0)  # an opening with latency takes 1.6 s
            span = self.one_of(0.5, self.random.uniform(2.0, end / 2 + 1))
            returns = self.chance(0.5)
            steps += self.calls(number, at, span)
            steps += [self.change(number, len(backends), at, span) for _ in range(self.one_of(0, 0, 1, 3))]
            if not returns and self.chance(0.6):  # its factory closes it
                return steps
            closers = [self.close(number, at + span, returns) for _ in range(self.one_of(1, 1, 1, 2, 3))]
            steps += closers
            if not returns or at > end:
                return steps
            at = max(closer.at for closer in closers) + self.moment(end / 4)
            passed = members if self.chance(0.8) else self.some(range(len(backends))) or members
            steps.append(
                Restore(
                    at=at, session=number, instance=self.random.randrange(2), backends=passed, cancel=self.cancel(0.1)
                )
            )

    def calls(self, session: int, since: float, span: float) -> list[Step]:
        """Calls alone, several at one moment, and a few after the close."""
        moments = [since + self.one_of(0.0, self.random.uniform(0, 1.1 * span)) for _ in range(self.one_of(1, 3, 6))]
        return [self.call(session, at) for at in moments for _ in range(self.one_of(1, 1, 1, 2, 5))]

    def call(self, session: int, at: float) -> Call:
        return Call(
            at=at,
            session=session,
            kind=self.one_of("tool", "tool", "tool", "tool", "resource", "resource", "prompt", "completion"),
            pick=None if self.chance(0.05) else self.random.randrange(12),
            seconds=self.one_of(*SHORT, 20.0),
            progress=self.one_of(0, 0, 1, 3),
            logs=self.one_of(0, 0, 0, 1, 3),
            asks=self.one_of(0, 0, 0, 1, 2),
            question=self.one_of("ping", "sampling", "elicitation", "roots"),
            thinks=self.one_of(0.0, 0.0, 0.0, 0.05, 1.0),
            reply=self.one_of("right", "right", "right", "fail", "hang", "call") if self.chance(0.97) else "close",
            on_progress="note" if self.chance(0.85) else self.one_of("raise", "shield", "aclose", "suspend"),
            timeout=self.one_of(None, None, None, 0.0, 0.001, 0.3, 2.0),
            caller="wrong" if self.chance(0.05) else "right",
            plain=self.chance(0.5),
            inside=self.chance(0.5),
            cancel=self.cancel(0.2),
        )

    def close(self, session: int, at: float, returns: bool) -> Close:
        return Close(
            at=at + self.one_of(*SHORT),
            session=session,
            terminate=self.chance(0.03 if returns else 0.7),
            drain_timeout=self.one_of(None, None, 0.0, 0.3, 2.0),
            cancel=self.cancel(0.2),
        )

    def change(self, session: int, backends: int, since: float, span: float) -> Step:
        """A change of the session's backends or subscriptions, or a receiver of its changes."""
        at, backend = since + self.random.uniform(0, span), self.random.randrange(backends)
        match self.one_of("add", "add", "remove", "remove", "subscribe", "watch"):
            case "add":
                return AddBackend(at=at, session=session, backend=backend, cancel=self.cancel(0.1))
            case "remove":
                limit = self.one_of(None, 0.0, 0.3, 2.0)
                cancel = self.cancel(0.1)
                return RemoveBackend(at=at, session=session, backend=backend, drain_timeout=limit, cancel=cancel)
            case "subscribe":
                wanted, pick = self.chance(0.8), self.random.randrange(4)
                return Subscribe(at=at, session=session, pick=pick, wanted=wanted, cancel=self.cancel(0.1))
            case _:
                seconds = self.one_of(0.0, 1.0, 60.0)
                return WatchChanges(at=at, session=session, seconds=seconds, cancel=self.cancel(0.1))

    def trouble(self, backends: Sequence[BackendSpec], end: float) -> list[Step]:
        """A fault; in most cases the steps contain its end, too."""
        at, backend = self.moment(end), self.random.randrange(len(backends))
        over = at + self.one_of(0.05, 1.0, self.random.uniform(0, end / 2))
        lasts = self.chance(0.3)
        match self.one_of("outage", "outage", "moment", "expire", "relist", "storage", *["fault"] * 5):
            case "outage":
                crash = Disturb(at=at, backend=backend, what="crash")
                return [crash] if lasts else [crash, Disturb(at=over, backend=backend, what="return")]
            case "moment":
                what = self.one_of(
                    "restart", "restart", "flip", "lose_sessions", "heal", "update", "update", "end_streams"
                )
                return [Disturb(at=at, backend=backend, what=what)]  # type: ignore[arg-type]
            case "expire":
                return [ExpireSession(at=at, backend=backend, how=self.one_of("404", "400", "page", "503"))]
            case "relist":
                return self.relist(at, backend, backends[backend])
            case "storage":
                operation: Operation = self.one_of("create", "load", "replace", "delete")
                how: Literal["fail", "lose", "slow"] = self.one_of("fail", "lose", "slow")
                seconds, times = self.one_of(0.3, 2.0, 60.0), self.one_of(1, 1, 3)
                return [FailStorage(at=at, operation=operation, how=how, seconds=seconds, times=times)]
            case _:
                strike = self.strike(at, backend, backends[backend])
                healed = Disturb(at=max(over, strike.at), backend=backend, what="heal")
                return [strike] if lasts or strike.times < 4 else [strike, healed]

    def aftermath(self, sessions: int, trouble: Sequence[Step]) -> list[Step]:
        """Plain calls after a fault has ended, when recovery should be under way or done."""
        if not trouble or self.chance(0.3):
            return []
        since, session = trouble[-1].at, self.random.randrange(sessions)
        moments = [since + self.one_of(0.0, 0.001, 0.5, 3.0, 7.0, 12.0) for _ in range(self.one_of(1, 3, 6))]
        calls: list[Step] = [
            Call(
                at=at,
                session=session,
                pick=self.random.randrange(12),
                seconds=self.one_of(0.0, 0.0, 0.05, 1.0),
                asks=self.one_of(0, 0, 1),
                question=self.one_of("ping", "sampling", "elicitation", "roots"),
                logs=self.one_of(0, 0, 2),
                timeout=self.one_of(None, 5.0),
            )
            for at in moments
        ]
        return [*calls, Inspect(at=max(moments) + self.one_of(0.0, 1.5, 3.0))]

    def relist(self, at: float, backend: int, spec: BackendSpec) -> list[Step]:
        """New names of one kind; at least one, since a backend without any would no longer declare the capability."""
        kinds: list[tuple[Kind, tuple[str, ...]]] = [("tool", TOOLS)] if spec.tools else []
        kinds += [("resource", RESOURCES)] if spec.resources else []
        kinds += [("prompt", PROMPTS)] if spec.prompts else []
        if not kinds:
            return []
        kind, pool = self.random.choice(kinds)
        names = self.some(pool) or pool[:1]
        return [ChangeList(at=at, backend=backend, kind=kind, names=names)]

    def strike(self, at: float, backend: int, spec: BackendSpec) -> InjectFault:
        kind = self.one_of("connect", "goodbye", "handshake", "handshake", "call", "call")
        verb = (
            "GET" if spec.transport == "sse" and self.chance(0.5) else "POST"
        )  # only "sse" needs its GET; a streamable backend's is optional
        matches: str
        fault = self.fault_of_a_line() if spec.transport == "stdio" else self.fault()
        match kind:
            case "connect":
                matches, fault = CONNECT, self.random.choice((Refuse(), Hang(), Delay(0.5)))
            case "goodbye":
                matches = "DELETE"
            case "handshake":
                matches = self.one_of(*HANDSHAKES, verb)
            case _:
                matches = self.one_of(*CALLS, verb)
        early = self.chance(0.5)  # half of the faults strike while sessions open
        return InjectFault(
            at=0.0 if early else at,
            backend=backend,
            matches=matches,
            fault=fault,
            times=self.one_of(1, 1, 3, float("inf")),
            skip=self.one_of(0, 0, 0, 1, 3),
        )

    def fault(self) -> Fault:
        cut_at = self.random.randrange(400)
        faults: tuple[Fault, ...] = (
            Hang("head"),
            Hang("body"),
            Drip(self.one_of(8, 64), self.one_of(0.001, 0.1, 0.4)),
            Reset(cut_at),
            Disconnect(cut_at),
            Stall(cut_at),
            Status(self.one_of(202, 204, 302, 400, 401, 404, 405, 429, 500, 503)),
            Raw(head=self.one_of(*GARBAGE)),
            Error(self.one_of(-32601, -32603, -32000), "no"),
            Delay(self.one_of(0.01, 0.5, 2.0)),
            Rewrite(garbled),
        )
        return self.random.choice(faults)

    def fault_of_a_line(self) -> Fault:
        """A fault for stdio; none that leaves half a line in front of the next answer."""
        faults: tuple[Fault, ...] = (
            Hang("head"),
            Disconnect(self.random.randrange(400)),
            Error(self.one_of(-32601, -32603, -32000), "no"),
            Delay(self.one_of(0.01, 0.5, 2.0)),
            Rewrite(garbled),
        )
        return self.random.choice(faults)

    def cancel(self, chance: float) -> CancelCaller | None:
        if not self.chance(chance):
            return None
        return CancelCaller(self.one_of(*SHORT), self.one_of(0, 1, 2, 5, 20, 60))

    def moment(self, within: float) -> float:
        """A time in s; often a time that other steps have, too."""
        return self.one_of(*SHORT, self.random.uniform(0, within))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one_of(self, *choices: T) -> T:
        return self.random.choice(choices)

    def some(self, pool: Sequence[T]) -> tuple[T, ...]:
        return tuple(item for item in pool if self.chance(0.6))
