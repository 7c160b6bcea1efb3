"""Strategies: which name a tool or prompt is advertised under, and which of several backends has a contested name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TypeAlias, cast

import attrs

from trio_vmcp._read_only import Copyable, read_only

__all__ = [
    "NO_PREFIXES",
    "Bare",
    "ConflictResolution",
    "Manual",
    "Prefix",
    "Prefixes",
    "Priority",
    "all_prefixes",
    "composer",
    "first_owner",
    "inner_prefixes",
]

_MOST_KNOWN = 64  # results for sets of backends: all sessions over the same backends have the same prefixes


@attrs.frozen
class Prefix:
    """Prefix every tool and prompt with its backend's id, so that no name depends on which backends are there.

    A name belongs to the configured backend with the longest prefix that it begins with: beside a backend `git_hub`,
    the backend `git` has no name that begins with `git_hub_`. A name that is cut at its beginning to fit, and would
    begin with the prefix of another backend then, has "_" in place of its first character ("x" if the format begins
    with "_").

    Raises:
        ValueError: The format does not hold `{backend}` exactly once, or holds another brace.
    """

    format: str = "{backend}_"

    def __attrs_post_init__(self) -> None:
        before, found, after = self.format.partition("{backend}")
        if not found or set("{}") & set(before + after):
            raise ValueError(f"Prefix format {self.format!r} must hold '{{backend}}' once and no other brace")


@attrs.frozen
class Bare:
    """Advertise names as they are; of several backends the first in configured order has a name."""


@attrs.frozen(init=False)
class Priority:
    """Advertise names as they are; the backends listed here come first, the others follow in configured order.

    Raises:
        ValueError: An id is not a non-empty str, or is listed twice.
    """

    backend_ids: tuple[str, ...]

    def __init__(self, *backend_ids: str) -> None:
        for index, backend_id in enumerate(backend_ids):
            if not _is_name(backend_id):
                raise ValueError(f"Priority lists {backend_id!r}, which is not a backend id")
            if backend_id in backend_ids[:index]:
                raise ValueError(f"Priority lists {backend_id!r} twice")
        object.__setattr__(self, "backend_ids", backend_ids)


@attrs.frozen
class Manual(Copyable):
    """Advertise what this mapping names, tools and prompts alike, and nothing else.

    A name that does not fit `FactorySettings.names_for` and `max_name_length` is changed as every other one is; opening
    the factory logs a warning with both names.

    Attributes:
        names: Advertised name to (backend id, the backend's own name).

    Raises:
        ValueError: An entry is not of that form, or two advertise the same thing.
    """

    names: Mapping[str, tuple[str, str]] = attrs.field(converter=read_only, hash=False)
    _advertised: Mapping[tuple[str, str], str] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        advertised: dict[tuple[str, str], str] = {}
        for name, target in self.names.items():
            if not (_is_name(name) and _is_pair(target)):
                raise ValueError(f"Manual entry {name!r}: {target!r} is not 'advertised': ('backend', 'name')")
            # One capability, one name: a conflict or a list change has to mean one entry of session.tools.
            if (other := advertised.setdefault(target, name)) != name:
                raise ValueError(f"Manual entries {other!r} and {name!r} both name {target!r}")
        object.__setattr__(self, "_advertised", advertised)

    def advertised_name(self, backend_id: str, name: str) -> str | None:
        """What this backend's capability is advertised as; None: not at all."""
        return self._advertised.get((backend_id, name))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_pair(value: object) -> bool:
    if not isinstance(value, tuple):
        return False
    parts = cast("tuple[object, ...]", value)
    return len(parts) == 2 and all(map(_is_name, parts))


ConflictResolution: TypeAlias = Prefix | Bare | Priority | Manual


# What a strategy decides.


def inner_prefixes(
    strategy: ConflictResolution, backend_ids: Sequence[str], legible: Callable[[str], str]
) -> dict[str, dict[str, str]]:
    """By backend id: the prefixes of other backends that begin with the prefix of this one and are longer, the longest
    first, each with its backend. A name inside such a prefix belongs to that other backend. Backends without any are
    left out.

    Args:
        legible: How prefixes are advertised: `a.b_` as `a_b_`, so that `a` has no name inside that either.
    """
    return _inner_prefixes(strategy, tuple(backend_ids), legible) if isinstance(strategy, Prefix) else {}


@lru_cache(maxsize=_MOST_KNOWN)
def _inner_prefixes(
    strategy: Prefix, backend_ids: tuple[str, ...], legible: Callable[[str], str]
) -> dict[str, dict[str, str]]:
    prefixes = sorted((legible(_prefix(strategy, backend_id)), backend_id) for backend_id in backend_ids)
    found: dict[str, dict[str, str]] = {}
    for at, (outer, backend_id) in enumerate(prefixes):
        # Sorted, all that begin with a prefix stand directly behind it, the longer behind the shorter that it contains.
        inner: list[tuple[str, str]] = []
        for pair in islice(prefixes, at + 1, None):
            if not pair[0].startswith(outer):
                break
            if len(pair[0]) > len(outer):
                inner.append(pair)
        if inner:
            found[backend_id] = dict(sorted(inner, key=lambda pair: len(pair[0]), reverse=True))
    return found


def _prefix(strategy: Prefix, backend_id: str) -> str:
    return strategy.format.replace("{backend}", backend_id)


@attrs.frozen
class Prefixes:
    """All configured prefixes as they are advertised, to keep cut names out of those of other backends: such a name
    begins with any part of a tool's own name, which its backend chooses.

    Attributes:
        owners: By prefix, the backends that have it.
        mark: A character that no prefix begins with.
    """

    owners: Mapping[str, frozenset[str]]
    mark: str
    _each: tuple[str, ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_each", tuple(self.owners))

    def belongs_elsewhere(self, name: str, backend_id: str) -> bool:
        """Whether the longest prefix that a name begins with is that of other backends."""
        if not name.startswith(self._each):
            return False
        longest = max(filter(name.startswith, self._each), key=len)
        return backend_id not in self.owners[longest]

    def marked(self, name: str) -> str:
        """A name that begins with no prefix, in place of this one, which is cut."""
        return self.mark + name[len(self.mark) :]

    def changed_since(self, before: Prefixes) -> tuple[str, ...]:
        """The prefixes whose owners differ."""
        both = self.owners.keys() | before.owners.keys()
        return tuple(prefix for prefix in both if self.owners.get(prefix) != before.owners.get(prefix))


NO_PREFIXES = Prefixes({}, "")


def all_prefixes(strategy: ConflictResolution, backend_ids: Sequence[str], legible: Callable[[str], str]) -> Prefixes:
    """Of all configured backends. Without `Prefix` there are none.

    Args:
        legible: As in `inner_prefixes`.
    """
    return _all_prefixes(strategy, tuple(backend_ids), legible) if isinstance(strategy, Prefix) else NO_PREFIXES


@lru_cache(maxsize=_MOST_KNOWN)
def _all_prefixes(strategy: Prefix, backend_ids: tuple[str, ...], legible: Callable[[str], str]) -> Prefixes:
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for backend_id in backend_ids:
        owners[legible(_prefix(strategy, backend_id))].add(backend_id)
    # An id begins with a letter or a digit, so a prefix begins with "_" only if the format does.
    before = legible(strategy.format.partition("{backend}")[0])
    return Prefixes({prefix: frozenset(ids) for prefix, ids in owners.items()}, "x" if before[:1] == "_" else "_")


def composer(strategy: ConflictResolution, backend_id: str, renamed: Mapping[str, str]) -> Callable[[str], str | None]:
    """From a backend's own names to composed ones, whatever they look like; None: not advertised.

    Args:
        renamed: Own name to the name that takes its place; `Manual` goes by the own names.
    """
    if isinstance(strategy, Manual):
        names = strategy
        return lambda name: names.advertised_name(backend_id, name)
    prefix = _prefix(strategy, backend_id) if isinstance(strategy, Prefix) else ""
    if renamed:
        return lambda name: prefix + renamed.get(name, name)
    return lambda name: prefix + name


def own_names(
    strategy: ConflictResolution, backend_id: str, renamed: Mapping[str, str], composed: str
) -> tuple[str, ...]:
    """All names of this backend, whether there is such a tool or not, that `composer` makes this one of."""
    if isinstance(strategy, Manual):
        owner, name = strategy.names.get(composed, ("", ""))
        return (name,) if owner == backend_id else ()
    prefix = _prefix(strategy, backend_id) if isinstance(strategy, Prefix) else ""
    if not composed.startswith(prefix):
        return ()
    name = composed.removeprefix(prefix)
    native = () if name in renamed else (name,)
    return (*(own for own, to in renamed.items() if to == name), *native)


def first_owner(strategy: ConflictResolution, claimants: Sequence[str]) -> str | None:
    """Which of these backends, in configured order, has an unbound name; None: no backend may have the name."""
    if len(claimants) == 1:
        return claimants[0]
    if isinstance(strategy, Prefix | Manual):
        return None
    preferred = strategy.backend_ids if isinstance(strategy, Priority) else ()
    return next((backend_id for backend_id in preferred if backend_id in claimants), claimants[0])
