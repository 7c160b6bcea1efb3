"""Who is called under which name: what backends offer, a strategy and earlier bindings become one immutable table. Pure.

The result is a function of the offers in configured order and of the bindings, never of who connected first. A name that was bound
once stays with its backend for the session's life, whether or not that backend is there: a call meant for one backend must not
reach another because the first is down.

Names are compared code point by code point. Two that merely look alike, or differ in case, are two names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from heapq import nlargest
from itertools import islice
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

import attrs

from trio_vmcp._uri_template import UriTemplate, compile_template, first_match
from trio_vmcp.models import NameConflict

__all__ = [
    "Bare",
    "Bindings",
    "ConflictResolution",
    "Manual",
    "Offer",
    "Prefix",
    "Priority",
    "Routing",
    "RoutingTable",
    "Target",
    "build_routing",
]

K = TypeVar("K")
V = TypeVar("V")

DIGEST_LENGTH = 12  # base32 characters, 60 bits: two of 10 000 names collide with a probability of 4e-11
_SEPARATOR = "_"

# What one search for close names may cost, however large the table: a few ms.
_SCANNED_NAMES = 20_000
_COMPARED_NAMES = 500
_RATED_NAMES = 20
_COMPARED_LENGTH = 64  # characters
_CLOSEST_NAMES = 3
_CLOSE = 0.6  # of difflib's ratio: its own default


def _read_only(mapping: Mapping[K, V]) -> Mapping[K, V]:
    return MappingProxyType(dict(mapping))


# --- strategies ---------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Prefix:
    """Prefix every tool and prompt with its backend's id, so that no name depends on who else is there.

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
            if not isinstance(backend_id, str) or not backend_id:
                raise ValueError(f"Priority lists {backend_id!r}, which is not a backend id")
            if backend_id in backend_ids[:index]:
                raise ValueError(f"Priority lists {backend_id!r} twice")
        self.__attrs_init__(backend_ids)


@attrs.frozen
class Manual:
    """Advertise what this mapping names, tools and prompts alike, and nothing else.

    Attributes:
        names: Advertised name to (backend id, the backend's own name).

    Raises:
        ValueError: An entry is not of that form, or two advertise the same thing.
    """

    names: Mapping[str, tuple[str, str]] = attrs.field(converter=_read_only, hash=False)
    _advertised: Mapping[tuple[str, str], str] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        advertised: dict[tuple[str, str], str] = {}
        for name, target in self.names.items():
            if not (isinstance(name, str) and name and _is_pair(target)):
                raise ValueError(f"Manual entry {name!r}: {target!r} is not 'advertised': ('backend', 'name')")
            # Two names for one thing would leave its place in session.tools ambiguous.
            if (other := advertised.setdefault(target, name)) != name:
                raise ValueError(f"Manual entries {other!r} and {name!r} both name {target!r}")
        object.__setattr__(self, "_advertised", MappingProxyType(advertised))

    def advertised_name(self, backend_id: str, name: str) -> str | None:
        """What this backend's capability is advertised as; None: not at all."""
        return self._advertised.get((backend_id, name))


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) and part for part in value)


ConflictResolution: TypeAlias = Prefix | Bare | Priority | Manual


# --- what goes in and what comes out ------------------------------------------------------------------------------------------------


@attrs.frozen
class Target:
    """Where a call goes: a backend, and the name it knows itself (or the URI)."""

    backend_id: str
    name: str


@attrs.frozen
class Offer:
    """What one backend lists, by its own names, after its allow and deny lists. Of a name that it lists twice the first counts."""

    backend_id: str
    tools: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


@attrs.frozen
class Bindings:
    """Advertised name to the id of the backend that has it for the session's life. Entries are added, never changed or removed."""

    tools: Mapping[str, str] = attrs.field(factory=dict, converter=_read_only)
    prompts: Mapping[str, str] = attrs.field(factory=dict, converter=_read_only)


@attrs.frozen
class RoutingTable:
    """Advertised name to target. Tools and prompts each have names of their own; resources are keyed by URI.

    Attributes:
        templates: Backend and RFC 6570 template, in configured order; malformed ones are left out.
    """

    tools: Mapping[str, Target] = attrs.field(factory=dict, converter=_read_only)
    prompts: Mapping[str, Target] = attrs.field(factory=dict, converter=_read_only)
    resources: Mapping[str, Target] = attrs.field(factory=dict, converter=_read_only)
    templates: tuple[Target, ...] = ()
    _patterns: tuple[UriTemplate, ...] = attrs.field(alias="patterns", repr=False, eq=False)  # compiled, in the same order

    @_patterns.default
    def _compile(self) -> tuple[UriTemplate, ...]:
        return tuple(compile_template(target.name) for target in self.templates)

    def find_resource(self, uri: str) -> Target | None:
        """Who serves this URI: whoever lists it, else the first template that matches it."""
        if (listed := self.resources.get(uri)) is not None:
            return listed
        index = first_match(self._patterns, uri)
        return None if index is None else Target(self.templates[index].backend_id, uri)

    def closest(self, kind: Literal["tools", "prompts", "resources"], name: str) -> tuple[str, ...]:
        """Advertised names that look like this one, best first, for an error message."""
        mapping: Mapping[str, Target] = getattr(self, kind)
        return _closest(name, mapping)


@attrs.frozen
class Routing:
    """The table and what else came of building it.

    Attributes:
        bindings: The earlier ones and the new; the very same object when nothing was bound.
        conflicts: Tools first, then prompts, then resources.
        advertised_tools, advertised_prompts: (backend id, the backend's own name) to advertised name; what is withheld is not in it.
    """

    table: RoutingTable
    bindings: Bindings
    conflicts: tuple[NameConflict, ...]
    advertised_tools: Mapping[tuple[str, str], str] = attrs.field(converter=_read_only)
    advertised_prompts: Mapping[tuple[str, str], str] = attrs.field(converter=_read_only)


# --- building -----------------------------------------------------------------------------------------------------------------------


def build_routing(
    offers: Sequence[Offer],
    strategy: ConflictResolution,
    *,
    bindings: Bindings = Bindings(),  # noqa: B008 - frozen, its mappings too
    max_name_length: int = 128,
) -> Routing:
    """Decide who has which name.

    Args:
        offers: In the configured order of the backends, whatever order they connected in; one for each backend.
        bindings: What earlier builds of this session bound. No other backend gets these names, also while their owner is away.
        max_name_length: Characters, 16 at least; a longer composed name is shortened, with a digest of the whole at its end.
    """
    tools = _settle("tool", [(o.backend_id, o.tools) for o in offers], strategy, bindings.tools, max_name_length)
    prompts = _settle("prompt", [(o.backend_id, o.prompts) for o in offers], strategy, bindings.prompts, max_name_length)
    resources, contested = _first_of_each(offers)
    if tools.bound or prompts.bound:
        bindings = Bindings({**bindings.tools, **tools.bound}, {**bindings.prompts, **prompts.bound})
    templates, patterns = _well_formed_templates(offers)
    table = RoutingTable(tools.routes, prompts.routes, resources, templates, patterns)
    return Routing(table, bindings, (*tools.conflicts, *prompts.conflicts, *contested), tools.advertised, prompts.advertised)


@attrs.define
class _Settled:
    """One kind of names, settled."""

    routes: dict[str, Target] = attrs.field(factory=dict)
    advertised: dict[tuple[str, str], str] = attrs.field(factory=dict)
    bound: dict[str, str] = attrs.field(factory=dict)  # new ones only
    conflicts: list[NameConflict] = attrs.field(factory=list)


def _settle(
    kind: Literal["tool", "prompt"],
    offered: Iterable[tuple[str, Sequence[str]]],
    strategy: ConflictResolution,
    bound: Mapping[str, str],
    max_length: int,
) -> _Settled:
    """Give every name that backends of `offered` compose to its one owner, or nobody."""
    claims: dict[str, list[Target]] = {}
    for backend_id, names in offered:
        compose = _composer(strategy, backend_id)
        for name in dict.fromkeys(names):
            if (composed := compose(name)) is not None:
                claims.setdefault(_shorten(composed, max_length), []).append(Target(backend_id, name))
    settled = _Settled()
    for advertised, targets in claims.items():
        owner = bound.get(advertised) or _first_owner(strategy, targets)
        # A backend that composes two of its own names to this one has no claim: which of the two it means would hang on its order.
        own = [target for target in targets if target.backend_id == owner]
        if len(own) == 1:
            settled.routes[advertised] = own[0]
            settled.advertised[own[0].backend_id, own[0].name] = advertised
            if advertised not in bound:
                settled.bound[advertised] = own[0].backend_id
        if len(targets) > 1 or not own:
            backend_ids = tuple(dict.fromkeys(target.backend_id for target in targets))
            settled.conflicts.append(NameConflict(kind, advertised, backend_ids, owner if len(own) < 2 else None))
    return settled


def _composer(strategy: ConflictResolution, backend_id: str) -> Callable[[str], str | None]:
    """A function from this backend's own names to full advertised ones; None: not advertised."""
    match strategy:
        case Prefix(format=text):
            prefix = text.replace("{backend}", backend_id)
            return lambda name: prefix + name
        case Manual():
            return lambda name: strategy.advertised_name(backend_id, name)
        case Bare() | Priority():
            return lambda name: name


def _first_owner(strategy: ConflictResolution, targets: Sequence[Target]) -> str | None:
    """The backend that an unbound name goes to; None where the strategy lets nobody have what several compose to."""
    first = targets[0].backend_id
    if len(targets) == 1 or isinstance(strategy, Bare):
        return first
    if isinstance(strategy, Priority):
        claimants = {target.backend_id for target in targets}
        return next((backend_id for backend_id in strategy.backend_ids if backend_id in claimants), first)
    return None


def _shorten(name: str, max_length: int) -> str:
    if len(name) <= max_length:
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    tail = _SEPARATOR + base64.b32encode(digest).decode("ascii").lower()[:DIGEST_LENGTH]
    return name[: max_length - len(tail)] + tail


def _first_of_each(offers: Iterable[Offer]) -> tuple[dict[str, Target], list[NameConflict]]:
    """Resources: a URI says where something is and is never rewritten, so the first backend that lists it serves it."""
    routes: dict[str, Target] = {}
    contested: dict[str, list[str]] = {}
    for offer in offers:
        for uri in dict.fromkeys(offer.resources):
            first = routes.setdefault(uri, Target(offer.backend_id, uri)).backend_id
            if first != offer.backend_id:
                contested.setdefault(uri, [first]).append(offer.backend_id)
    return routes, [NameConflict("resource", uri, tuple(ids), ids[0]) for uri, ids in contested.items()]


def _well_formed_templates(offers: Iterable[Offer]) -> tuple[tuple[Target, ...], tuple[UriTemplate, ...]]:
    """A template that cannot be read matches nothing; the capability stays listed."""
    templates: list[Target] = []
    patterns: list[UriTemplate] = []
    for offer in offers:
        for template in dict.fromkeys(offer.templates):
            try:
                patterns.append(compile_template(template))
            except ValueError:
                continue
            templates.append(Target(offer.backend_id, template))
    return tuple(templates), tuple(patterns)


# --- close names --------------------------------------------------------------------------------------------------------------------


def _closest(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """At most three names. Backends choose `names` and a caller chooses `name`, so every step has a bound of its own."""
    if not name:
        return ()
    wanted = name[:_COMPARED_LENGTH]
    head, tail = name[:4], name[-4:]

    def distance(candidate: str) -> int:
        if candidate.endswith(name):  # the prefix was forgotten
            return 0
        return 1 if candidate.startswith(head) or candidate.endswith(tail) else 2

    matcher = SequenceMatcher(b=wanted, autojunk=False)

    def at_most(candidate: str) -> float:
        matcher.set_seq1(candidate[:_COMPARED_LENGTH])
        return matcher.quick_ratio()

    def score(candidate: str) -> float:
        matcher.set_seq1(candidate[:_COMPARED_LENGTH])
        return matcher.ratio() + (1.0 if distance(candidate) == 0 else 0.0)

    near = sorted(islice(names, _SCANNED_NAMES), key=distance)[:_COMPARED_NAMES]
    rated = [(score(candidate), candidate) for candidate in nlargest(_RATED_NAMES, near, key=at_most)]
    return tuple(candidate for rate, candidate in nlargest(_CLOSEST_NAMES, rated) if rate >= _CLOSE)
