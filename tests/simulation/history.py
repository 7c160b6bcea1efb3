"""What may happen: a history is plain data, and says everything that a run needs.

Steps begin at their time and do not wait for each other, so that at any moment several are under way. Times repeat on
purpose: what happens at the same moment is ordered by Trio's scheduler, which the seed rules, too.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs
from support.memory_processes import Manners

from trio_vmcp import FactorySettings
from trio_vmcp.testing import Fault, Hang

__all__ = [
    "PROMPTS",
    "RESOURCES",
    "TOOLS",
    "AddBackend",
    "BackendSpec",
    "Call",
    "CancelCaller",
    "ChangeList",
    "Close",
    "Disturb",
    "Exit",
    "ExpireSession",
    "FailStorage",
    "Given",
    "GrantTokens",
    "Guard",
    "History",
    "InjectFault",
    "Inspect",
    "Kind",
    "Open",
    "Operation",
    "Question",
    "RemoveBackend",
    "Restore",
    "RotateTokens",
    "Step",
    "Subscribe",
    "WatchChanges",
    "WithholdTokens",
    "brief",
]

Kind: TypeAlias = Literal["tool", "resource", "prompt"]
Question: TypeAlias = Literal["ping", "sampling", "elicitation", "roots"]
Given: TypeAlias = Literal["sampling", "elicitation", "roots", "log"]
Operation: TypeAlias = Literal["create", "load", "replace", "delete"]

TOOLS = ("echo", "work", "now", "b0_echo")  # few, so that backends share them; the last one looks like a prefixed name
RESOURCES = ("mem://notes", "mem://log")
PROMPTS = ("greet", "sum")


@attrs.frozen(kw_only=True)
class Guard:
    """A backend wants a token of its own for each identity, and answers every request without it with HTTP 401.

    Attributes:
        seconds: How long it takes to get a new one.
        reads_refusals: Whose token it is looks at the whole answer that refuses it.
    """

    seconds: float = 0.0
    reads_refusals: bool = False


@attrs.frozen(kw_only=True)
class BackendSpec:
    """One scripted backend, and how a user configures it.

    Attributes:
        is_listened_to: The user wants to hear of changes.
        is_named: The user names its transport; an "sse" backend that is not is left to the probe.
        holds_posts: An "sse" backend ends a POST with its answer.
        manners: Of a "stdio" backend's process.
        ttl, cache_scope: s, and for whom a modern one allows to keep what it lists and what is read.
    """

    id: str
    transport: Literal["streamable-http", "sse", "stdio"] = "streamable-http"
    is_named: bool = True
    holds_posts: bool = False
    manners: Manners = "polite"
    era: Literal["legacy", "modern", "both"] = "legacy"
    configured_era: Literal["auto", "legacy", "modern"] = "auto"
    answers: Literal["json", "sse"] = "json"
    resumable: bool = False
    latency: float = 0.0  # s
    session_ids: bool = True
    page_size: int | None = None
    listens: bool = False
    is_listened_to: bool = True
    ttl: float = 0.0
    cache_scope: Literal["public", "private"] = "private"
    tools: tuple[str, ...] = TOOLS[:2]
    resources: tuple[str, ...] = RESOURCES[:1]
    prompts: tuple[str, ...] = PROMPTS[:1]
    guard: Guard | None = None

    @property
    def can_ask(self) -> bool:
        """There is a way to its client while it is at a call, whatever era it speaks."""
        return self.transport != "streamable-http" or self.answers == "sse"


@attrs.frozen
class CancelCaller:
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
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Restore:
    """Restore what was opened under this number."""

    at: float = 0.0
    session: int = 0
    instance: int = 0
    backends: tuple[int, ...] = (0,)
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Call:
    """One call, of the `pick`-th name that the session advertises, or of one that nobody has.

    Attributes:
        kind: What is called; a "completion" is of a prompt's argument.
        seconds: How long the tool works.
        progress: How often it says how far it is.
        logs: How many log messages it sends, if there is a way.
        asks: How often it asks its client something before it answers, if there is a way.
        question: What it asks for.
        thinks: s, that the client's handler takes.
        reply: What the handler does then: give the right answer, fail, never answer, or first call a tool of its own
            session, or close that.
        on_progress: What the caller's callback does at the first of those.
        timeout: s; None: the factory's.
        plain: It takes nothing along that is its own, so that what was read before may do.
        inside: Its task belongs to the block that holds the factory, and goes with it.
    """

    at: float = 0.0
    session: int = 0
    kind: Kind | Literal["completion"] = "tool"
    pick: int | None = 0
    seconds: float = 0.0
    progress: int = 0
    logs: int = 0
    asks: int = 0
    question: Question = "ping"
    thinks: float = 0.0
    reply: Literal["right", "fail", "hang", "call", "close"] = "right"
    on_progress: Literal["note", "raise", "aclose", "suspend", "shield"] = "note"
    timeout: float | None = None
    caller: Literal["right", "wrong"] = "right"
    plain: bool = False
    inside: bool = False
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Close:
    """One of perhaps several who close a session."""

    at: float = 0.0
    session: int = 0
    terminate: bool = True
    drain_timeout: float | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class AddBackend:
    """Take a backend into a live session; one that is in it already is refused."""

    at: float = 0.0
    session: int = 0
    backend: int = 0
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class RemoveBackend:
    """Let one backend of a live session go; one that is not in it is refused."""

    at: float = 0.0
    session: int = 0
    backend: int = 0
    drain_timeout: float | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Subscribe:
    """To the `pick`-th resource that the session advertises, or (`wanted` False) no longer."""

    at: float = 0.0
    session: int = 0
    pick: int = 0
    wanted: bool = True
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class WatchChanges:
    """Listen for `seconds` to what changes about a session."""

    at: float = 0.0
    session: int = 0
    seconds: float = 10.0
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Inspect:
    """See how every open session is, as soon as nobody has anything to do at this moment."""

    at: float = 0.0


@attrs.frozen(kw_only=True)
class Disturb:
    """Something befalls a whole backend.

    crash    It refuses connections from now on; a program cannot be started, or ends at once.
    return   It takes them again, as a new process that knows no session.
    restart  Both at once.
    flip     It restarts as a server of the other era, or an "sse" one as a server of the next transport.
    forget   It no longer knows any session: streams that are one end, and so does every process.
    heal     Whatever `Strike` did to it is over.
    update   Its resources have new content, and it says so to whoever has subscribed.
    hush     It ends every stream on which it tells of changes.
    """

    at: float = 0.0
    backend: int = 0
    what: Literal["crash", "return", "restart", "flip", "lose_sessions", "heal", "update", "end_streams"] = "crash"


@attrs.frozen(kw_only=True)
class ExpireSession:
    """A backend forgets the session that it has known for longest.

    Attributes:
        how: What requests of it are answered with: HTTP 404; 400 and an error that names the session; a web page under
            404; or (for the first of them, then 404) 503. Where a stream or a process is the session, it ends.
    """

    at: float = 0.0
    backend: int = 0
    how: Literal["404", "400", "page", "503"] = "404"


@attrs.frozen(kw_only=True)
class ChangeList:
    """From now on a backend offers these names. It says so on the streams of its calls, those that run already and
    those to come, and to whoever listens.
    """

    at: float = 0.0
    backend: int = 0
    kind: Kind = "tool"
    names: tuple[str, ...] = ()
    description: str = "another"


@attrs.frozen(kw_only=True)
class FailStorage:
    """From now on the storage has trouble with an operation: it fails, works and then fails to say so, or is slow."""

    at: float = 0.0
    operation: Operation = "replace"
    how: Literal["fail", "lose", "slow"] = "fail"
    seconds: float = 1.0
    times: float = 1


@attrs.frozen(kw_only=True)
class InjectFault:
    """From now on, requests of a kind meet a fault."""

    at: float = 0.0
    backend: int = 0
    matches: str = "tools/call"
    fault: Fault = attrs.field(factory=Hang)
    times: float = 1
    skip: int = 0


@attrs.frozen(kw_only=True)
class RotateTokens:
    """From now on a guarded backend takes only new tokens. Who has an old one learns of it when that is refused."""

    at: float = 0.0
    backend: int = 0


@attrs.frozen(kw_only=True)
class WithholdTokens:
    """From now on, a guarded backend cannot be satisfied.

    Attributes:
        how: It refuses whatever it is given; or there are no new tokens: getting one fails, or (none) those who have
            none say so, and ask without.
    """

    at: float = 0.0
    backend: int = 0
    how: Literal["refuse", "fail", "none"] = "fail"


@attrs.frozen(kw_only=True)
class GrantTokens:
    """Whatever a guarded backend withheld is over."""

    at: float = 0.0
    backend: int = 0


@attrs.frozen(kw_only=True)
class Exit:
    """How the block that holds an instance's factory ends.

    Attributes:
        at: The body ends.
        cancelled_at: Its surroundings are cancelled; before `at` this is what ends the body.
    """

    at: float = 30.0
    cancelled_at: float | None = None


Step: TypeAlias = (
    Open
    | Restore
    | Call
    | Close
    | AddBackend
    | RemoveBackend
    | Subscribe
    | WatchChanges
    | Inspect
    | Disturb
    | ExpireSession
    | ChangeList
    | FailStorage
    | InjectFault
    | RotateTokens
    | WithholdTokens
    | GrantTokens
)


@attrs.frozen(kw_only=True)
class History:
    """Everything that a run needs.

    Attributes:
        seed: Also of Trio's scheduler.
        instances: Processes with a factory each; they share a storage.
        given: The handlers that every factory is given.
        steps: In order of their times.
    """

    seed: int = 0
    settings: FactorySettings = attrs.field(factory=FactorySettings)
    backends: tuple[BackendSpec, ...] = (BackendSpec(id="b0"),)
    instances: tuple[Exit, ...] = (Exit(),)
    given: tuple[Given, ...] = ()
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        parts = (self.settings, *self.backends, *self.instances, *self.steps)
        return "\n".join([*map(brief, parts), f"given: {', '.join(self.given) or 'no handlers'}"])


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
