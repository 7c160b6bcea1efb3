"""What may happen: a history is plain data, and says everything that a run needs.

Steps begin at their time and do not wait for each other, so that at any moment several are under way. Times repeat on
purpose: what happens at the same moment is ordered by Trio's scheduler, which the seed rules, too.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs

from trio_vmcp import FactorySettings
from trio_vmcp.testing import Fault, Hang

__all__ = [
    "PROMPTS",
    "RESOURCES",
    "TOOLS",
    "Add",
    "BackendSpec",
    "Call",
    "Close",
    "Disturb",
    "Exit",
    "Expire",
    "Failing",
    "GiveUp",
    "Guard",
    "History",
    "Kind",
    "Look",
    "Open",
    "Operation",
    "Relent",
    "Relist",
    "Remove",
    "Restore",
    "Rotate",
    "Step",
    "Strike",
    "Subscribe",
    "Watch",
    "Withhold",
    "brief",
]

Kind: TypeAlias = Literal["tool", "resource", "prompt"]
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
    """One scripted backend, and how a user configures it."""

    id: str
    era: Literal["legacy", "modern", "both"] = "legacy"
    configured_era: Literal["auto", "legacy", "modern"] = "auto"
    answers: Literal["json", "sse"] = "json"
    resumable: bool = False
    latency: float = 0.0  # s
    session_ids: bool = True
    page_size: int | None = None
    listens: bool = False
    tools: tuple[str, ...] = TOOLS[:2]
    resources: tuple[str, ...] = RESOURCES[:1]
    prompts: tuple[str, ...] = PROMPTS[:1]
    guard: Guard | None = None


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
        asks: How often it asks its client something before it answers, if there is a way.
        on_progress: What the caller's callback does at the first of those.
        timeout: s; None: the factory's.
        inside: Its task belongs to the block that holds the factory, and goes with it.
    """

    at: float = 0.0
    session: int = 0
    kind: Kind = "tool"
    pick: int | None = 0
    seconds: float = 0.0
    progress: int = 0
    asks: int = 0
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
class Add:
    """Take a backend into a live session; one that is in it already is refused."""

    at: float = 0.0
    session: int = 0
    backend: int = 0
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Remove:
    """Let one backend of a live session go; one that is not in it is refused."""

    at: float = 0.0
    session: int = 0
    backend: int = 0
    drain_timeout: float | None = None
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Subscribe:
    """To the `pick`-th resource that the session advertises, or (`wanted` False) no longer."""

    at: float = 0.0
    session: int = 0
    pick: int = 0
    wanted: bool = True
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Watch:
    """Listen for `seconds` to what changes about a session."""

    at: float = 0.0
    session: int = 0
    seconds: float = 10.0
    give_up: GiveUp | None = None


@attrs.frozen(kw_only=True)
class Look:
    """See how every open session is, as soon as nobody has anything to do at this moment."""

    at: float = 0.0


@attrs.frozen(kw_only=True)
class Disturb:
    """Something befalls a whole backend.

    crash    It refuses connections from now on.
    return   It takes them again, as a new process that knows no session.
    restart  Both at once.
    flip     It restarts as a server of the other era.
    forget   It no longer knows any session.
    heal     Whatever `Strike` did to it is over.
    update   It says that its resources have new content.
    """

    at: float = 0.0
    backend: int = 0
    what: Literal["crash", "return", "restart", "flip", "forget", "heal", "update"] = "crash"


@attrs.frozen(kw_only=True)
class Expire:
    """A backend forgets the session that it has known for longest.

    Attributes:
        how: What requests of it are answered with: HTTP 404; 400 and an error that names the session; a web page under
            404; or (for the first of them, then 404) 503.
    """

    at: float = 0.0
    backend: int = 0
    how: Literal["404", "400", "page", "503"] = "404"


@attrs.frozen(kw_only=True)
class Relist:
    """From now on a backend offers these names. It says so on the streams of its calls, those that run already and
    those to come, and to whoever listens.
    """

    at: float = 0.0
    backend: int = 0
    kind: Kind = "tool"
    names: tuple[str, ...] = ()
    description: str = "another"


@attrs.frozen(kw_only=True)
class Failing:
    """From now on the storage has trouble with an operation: it fails, works and then fails to say so, or is slow."""

    at: float = 0.0
    operation: Operation = "replace"
    how: Literal["fail", "lose", "slow"] = "fail"
    seconds: float = 1.0
    times: float = 1


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
class Rotate:
    """From now on a guarded backend takes only new tokens. Who has an old one learns of it when that is refused."""

    at: float = 0.0
    backend: int = 0


@attrs.frozen(kw_only=True)
class Withhold:
    """From now on, a guarded backend cannot be satisfied.

    Attributes:
        how: It refuses whatever it is given; or there are no new tokens: getting one fails, or (none) those who have
            none say so, and ask without.
    """

    at: float = 0.0
    backend: int = 0
    how: Literal["refuse", "fail", "none"] = "fail"


@attrs.frozen(kw_only=True)
class Relent:
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
    | Add
    | Remove
    | Subscribe
    | Watch
    | Look
    | Disturb
    | Expire
    | Relist
    | Failing
    | Strike
    | Rotate
    | Withhold
    | Relent
)


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
