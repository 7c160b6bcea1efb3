"""The steps of a history. A history is plain data and holds everything that a run needs.

Each step begins at its time and waits for no other, so several are under way at once. Steps may share a time: Trio's
scheduler orders them, and the history's seed decides its order.

Several instances may hold a copy of one session. A step for a session is about the copy that was opened or restored
last; with an `instance`, about the copy of that instance. It is left out where there is none.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs
from support.memory_processes import Manners

from trio_vmcp import FactorySettings
from trio_vmcp.connector import PreferredEra
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
    "Freeze",
    "Given",
    "GrantTokens",
    "Guard",
    "HealStorage",
    "History",
    "InjectFault",
    "Inspect",
    "Kill",
    "Kind",
    "Open",
    "Operation",
    "Question",
    "RemoveBackend",
    "Restore",
    "RotateTokens",
    "Rounds",
    "SetAttributes",
    "SetLogLevel",
    "Step",
    "Subscribe",
    "WatchChanges",
    "WithholdTokens",
    "brief",
]

Kind: TypeAlias = Literal["tool", "resource", "prompt"]
Question: TypeAlias = Literal["ping", "sampling", "elicitation", "roots"]
Given: TypeAlias = Literal["sampling", "elicitation", "roots", "log"]
Rounds: TypeAlias = Literal["handlers", "hand out", "answer"]
Operation: TypeAlias = Literal["create", "load", "replace", "touch", "delete"]

TOOLS = ("echo", "work", "now", "b0_echo")  # few, so that backends share them; the last one looks like a prefixed name
RESOURCES = ("mem://notes", "mem://log")
PROMPTS = ("greet", "sum")


@attrs.frozen(kw_only=True)
class Guard:
    """A backend expects a token for each identity, and answers every request without a good one with HTTP 401.

    Attributes:
        seconds: A new token takes this long.
        reads_refusals: The credentials read the whole body of a 401 (`httpx.Auth.requires_response_body`).
    """

    seconds: float = 0.0
    reads_refusals: bool = False


@attrs.frozen(kw_only=True)
class BackendSpec:
    """One scripted backend, and the `Backend` that configures it.

    Attributes:
        is_listened_to: `Backend.listen`: the session holds a stream for changes.
        is_named: `Backend.transport` names the transport; if not, the probe has to find an "sse" backend.
        holds_posts: An "sse" backend answers a POST only when the call is answered.
        manners: How a "stdio" backend's process takes its end.
        ttl, cache_scope: For so many s, and for these callers, lists and reads of a modern backend may be cached.
        stop_after, progress_timeout: As in `Backend`, s.
        logs: It declares `logging`, so it can be told the level.
        renamed: Own names of tools, and what `Backend.overrides` calls them instead: names that no tool has.
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
    stop_after: float | None = None
    progress_timeout: float | None = None
    logs: bool = False
    renamed: tuple[tuple[str, str], ...] = ()

    def name_for(self, own_name: str) -> str:
        """What a tool of this backend is called, before a prefix."""
        return dict(self.renamed).get(own_name, own_name)

    @property
    def can_ask(self) -> bool:
        """During a call the backend can send requests and notifications to its client."""
        return self.transport != "streamable-http" or self.answers == "sse"


@attrs.frozen
class CancelCaller:
    """Cancel the task of a step.

    Attributes:
        after: s, from the beginning of the step.
        checkpoints: So many checkpoints later; virtual time stands still meanwhile.
    """

    after: float = 0.0
    checkpoints: int = 0


@attrs.frozen(kw_only=True)
class Open:
    """Open a session; later steps refer to it by its number.

    Attributes:
        backends: Indexes into the history's backends.
        bound: Opened with an identity, so that only this identity may call.
        held: Opened by `async with open_session`. The block ends when the step is cancelled, or with the history.
        prefer: `prefer_era`.
    """

    at: float = 0.0
    session: int = 0
    instance: int = 0
    backends: tuple[int, ...] = (0,)
    bound: bool = False
    held: bool = False
    prefer: PreferredEra | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Restore:
    """Restore the session of this number; another instance may still hold a copy."""

    at: float = 0.0
    session: int = 0
    instance: int = 0
    backends: tuple[int, ...] = (0,)
    prefer: PreferredEra | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Call:
    """One call of a name that the session advertises.

    Attributes:
        kind: A "completion" completes a prompt's argument.
        pick: The `pick`-th advertised name; None: a name that no backend has.
        seconds: The tool works this long.
        progress: The tool sends so many progress notifications.
        pace: The tool waits for so many s after each of them.
        hears_progress: The caller asks to be told of them.
        logs: The tool sends so many log messages, if the backend can send during a call.
        asks: The tool sends its client so many requests before it answers, if the backend can send during a call.
        question: The method of those requests.
        thinks: The client's handler takes this many s.
        reply: Then the handler gives the right answer, raises, never returns, or first calls a tool of the same
            session or closes the session.
        on_progress: What the caller's progress callback does when it is called first.
        timeout: s; None: the factory's `request_timeout`.
        caller: "wrong": an identity that may not use the session.
        rounds: "hand out": a question of a modern backend is not for handlers, but for a step that answers. "answer":
            the step answers the oldest such question of the session, with the name and arguments of the call that
            asked. It is left out where there is none.
        plain: A read of a resource without the key of its call in `_meta`, so that a cached result may answer.
        inside: The calling task lives inside the factory's block, and is cancelled with it.
    """

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    kind: Kind | Literal["completion"] = "tool"
    pick: int | None = 0
    seconds: float = 0.0
    progress: int = 0
    pace: float = 0.0
    hears_progress: bool = True
    logs: int = 0
    asks: int = 0
    question: Question = "ping"
    thinks: float = 0.0
    reply: Literal["right", "fail", "hang", "call", "close"] = "right"
    on_progress: Literal["note", "raise", "aclose", "suspend", "shield"] = "note"
    timeout: float | None = None
    caller: Literal["right", "wrong"] = "right"
    rounds: Rounds = "handlers"
    plain: bool = False
    inside: bool = False
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Close:
    """Close a session; several steps may close the same one."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    terminate: bool = True
    drain_timeout: float | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class AddBackend:
    """`add_backend`; a backend that is already in the session is refused."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    backend: int = 0
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class RemoveBackend:
    """`remove_backend`; a backend that is not in the session is refused."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    backend: int = 0
    drain_timeout: float | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class SetAttributes:
    """`set_attributes`, to a value that no other step sets."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class SetLogLevel:
    """`set_log_level`."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    level: str = "debug"
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Subscribe:
    """Subscribe to the `pick`-th advertised resource, or (`wanted` False) unsubscribe."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    pick: int = 0
    wanted: bool = True
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class WatchChanges:
    """Receive from `session.changes()` for so many `seconds`."""

    at: float = 0.0
    session: int = 0
    instance: int | None = None
    seconds: float = 10.0
    cancel: CancelCaller | None = None


@attrs.frozen(kw_only=True)
class Inspect:
    """Record the state of every open session, as soon as all tasks wait."""

    at: float = 0.0


@attrs.frozen(kw_only=True)
class Disturb:
    """Change the state of a whole backend.

    crash          It refuses connections from now on; a program cannot be started, or ends at once.
    return         It accepts connections again, as a new process without sessions.
    restart        Crash and return at once.
    flip           It restarts as a server of the other era; an "sse" backend, of the other transport.
    lose_sessions  It loses every session; where the session is a stream or a process, that ends.
    heal           No fault of an `InjectFault` strikes any more.
    update         Its resources have new content, and it sends `resources/updated` to its subscribers.
    end_streams    It ends every stream that carries notifications of changes.
    """

    at: float = 0.0
    backend: int = 0
    what: Literal["crash", "return", "restart", "flip", "lose_sessions", "heal", "update", "end_streams"] = "crash"


@attrs.frozen(kw_only=True)
class ExpireSession:
    """A backend loses its oldest session.

    Attributes:
        how: Requests of that session are answered with HTTP 404; with 400 and an error that names the session; with a
            web page under 404; or with 503 once, then 404. Where a stream or a process is the session, that ends.
    """

    at: float = 0.0
    backend: int = 0
    how: Literal["404", "400", "page", "503"] = "404"


@attrs.frozen(kw_only=True)
class ChangeList:
    """From now on a backend offers these names. It announces this on held streams, and on the streams of its running
    and later calls.
    """

    at: float = 0.0
    backend: int = 0
    kind: Kind = "tool"
    names: tuple[str, ...] = ()
    description: str = "another"


@attrs.frozen(kw_only=True)
class FailStorage:
    """From now on storage operations meet a fault. Of several faults, the oldest strikes.

    fail    It raises, and does nothing.
    lose    It does what it is asked to, and raises.
    silent  It does what it is asked to, and never answers.
    slow    It begins after so many `seconds`.
    late    The same; and no cancel stops it, so that it may be done after the session has given it up.
    lie     A load answers with the row of another session.

    Attributes:
        operation: None: any of them.
        instance: Those of this instance; None: of all.
        times: So many operations are struck.
    """

    at: float = 0.0
    operation: Operation | None = "replace"
    instance: int | None = None
    how: Literal["fail", "lose", "silent", "slow", "late", "lie"] = "fail"
    seconds: float = 1.0
    times: float = 1


@attrs.frozen(kw_only=True)
class HealStorage:
    """No fault of a `FailStorage` strikes this instance any more; None: no instance."""

    at: float = 0.0
    instance: int | None = None


@attrs.frozen(kw_only=True)
class Freeze:
    """An instance stands still: its deadlines pass, and none of its tasks takes a step, nor do those of its callers.

    Attributes:
        seconds: For so long.
    """

    at: float = 0.0
    instance: int = 0
    seconds: float = 1.0


@attrs.frozen(kw_only=True)
class Kill:
    """The process of an instance is gone, without a farewell; its connections are cut, and its programs end."""

    at: float = 0.0
    instance: int = 0


@attrs.frozen(kw_only=True)
class InjectFault:
    """From now on requests that match meet a fault."""

    at: float = 0.0
    backend: int = 0
    matches: str = "tools/call"
    fault: Fault = attrs.field(factory=Hang)
    times: float = 1
    skip: int = 0


@attrs.frozen(kw_only=True)
class RotateTokens:
    """From now on a guarded backend accepts only new tokens; a request with an old one is answered with HTTP 401."""

    at: float = 0.0
    backend: int = 0


@attrs.frozen(kw_only=True)
class WithholdTokens:
    """From now on a guarded backend has no good token for anything.

    Attributes:
        how: "refuse": it refuses every token; "fail": fetching a new token raises; "none": `auth` returns None where no
            token is held, so that the request goes out without credentials.
    """

    at: float = 0.0
    backend: int = 0
    how: Literal["refuse", "fail", "none"] = "fail"


@attrs.frozen(kw_only=True)
class GrantTokens:
    """A guarded backend gives out and accepts tokens again."""

    at: float = 0.0
    backend: int = 0


@attrs.frozen(kw_only=True)
class Exit:
    """An instance: the end of the `async with` block of its factory, and its wall clock.

    Attributes:
        at: The body ends at this time.
        cancelled_at: The scope around the block is cancelled at this time, before or after the body's end.
        ahead: s, that the instance's wall clock is ahead of the right time.
    """

    at: float = 30.0
    cancelled_at: float | None = None
    ahead: float = 0.0


Step: TypeAlias = (
    Open
    | Restore
    | Call
    | Close
    | AddBackend
    | RemoveBackend
    | SetAttributes
    | SetLogLevel
    | Subscribe
    | WatchChanges
    | Inspect
    | Disturb
    | ExpireSession
    | ChangeList
    | FailStorage
    | HealStorage
    | Freeze
    | Kill
    | InjectFault
    | RotateTokens
    | WithholdTokens
    | GrantTokens
)


@attrs.frozen(kw_only=True)
class History:
    """Everything that a run needs.

    Attributes:
        seed: The history was drawn from this seed, and it orders Trio's scheduler.
        instances: One factory each, as in several processes; all share one storage.
        ttl: s, of that storage.
        given: The handlers that every factory gets.
        steps: In order of their times.
    """

    seed: int = 0
    settings: FactorySettings = attrs.field(factory=FactorySettings)
    backends: tuple[BackendSpec, ...] = (BackendSpec(id="b0"),)
    instances: tuple[Exit, ...] = (Exit(),)
    ttl: float = 1800.0
    given: tuple[Given, ...] = ()
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        parts = (self.settings, *self.backends, *self.instances, *self.steps)
        rest = f"given: {', '.join(self.given) or 'no handlers'}; ttl: {self.ttl}"
        return "\n".join([*map(brief, parts), rest])


def brief(part: Any) -> str:
    """The repr of a frozen object, without fields that have their defaults."""
    if not attrs.has(type(part)):
        return repr(part)
    shown = []
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        usual = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        if value != usual:
            shown.append(f"{field.name}={brief(value)}")
    return f"{type(part).__name__}({', '.join(shown)})"
