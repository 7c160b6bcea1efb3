"""What a `Storage` must answer to one caller: short scripts, each for one id, in four phases of a time to live.

The phases are so far apart that a storage may take a fifth of its TTL for one of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

import attrs
import trio

from trio_vmcp.errors import MetadataConflict, SessionExists, SessionNotFound, VmcpError
from trio_vmcp.metadata import SCHEMA_VERSION, BackendRecord, SessionMetadata
from trio_vmcp.storage import Storage

__all__ = ["LIVES", "broken", "make_row", "new_id", "play_lives", "play_moments"]

_Due = int | type[Exception] | None

_NOON = datetime(2026, 7, 28, 12, 0, tzinfo=UTC)
# Fractions of the TTL at which the phases begin. What is written at 0 is gone at 1.25, what is written at 0.5 is there
# at 1.25 and gone at 1.75.
_PHASES = {"now": 0.0, "middle": 0.5, "late": 1.25, "end": 1.75}
_LONGEST_PHASE = 0.2


def new_id() -> str:
    """An id that no other run has used: the storage may be shared, and remembers ids for a TTL."""
    return secrets.token_urlsafe(16)


def make_row(session_id: str, version: int, writer: str = "the contract") -> SessionMetadata:
    """A row with fields that differ from one version to the next."""
    record = BackendRecord(
        backend_id="files",
        session_id=f"backend-session-{version}",
        era="legacy",
        protocol_version="2025-11-25",
        server_capabilities={"tools": {"listChanged": True}, "experimental": {"π": [version, 0.5, None]}},
        endpoint_digest="ab12",
    )
    return SessionMetadata(
        schema_version=SCHEMA_VERSION,
        session_id=session_id,
        created_at=_NOON,
        updated_at=_NOON + timedelta(microseconds=version % 1000),
        version=version,
        identity_binding=f"binding-{version}" if version % 2 else None,
        backends=(record, attrs.evolve(record, backend_id="time", session_id=None, era="modern")),
        bindings={"tools": {"files_read": "files"}, "prompts": {}},
        used_at=_NOON + timedelta(hours=version % 1000),
        attributes={"writer": writer, "place": "Ærø \N{GREEK SMALL LETTER PI} 'x' \"y\" \\ \n"},
    )


def broken(rule: str, found: str) -> AssertionError:
    return AssertionError(f"storage contract: {rule}: {found}")


@attrs.frozen
class _Step:
    """An operation, and its due outcome: None, the version that a load reads, or the error."""

    text: str
    run: Callable[[Storage, str], Awaitable[SessionMetadata | None]]
    due: _Due

    async def check(self, storage: Storage, session_id: str, rule: str) -> None:
        try:
            found = await self.run(storage, session_id)
        except Exception as exc:
            if isinstance(self.due, type) and isinstance(exc, self.due):
                return
            why = "" if isinstance(exc, (VmcpError, ValueError)) else " (an error of the storage's own client?)"
            raise broken(rule, f"{self.text} raised {type(exc).__name__}: {exc}{why}, {self._due_text()}") from exc
        if isinstance(self.due, type):
            raise broken(rule, f"{self.text} raised nothing, {self._due_text()}")
        if self.due is not None and found != (row := make_row(session_id, self.due)):
            raise broken(rule, f"{self.text} gave {_difference(found, row)}, {self._due_text()}")

    def _due_text(self) -> str:
        if isinstance(self.due, type):
            return f"{self.due.__name__} was due"
        return "no error was due" if self.due is None else f"the row at version {self.due}, as it was stored, was due"


def _difference(found: object, row: SessionMetadata) -> str:
    """What of `found` is not as in `row`, without its secrets."""
    if not isinstance(found, SessionMetadata):
        return f"an object of type {type(found).__name__}"
    names = (field.name for field in attrs.fields(SessionMetadata))
    return "another " + ", ".join(name for name in names if getattr(found, name) != getattr(row, name))


def _with(expected_version: int | None) -> dict[str, int]:
    return {} if expected_version is None else {"expected_version": expected_version}


def create(version: int = 3, due: type[Exception] | None = None) -> _Step:
    return _Step(f"create(version={version})", lambda storage, name: storage.create(make_row(name, version)), due)


def load(due: int | type[Exception]) -> _Step:
    return _Step("load", lambda storage, name: storage.load(name), due)


def replace(version: int, expected: int, due: type[Exception] | None = None) -> _Step:
    return _Step(
        f"replace(version={version}, expected_version={expected})",
        lambda storage, name: storage.replace(make_row(name, version), expected_version=expected),
        due,
    )


def touch(expected: int | None = None, due: type[Exception] | None = None) -> _Step:
    return _Step(
        f"touch(expected_version={expected})", lambda storage, name: storage.touch(name, **_with(expected)), due
    )


def delete(expected: int | None = None, due: type[Exception] | None = None) -> _Step:
    return _Step(
        f"delete(expected_version={expected})", lambda storage, name: storage.delete(name, **_with(expected)), due
    )


@attrs.frozen
class Life:
    """A rule, and the steps with one id that show it, by phase."""

    rule: str
    now: tuple[_Step, ...] = ()
    middle: tuple[_Step, ...] = ()
    late: tuple[_Step, ...] = ()
    end: tuple[_Step, ...] = ()

    @property
    def takes_time(self) -> bool:
        return bool(self.middle or self.late or self.end)


NO_ROW = load(SessionNotFound)
REFUSED = create(3, SessionExists)
BIG = 2**53  # from here on not every whole number is a float

LIVES = (
    Life("load: SessionNotFound where there is no row", now=(NO_ROW, create(), load(3))),
    Life(
        "replace: SessionNotFound where there is no row, and none is made",
        now=(replace(4, 3, SessionNotFound), NO_ROW, create(), load(3)),
    ),
    Life(
        "touch: SessionNotFound where there is no row, at any version, and none is made",
        now=(touch(None, SessionNotFound), touch(7, SessionNotFound), NO_ROW, create(), load(3)),
    ),
    Life("create: the row is stored as given, its version included", now=(create(7), load(7))),
    Life(
        "create: SessionExists where the id has a row, which stays as it is",
        now=(create(3), create(3, SessionExists), create(5, SessionExists), load(3)),
    ),
    Life(
        "replace: the row is stored as given, at expected_version + 1",
        now=(create(0), replace(1, 0), load(1), replace(2, 1), load(2)),
    ),
    Life(
        "replace: MetadataConflict where the row is at another version, and it stays as it is",
        now=(
            create(3),
            *(replace(version + 1, version, MetadataConflict) for version in (0, 2, 4)),
            *(load(3), replace(4, 3), load(4), replace(4, 3, MetadataConflict), load(4)),
        ),
    ),
    Life(
        "replace: ValueError where metadata.version is not expected_version + 1, and the row stays as it is",
        now=(create(3), replace(3, 3, ValueError), replace(5, 3, ValueError), replace(0, 3, ValueError), load(3)),
    ),
    Life("touch: the row stays as it is", now=(create(3), touch(), load(3), touch(3), load(3))),
    Life(
        "touch: MetadataConflict where the row is at another version than expected_version",
        now=(create(3), *(touch(version, MetadataConflict) for version in (0, 2, 4)), load(3)),
    ),
    Life(
        "delete: the row is gone, for every operation",
        now=(create(), delete(), NO_ROW, replace(4, 3, SessionNotFound), touch(None, SessionNotFound)),
    ),
    Life(
        "delete: MetadataConflict where the row is at another version than expected_version, and it stays as it is",
        now=(create(3), *(delete(version, MetadataConflict) for version in (0, 2, 4)), load(3), touch(3)),
    ),
    Life(
        "delete: leaves a tombstone, at which create is SessionExists",
        now=(create(), delete(), REFUSED, create(0, SessionExists), NO_ROW, REFUSED),
    ),
    Life("delete: a row at expected_version is deleted", now=(create(), delete(3), NO_ROW, REFUSED)),
    Life("delete: leaves a tombstone also for an id that never was", now=(delete(), REFUSED, NO_ROW)),
    Life(
        "delete: idempotent, and expected_version makes no difference where there is no row",
        now=(delete(7), REFUSED, delete(3), delete(), REFUSED),
    ),
    Life(
        "versions are compared as whole numbers, large ones too",
        now=(
            *(create(BIG), load(BIG), touch(BIG + 1, MetadataConflict), replace(BIG + 2, BIG + 1, MetadataConflict)),
            *(replace(BIG + 1, BIG), load(BIG + 1), delete(BIG, MetadataConflict), delete(BIG + 1), NO_ROW),
        ),
    ),
    Life(
        "create: the row lives for one ttl, and the id may then be created again",
        now=(create(),),
        middle=(load(3),),
        late=(NO_ROW, replace(4, 3, SessionNotFound), touch(None, SessionNotFound), create(5), load(5)),
        end=(load(5),),
    ),
    Life("load: does not extend the ttl", now=(create(),), middle=(load(3), load(3)), late=(NO_ROW,)),
    Life(
        "touch: the row lives for another ttl from now",
        now=(create(), touch()),
        middle=(touch(), touch()),
        late=(load(3),),
        end=(NO_ROW,),
    ),
    Life(
        "touch: the row lives for another ttl from now, with expected_version too",
        now=(create(), touch(3)),
        middle=(touch(3),),
        late=(load(3),),
        end=(NO_ROW,),
    ),
    Life(
        "replace: the row lives for another ttl from now",
        now=(create(),),
        middle=(replace(4, 3), replace(5, 4)),
        late=(load(5),),
        end=(NO_ROW, create()),
    ),
    Life(
        "create: a refused one does not extend the ttl of the row",
        now=(create(),),
        middle=(REFUSED,),
        late=(NO_ROW,),
    ),
    Life(
        "replace: a refused one does not extend the ttl of the row",
        now=(create(),),
        middle=(replace(5, 4, MetadataConflict), replace(3, 3, ValueError)),
        late=(NO_ROW,),
    ),
    Life(
        "touch: a refused one does not extend the ttl of the row",
        now=(create(),),
        middle=(touch(4, MetadataConflict),),
        late=(NO_ROW,),
    ),
    Life(
        "delete: a refused one does not extend the ttl of the row, and leaves no tombstone",
        now=(create(),),
        middle=(delete(4, MetadataConflict),),
        late=(NO_ROW, create()),
    ),
    Life(
        "delete: the tombstone lives for one ttl from the delete, and the id may then be created again",
        now=(create(),),
        middle=(delete(),),
        late=(REFUSED, NO_ROW),
        end=(create(), load(3)),
    ),
    Life(
        "delete: a second one changes nothing, not even the end of the tombstone",
        now=(create(), delete()),
        middle=(delete(), delete(3)),
        late=(create(), load(3)),
    ),
    Life(
        "delete: a second one changes nothing, not even the end of the tombstone of an id that never was",
        now=(delete(),),
        middle=(delete(), delete(3), REFUSED),
        late=(create(),),
    ),
    Life(
        "delete: the tombstone lives no longer because of operations that it refuses",
        now=(delete(),),
        middle=(
            REFUSED,
            NO_ROW,
            touch(None, SessionNotFound),
            touch(3, SessionNotFound),
            replace(4, 3, SessionNotFound),
        ),
        late=(create(),),
    ),
    Life(
        "delete: leaves a tombstone also where the row had expired",
        now=(create(),),
        late=(delete(), REFUSED),
        end=(REFUSED,),
    ),
)


async def play_lives(storage: Storage) -> bool:
    """Play all lives side by side, by `storage.ttl` and the clock of the run.

    Returns:
        Whether it can be judged: False where a phase took too long.

    Raises:
        AssertionError: Names the rule that was broken.
    """
    begun_at = trio.current_time()
    lives = {life: new_id() for life in LIVES if life.takes_time}
    for phase, fraction in _PHASES.items():
        due_at = begun_at + fraction * storage.ttl
        await trio.sleep_until(due_at)
        failure = await _failure_in(phase, lives, storage)
        if trio.current_time() > due_at + _LONGEST_PHASE * storage.ttl:
            return False
        if failure is not None:
            raise failure
    return True


async def play_moments(storage: Storage) -> None:
    """Play all lives in which no time passes; `storage.ttl` must be longer than that takes.

    Raises:
        AssertionError: Names the rule that was broken.
    """
    failure = await _failure_in("now", {life: new_id() for life in LIVES if not life.takes_time}, storage)
    if failure is not None:
        raise failure


async def _failure_in(phase: str, lives: Mapping[Life, str], storage: Storage) -> AssertionError | None:
    try:
        for life, session_id in lives.items():
            for step in getattr(life, phase):
                await step.check(storage, session_id, life.rule)
    except AssertionError as failure:
        return failure
    return None
