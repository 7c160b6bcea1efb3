"""Who is called under which name: what backends offer, a strategy and earlier bindings become one immutable table.

The result is a function of the offers in configured order and of the bindings, never of who connected first. A name
that was bound once stays with its backend for the session's life, whether or not that backend is there: a call meant
for one backend must not reach another because the first is down.

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
from typing import Any, Literal, TypeAlias, cast

import attrs

from trio_vmcp._protocol.uri_template import UriTemplate, compile_template, first_match
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

DIGEST_LENGTH = 12  # base32 characters, 60 bits: two of 10 000 names collide with a probability of 4e-11
_SEPARATOR = "_"

# What one search for close names may cost, however large the table and hostile the names: about 15 ms.
_SCANNED_NAMES = 10_000
_COMPARED_NAMES = 500
_RATED_NAMES = 20
_COMPARED_LENGTH = 64  # characters
_CLOSEST_NAMES = 3
_CLOSE = 0.6  # of difflib's ratio: its own default

# Characters, of all templates of one backend that are matched: about 30 ms for a URI that none of them fits.
_TEMPLATE_CHARACTERS = 64 * 1024


def _read_only(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(dict(mapping))


def _no_owners() -> Mapping[str, str]:
    return {}


def _no_targets() -> Mapping[str, Target]:
    return {}


# Strategies.


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
            if not _is_name(backend_id):
                raise ValueError(f"Priority lists {backend_id!r}, which is not a backend id")
            if backend_id in backend_ids[:index]:
                raise ValueError(f"Priority lists {backend_id!r} twice")
        object.__setattr__(self, "backend_ids", backend_ids)


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


# What goes in and what comes out.


@attrs.frozen
class Target:
    """Where a call goes: a backend, and the name it knows itself (or the URI)."""

    backend_id: str
    name: str


@attrs.frozen
class Offer:
    """What one backend lists, by its own names, after its allow and deny lists; what it lists twice counts once."""

    backend_id: str
    tools: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


@attrs.frozen
class Bindings:
    """Advertised name to the id of the backend that has it for the session's life: entries only ever come."""

    tools: Mapping[str, str] = attrs.field(factory=_no_owners, converter=_read_only)
    prompts: Mapping[str, str] = attrs.field(factory=_no_owners, converter=_read_only)


def _compiled(table: RoutingTable) -> tuple[UriTemplate, ...]:
    return tuple(compile_template(target.name) for target in table.templates)


@attrs.frozen
class RoutingTable:
    """Advertised name to target. Tools and prompts each have names of their own; resources are keyed by URI.

    Attributes:
        templates: Backend and RFC 6570 template, in configured order; malformed ones are left out, and so is what one
            backend lists beyond 64 Ki characters of them.
    """

    tools: Mapping[str, Target] = attrs.field(factory=_no_targets, converter=_read_only)
    prompts: Mapping[str, Target] = attrs.field(factory=_no_targets, converter=_read_only)
    resources: Mapping[str, Target] = attrs.field(factory=_no_targets, converter=_read_only)
    templates: tuple[Target, ...] = ()
    _patterns: tuple[UriTemplate, ...] = attrs.field(
        default=attrs.Factory(_compiled, takes_self=True), alias="patterns", repr=False, eq=False
    )

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
    """

    table: RoutingTable
    bindings: Bindings
    conflicts: tuple[NameConflict, ...]


# Building.


def build_routing(
    offers: Sequence[Offer],
    strategy: ConflictResolution,
    *,
    bindings: Bindings = Bindings(),
    max_name_length: int = 128,
) -> Routing:
    """Decide who has which name.

    Args:
        offers: In the configured order of the backends, whatever order they connected in; one for each backend.
        bindings: What earlier builds of this session bound. Nobody else gets these names, not even while their owner is
            away.
        max_name_length: Characters, 16 at least. A longer name is shortened, with a digest of the whole at its end.
    """
    tools = _settle("tool", [(o.backend_id, o.tools) for o in offers], strategy, bindings.tools, max_name_length)
    prompts = _settle(
        "prompt", [(o.backend_id, o.prompts) for o in offers], strategy, bindings.prompts, max_name_length
    )
    resources, contested = _first_of_each(offers)
    if tools.bound or prompts.bound:
        bindings = Bindings({**bindings.tools, **tools.bound}, {**bindings.prompts, **prompts.bound})
    templates, patterns = _well_formed_templates(offers)
    table = RoutingTable(tools.routes, prompts.routes, resources, templates, patterns)
    return Routing(table, bindings, (*tools.conflicts, *prompts.conflicts, *contested))


@attrs.frozen
class _Settled:
    """One kind of names, settled."""

    routes: dict[str, Target]
    bound: dict[str, str]  # new ones only
    conflicts: list[NameConflict]


def _settle(
    kind: Literal["tool", "prompt"],
    offered: Iterable[tuple[str, Sequence[str]]],
    strategy: ConflictResolution,
    bound: Mapping[str, str],
    max_length: int,
) -> _Settled:
    """Give every name that the backends of `offered` compose to its one owner, or to nobody."""
    claims: dict[str, Target] = {}
    clashes: dict[str, list[Target]] = {}  # the names that more than one claims, with all who do
    for backend_id, names in offered:
        compose = _composer(strategy, backend_id)
        for name in dict.fromkeys(names):
            composed = compose(name)
            if composed is None:
                continue
            if len(composed) > max_length:
                composed = _shorten(composed, max_length)
            target = Target(backend_id, name)
            first = claims.setdefault(composed, target)
            if first is not target:
                clashes.setdefault(composed, [first]).append(target)
    settled = _Settled({}, {}, [])
    for advertised, first in claims.items():
        bound_to = bound.get(advertised)
        if advertised not in clashes and bound_to in (None, first.backend_id):
            settled.routes[advertised] = first
            if bound_to is None:
                settled.bound[advertised] = first.backend_id
            continue
        targets = clashes.get(advertised, [first])
        owner = bound_to or _first_owner(strategy, targets)
        own = [target for target in targets if target.backend_id == owner]
        if len(own) > 1:  # two of its own names make this one, and the order of its list must not decide
            owner = None
        elif own:
            settled.routes[advertised] = own[0]
            if bound_to is None:
                settled.bound[advertised] = own[0].backend_id
        backend_ids = tuple(dict.fromkeys(target.backend_id for target in targets))
        settled.conflicts.append(NameConflict(kind, advertised, backend_ids, owner))
    return settled


def _composer(strategy: ConflictResolution, backend_id: str) -> Callable[[str], str | None]:
    """From this backend's own names to advertised ones, not yet shortened; None: not advertised."""
    if isinstance(strategy, Prefix):
        return strategy.format.replace("{backend}", backend_id).__add__
    if isinstance(strategy, Manual):
        return lambda name: strategy.advertised_name(backend_id, name)
    return lambda name: name


def _first_owner(strategy: ConflictResolution, targets: Sequence[Target]) -> str | None:
    """The backend that an unbound name goes to; None where the strategy lets nobody have what several compose to."""
    if isinstance(strategy, Prefix | Manual):
        return None
    preferred = strategy.backend_ids if isinstance(strategy, Priority) else ()
    claimants = [target.backend_id for target in targets]
    return next((backend_id for backend_id in preferred if backend_id in claimants), claimants[0])


def _shorten(name: str, max_length: int) -> str:
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
    """A template that cannot be read, or that its backend has too many of, matches nothing; the capability stays
    listed.
    """
    templates: list[Target] = []
    patterns: list[UriTemplate] = []
    for offer in offers:
        left = _TEMPLATE_CHARACTERS
        for template in dict.fromkeys(offer.templates):
            left -= len(template)
            if left < 0:
                break
            try:
                patterns.append(compile_template(template))
            except ValueError:
                continue
            templates.append(Target(offer.backend_id, template))
    return tuple(templates), tuple(patterns)


# Close names.


def _closest(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """At most three. Backends choose `names` and a caller chooses `name`, so every step has a bound of its own."""
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
