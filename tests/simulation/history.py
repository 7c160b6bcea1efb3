"""What may happen: a history is plain data, drawn from a seed, and says everything that a run needs.

Steps begin at their time and do not wait for each other, so that at any moment several are under way. Times repeat on
purpose: what happens at the same moment is ordered by Trio's scheduler, which the seed rules, too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import attrs

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

__all__ = [
    "BackendSpec",
    "Call",
    "Close",
    "Disturb",
    "Exit",
    "GiveUp",
    "History",
    "Open",
    "Restore",
    "Step",
    "Strike",
    "brief",
    "draw_history",
]

T = TypeVar("T")

TOOLS = ("echo", "work", "now", "b0_echo")  # few, so that backends share them; the last one looks like a prefixed name
RESOURCES = ("mem://notes", "mem://log")
PROMPTS = ("greet", "sum")


@attrs.frozen(kw_only=True)
class BackendSpec:
    """One scripted backend, and how a user configures it."""

    id: str
    era: Literal["legacy", "modern", "both"] = "legacy"
    configured_era: Literal["auto", "legacy", "modern"] = "auto"
    answers: Literal["json", "sse"] = "json"
    resumable: bool = False
    latency: float = 0.0  # s
    session_ids: bool = True
    page_size: int | None = None
    tools: tuple[str, ...] = TOOLS[:2]
    resources: tuple[str, ...] = RESOURCES[:1]
    prompts: tuple[str, ...] = PROMPTS[:1]


@attrs.frozen
class GiveUp:
    """Who started the step is cancelled.

    Attributes:
        after: s, from the beginning of the step.
        checkpoints: How many of its own task's turns later than that: virtual time stands still while tasks run.
    """

    after: float = 0.0
    checkpoints: int = 0


@attrs.frozen(kw_only=True)
class Open:
    """Open a session under a number that later steps know it by.

    Attributes:
        backends: Indexes into the history's.
        held: By an `async with open_session`, whose block ends when the step is given up, or with the history.
    """

    at: float = 0.0
    session: int = 0
    instance: int = 0
    backends: tuple[int, ...] = (0,)
    bound: bool = False
    held: bool = False
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Restore:
    """Restore what was opened under this number."""

    at: float = 0.0
    session: int = 0
    instance: int = 0
    backends: tuple[int, ...] = (0,)
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Call:
    """One call, of the `pick`-th name that the session advertises, or of one that nobody has.

    Attributes:
        seconds: How long the tool works.
        progress: How often it says how far it is.
        on_progress: What the caller's callback does at the first of those.
        timeout: s; None: the factory's.
        inside: Its task belongs to the block that holds the factory, and goes with it.
    """

    at: float = 0.0
    session: int = 0
    kind: Literal["tool", "resource", "prompt"] = "tool"
    pick: int | None = 0
    seconds: float = 0.0
    progress: int = 0
    on_progress: Literal["note", "raise", "aclose", "suspend", "shield"] = "note"
    timeout: float | None = None
    caller: Literal["right", "wrong"] = "right"
    inside: bool = False
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Close:
    """One of perhaps several who close a session."""

    at: float = 0.0
    session: int = 0
    terminate: bool = True
    drain_timeout: float | None = None
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Disturb:
    """Something befalls a whole backend; "forget": it no longer knows any session; "relist": it
    describes its tools otherwise, or as at first again, and says so on the stream of every call.
    """

    at: float = 0.0
    backend: int = 0
    what: Literal["crash", "restart", "forget", "heal", "relist"] = "crash"


@attrs.frozen(kw_only=True)
class Strike:
    """From now on, requests of a kind meet a fault."""

    at: float = 0.0
    backend: int = 0
    matches: str = "tools/call"
    fault: Fault = attrs.field(factory=Hang)
    times: float = 1
    skip: int = 0


@attrs.frozen(kw_only=True)
class Exit:
    """How the block that holds an instance's factory ends.

    Attributes:
        at: The body ends.
        cancelled_at: Its surroundings are cancelled; before `at` this is what ends the body.
    """

    at: float = 30.0
    cancelled_at: float | None = None


Step: TypeAlias = Open | Restore | Call | Close | Disturb | Strike


@attrs.frozen(kw_only=True)
class History:
    """Everything that a run needs.

    Attributes:
        seed: Also of Trio's scheduler.
        instances: Processes with a factory each; they share a storage.
        steps: In order of their times.
    """

    seed: int = 0
    settings: FactorySettings = attrs.field(factory=FactorySettings)
    backends: tuple[BackendSpec, ...] = (BackendSpec(id="b0"),)
    instances: tuple[Exit, ...] = (Exit(),)
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        parts = (self.settings, *self.backends, *self.instances, *self.steps)
        return "\n".join(map(brief, parts))


def brief(part: Any) -> str:
    """The repr of a frozen object, without what is as ever."""
    if not attrs.has(type(part)):
        return repr(part)
    shown = []
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        usual = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        if value != usual:
            shown.append(f"{field.name}={brief(value)}")
    return f"{type(part).__name__}({', '.join(shown)})"


def draw_history(seed: int) -> History:
    """The history of this seed."""
    return _Draw(random.Random(seed)).history(seed)


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
HANDSHAKES = ("initialize", "initialize", "server/discover", "notifications/initialized", "tools/list", "POST")
CALLS = ("tools/call", "tools/call", "resources/read", "prompts/get", "POST")


@attrs.define
class _Draw:
    random: random.Random

    def history(self, seed: int) -> History:
        end = self.one_of(5.0, 12.0, 30.0)
        backends = tuple(self.backend(f"b{number}") for number in range(self.one_of(1, 1, 2, 2, 3, 4, 5)))
        instances = tuple(self.exit(end) for _ in range(self.one_of(1, 1, 1, 2)))
        steps = [step for number in range(self.one_of(1, 2, 3)) for step in self.session(number, backends, end)]
        steps += [self.trouble(len(backends), end) for _ in range(self.one_of(0, 1, 3, 5, 8, 12))]
        return History(
            seed=seed,
            settings=self.settings(backends),
            backends=backends,
            instances=instances,
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
            idle_timeout=self.one_of(4.0, *[1800.0] * 5),
            on_exit=self.one_of("terminate", "terminate", "suspend"),
            max_message_bytes=self.one_of(1500, 1 << 20, 1 << 20, 1 << 20),
            conflict_resolution=self.one_of(*strategies),
            identity_keys=KEYS,
        )

    def backend(self, backend_id: str) -> BackendSpec:
        era: Literal["legacy", "modern", "both"] = self.one_of("legacy", "legacy", "modern", "both")
        return BackendSpec(
            id=backend_id,
            era=era,
            configured_era=self.one_of("auto", "auto", "legacy" if era == "both" else era),
            answers=self.one_of("json", "sse"),
            resumable=self.chance(0.2),
            latency=self.one_of(0.0, 0.0, 0.001, 0.2),
            session_ids=self.chance(0.9),
            page_size=self.one_of(None, None, 1),
            tools=self.some(TOOLS),
            resources=self.some(RESOURCES),
            prompts=self.some(PROMPTS),
        )

    def exit(self, end: float) -> Exit:
        at = end + self.one_of(*SHORT)
        return Exit(at=at, cancelled_at=at + self.one_of(-1.0, 0.0, 0.001, 0.5) if self.chance(0.4) else None)

    def session(self, number: int, backends: Sequence[BackendSpec], end: float) -> list[Step]:
        """The lives of one session: opened, called, closed by any number of closers, perhaps restored, and again."""
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
                give_up=self.give_up(0.08),
            )
        ]
        while True:
            at += self.one_of(0.0, 0.5, 2.0, 2.0)  # an opening with latency takes 1.6 s
            span = self.one_of(0.5, self.random.uniform(2.0, end / 2 + 1))
            returns = self.chance(0.5)
            steps += self.calls(number, at, span)
            if not returns and self.chance(0.3):  # it is left to its factory
                return steps
            closers = [self.close(number, at + span, returns) for _ in range(self.one_of(1, 1, 1, 2, 3))]
            steps += closers
            if not returns or at > end:
                return steps
            at = max(closer.at for closer in closers) + self.moment(end / 4)
            passed = members if self.chance(0.8) else self.some(range(len(backends))) or members
            steps.append(
                Restore(
                    at=at, session=number, instance=self.random.randrange(2), backends=passed, give_up=self.give_up(0.1)
                )
            )

    def calls(self, session: int, since: float, span: float) -> list[Step]:
        """Some alone, some at the same moment, a few when it is too late."""
        moments = [since + self.one_of(0.0, self.random.uniform(0, 1.1 * span)) for _ in range(self.one_of(1, 3, 6))]
        return [self.call(session, at) for at in moments for _ in range(self.one_of(1, 1, 1, 2, 5))]

    def call(self, session: int, at: float) -> Call:
        return Call(
            at=at,
            session=session,
            kind=self.one_of("tool", "tool", "tool", "resource", "prompt"),
            pick=None if self.chance(0.05) else self.random.randrange(12),
            seconds=self.one_of(*SHORT, 20.0),
            progress=self.one_of(0, 0, 1, 3),
            on_progress="note" if self.chance(0.85) else self.one_of("raise", "shield", "aclose", "suspend"),
            timeout=self.one_of(None, None, None, 0.0, 0.001, 0.3, 2.0),
            caller="wrong" if self.chance(0.05) else "right",
            inside=self.chance(0.5),
            give_up=self.give_up(0.2),
        )

    def close(self, session: int, at: float, returns: bool) -> Close:
        return Close(
            at=at + self.one_of(*SHORT),
            session=session,
            terminate=self.chance(0.03 if returns else 0.7),
            drain_timeout=self.one_of(None, None, 0.0, 0.3, 2.0),
            give_up=self.give_up(0.2),
        )

    def trouble(self, backends: int, end: float) -> Step:
        at, backend = self.moment(end), self.random.randrange(backends)
        if self.chance(0.3):
            return Disturb(at=at, backend=backend, what=self.one_of("crash", "restart", "forget", "heal", "relist"))
        kind = self.one_of("connect", "goodbye", "handshake", "handshake", "call", "call")
        fault: Fault
        match kind:
            case "connect":
                matches, fault = CONNECT, self.random.choice((Refuse(), Hang(), Delay(0.5)))
            case "goodbye":
                matches, fault = "DELETE", self.fault()
            case "handshake":
                matches, fault = self.one_of(*HANDSHAKES), self.fault()
            case _:
                matches, fault = self.one_of(*CALLS), self.fault()
        early = self.chance(0.5)  # most of what can go wrong goes wrong while a session opens
        return Strike(
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

    def give_up(self, chance: float) -> GiveUp | None:
        if not self.chance(chance):
            return None
        return GiveUp(self.one_of(*SHORT), self.one_of(0, 1, 2, 5, 20, 60))

    def moment(self, within: float) -> float:
        """s; often one that other steps have, too."""
        return self.one_of(*SHORT, self.random.uniform(0, within))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one_of(self, *choices: T) -> T:
        return self.random.choice(choices)

    def some(self, pool: Sequence[T]) -> tuple[T, ...]:
        return tuple(item for item in pool if self.chance(0.6))
