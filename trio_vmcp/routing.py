"""Which backend a name belongs to: offers, a strategy and earlier bindings become one immutable table.

The result is a function of the offers in configured order and of the bindings, never of which backend connected first.
A name that was bound once stays with its backend as long as that belongs to the session, connected or not, and for a
while after its removal: a call meant for one backend must not reach another because the first is down.

Names are compared code point by code point. Two that merely look alike, or differ in case, are two names.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Literal, TypeAlias

import attrs

from trio_vmcp._protocol.methods import Kind
from trio_vmcp._protocol.uri_template import UriTemplate, compile_template
from trio_vmcp._read_only import Copyable, read_only
from trio_vmcp._routing.matching import TemplateGroup, find_backend, group_templates
from trio_vmcp._routing.name_rule import AS_COMPOSED, NameRule, NamesFor, name_rule
from trio_vmcp._routing.names import KnownClaims, Names
from trio_vmcp._routing.strategies import Bare, ConflictResolution, Manual, Prefix, Priority
from trio_vmcp._routing.table import RoutingTable, Segment, Target, closest_names, find_resource, joined_in_steps
from trio_vmcp.models import NameConflict

__all__ = [
    "Bare",
    "Bindings",
    "ConflictResolution",
    "Manual",
    "NamesFor",
    "Offer",
    "Prefix",
    "Priority",
    "Router",
    "Routing",
    "RoutingTable",
    "Target",
    "build_routing",
    "changed_names",
]

# Characters, of all templates of one backend that are matched; `_routing/matching.py` bounds what a search costs.
_TEMPLATE_CHARACTERS = 64 * 1024

_CHARACTERS_AT_ONCE = 2048  # of templates that are read in one step: at most one of the longest
_TEMPLATE_COST = 32  # characters that each counts for besides its own

_Templates: TypeAlias = tuple[tuple[Target, ...], TemplateGroup]


def _no_owners() -> Mapping[str, str]:
    return {}


@attrs.frozen
class Offer:
    """What one backend lists, by its own names, after its allow and deny lists; what it lists twice counts once.

    Attributes:
        renamed: Own name of a tool to the name that takes its place before the advertised one is made. `Manual` goes by
            the own names.
    """

    backend_id: str
    tools: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    renamed: Mapping[str, str] = attrs.field(factory=_no_owners, hash=False)


@attrs.frozen
class Bindings(Copyable):
    """Advertised name to the id of the backend that has it. Entries go only when a backend was removed long ago."""

    tools: Mapping[str, str] = attrs.field(factory=_no_owners, converter=read_only)
    prompts: Mapping[str, str] = attrs.field(factory=_no_owners, converter=read_only)


@attrs.frozen
class Routing:
    """The table and what else came of building it.

    Attributes:
        bindings: The earlier ones and the new; the very same object when nothing was bound.
        conflicts: Tools first, then prompts, then resources, then resource templates.
    """

    table: RoutingTable
    bindings: Bindings
    conflicts: tuple[NameConflict, ...]


def build_routing(
    offers: Sequence[Offer],
    strategy: ConflictResolution,
    *,
    bindings: Bindings = Bindings(),
    names_for: NamesFor = "models",
    max_name_length: int | None = None,
) -> Routing:
    """Decide which backend has which name.

    Args:
        offers: In the configured order of the backends, whatever order they connected in; one for each backend.
        bindings: What earlier builds of this session bound. No other backend gets these names, not even while their
            owner is away.
        names_for, max_name_length: As in `FactorySettings`.
    """
    router = Router(strategy, bindings, name_rule(names_for, max_name_length))
    router.update(offers)
    return Routing(router.table, router.bindings, router.conflicts)


def changed_names(strategy: ConflictResolution, names_for: NamesFor, max_name_length: int | None) -> dict[str, str]:
    """The names given in a `Manual` that do not fit, and what each is advertised as."""
    names = strategy.names if isinstance(strategy, Manual) else ()
    rule = name_rule(names_for, max_name_length)
    fitted = {name: rule.fit(name) for name in names}
    return {name: shown for name, shown in fitted.items() if name != shown}


class Router:
    """Routing while backends come, go and change what they offer.

    After every `update` it says what `build_routing` would say of the same offers and the bindings of before. It costs
    what changed: the names of a backend with the same offer are not looked at. The table is put together when it is
    read.
    """

    def __init__(
        self, strategy: ConflictResolution, bindings: Bindings, rule: NameRule, known: KnownClaims | None = None
    ) -> None:
        """
        Args:
            known: What names were composed to for other routers of the same strategy and rule; None: there are none.
        """
        self._names: dict[Kind, Names] = {
            "tools": Names("tool", strategy, rule, True, dict(bindings.tools), known),
            "prompts": Names("prompt", strategy, rule, True, dict(bindings.prompts), known),
            # A URI says where something is: it is never rewritten, never bound, and the first to list it serves it.
            "resources": Names("resource", Bare(), AS_COMPOSED, False, {}, known),
        }
        # Equal templates of several backends: the first to list one serves what matches.
        self._template_names = Names("resource", Bare(), AS_COMPOSED, False, {})
        self._templates: dict[str, _Templates] = {}
        self._offers: dict[str, Offer] = {}
        self._bindings = bindings
        self._has_released = False  # since `_bindings` was made
        # Put together when they are read; None: something changed since.
        self._table: RoutingTable | None = None
        self._conflicts: tuple[NameConflict, ...] | None = None
        self._groups: tuple[TemplateGroup, ...] | None = None

    def copy_in_steps(self) -> Generator[None, None, Router]:
        """A copy that can be updated while the original stays as it is."""
        twin = copy(self)
        twin._names = {}
        for kind, names in self._names.items():
            twin._names[kind] = yield from names.copy_in_steps()
        twin._template_names = yield from self._template_names.copy_in_steps()
        return twin

    def count_changes(self, offers: Sequence[Offer]) -> int:
        """How many names an `update` with these offers has to decide about, at most."""
        now = {offer.backend_id: offer for offer in offers}
        kinds = (*self._names, "templates")
        count = 0
        for backend_id in self._offers.keys() | now.keys():
            old, new = (known.get(backend_id, Offer(backend_id)) for known in (self._offers, now))
            if old is not new:
                count += sum(len(set(getattr(old, kind)) ^ set(getattr(new, kind))) for kind in kinds)
                count += len(new.tools) if old.renamed != new.renamed else 0
        order = list(now)
        return count + sum(names.count_touched(order) for names in (*self._names.values(), self._template_names))

    def update(self, offers: Sequence[Offer], *, released: Iterable[str] = ()) -> None:
        """`update_in_steps`, in one step."""
        for _ in self.update_in_steps(offers, released=released):
            pass

    def update_in_steps(self, offers: Sequence[Offer], *, released: Iterable[str] = ()) -> Iterator[None]:
        """Take over what all backends offer now, in configured order, with a step for some names each; what is read
        before the last step belongs to no state. An `Offer` that is the same object as before has not changed.

        Args:
            released: Ids without an offer, of which other backends may have the names that are bound to them.
        """
        known, self._offers = self._offers, {offer.backend_id: offer for offer in offers}
        changed = [offer for offer in offers if known.get(offer.backend_id) is not offer]
        order = list(self._offers)
        for kind, names in self._names.items():
            listed: dict[str, tuple[str, ...]] = {offer.backend_id: getattr(offer, kind) for offer in changed}
            renamed = {offer.backend_id: offer.renamed for offer in changed} if kind == "tools" else {}
            yield from names.update_in_steps(listed, order, renamed)
        listed = {offer.backend_id: offer.templates for offer in changed}
        yield from self._template_names.update_in_steps(listed, order)
        templates = dict(self._templates)
        for offer in changed:
            templates[offer.backend_id] = yield from _well_formed_templates(offer)
        self._templates = {backend_id: templates[backend_id] for backend_id in order}
        for backend_id in released:
            for names in self._names.values():
                yield from names.release_in_steps(backend_id)
            self._has_released = True
        self._table = self._conflicts = self._groups = None

    def adopt_in_steps(self, bindings: Bindings) -> Iterator[None]:
        """Bind names as they are bound elsewhere, except those that are bound here already; with a step for some names
        each, as `update_in_steps`, which has to follow.
        """
        yield from self._names["tools"].adopt_in_steps(bindings.tools)
        yield from self._names["prompts"].adopt_in_steps(bindings.prompts)

    def read_in_steps(self) -> Iterator[None]:
        """Put together all that is read."""
        yield from self._put_conflicts_together()
        yield from self._put_table_together()
        _ = self.bindings

    @property
    def table(self) -> RoutingTable:
        if self._table is None:
            for _ in self._put_table_together():
                pass
        assert self._table is not None
        return self._table

    def _put_table_together(self) -> Iterator[None]:
        routes: dict[Kind, Mapping[str, Target]] = {}
        for kind, names in self._names.items():
            routes[kind] = yield from joined_in_steps(names.segments())
        self._table = RoutingTable(
            routes["tools"], routes["prompts"], routes["resources"], self.templates, self._match_with()
        )

    @property
    def conflicts(self) -> tuple[NameConflict, ...]:
        """Tools first, then prompts, then resources, then resource templates."""
        if self._conflicts is None:
            for _ in self._put_conflicts_together():
                pass
        assert self._conflicts is not None
        return self._conflicts

    def _put_conflicts_together(self) -> Iterator[None]:
        found: list[NameConflict] = []
        for names in (*self._names.values(), self._template_names):
            for some in names.conflicts():
                found += some
                yield
        self._conflicts = tuple(found)

    @property
    def bindings(self) -> Bindings:
        """Those of before and the new; the very same object when nothing was bound or released."""
        tools, prompts = self._names["tools"].bound, self._names["prompts"].bound
        sizes = len(self._bindings.tools), len(self._bindings.prompts)
        if self._has_released or (len(tools), len(prompts)) != sizes:
            self._has_released = False
            self._bindings = Bindings(tools, prompts)
        return self._bindings

    def find(self, kind: Literal["tools", "prompts"], name: str) -> Target | None:
        """Where a call goes; None: no backend has the name, or its owner does not list it."""
        return self._names[kind].find(name)

    @property
    def templates(self) -> tuple[Target, ...]:
        """As `RoutingTable.templates`."""
        return tuple(target for targets, _ in self._templates.values() for target in targets)

    def lists_resource(self, uri: str) -> bool:
        return uri in self._names["resources"].routes

    def find_resource(self, uri: str) -> Target | None:
        """As `RoutingTable.find_resource`."""
        return find_resource(uri, self._names["resources"].find(uri), self._match_with())

    def has_template_for(self, backend_id: str, uri: str) -> bool:
        """Whether a template of this backend matches, whichever backend the URI belongs to."""
        return any(find_backend((group,), uri) for group in self._match_with() if group.backend_id == backend_id)

    def closest(self, kind: Kind, name: str) -> tuple[str, ...]:
        """As `RoutingTable.closest`."""
        return closest_names(name, (known for segment in self.segments(kind) for known in segment.own))

    def owner_of(self, kind: Literal["tools", "prompts"], name: str) -> str | None:
        """The backend that a name is bound to, also while that backend does not list it."""
        return self._names[kind].bound.get(name)

    def own_names(self, backend_id: str, name: str, renamed: Mapping[str, str]) -> tuple[str, ...] | None:
        """The own names of this backend that an advertised tool may have; None: any, since the name may be a changed
        one.

        Args:
            renamed: Own names to those that the user gives in their place.
        """
        return self._names["tools"].own_names(backend_id, name, renamed)

    def bound_bytes(self, backend_id: str) -> int:
        """The size of all names that are bound to a backend."""
        return sum(names.bound_bytes[backend_id] for names in self._names.values())

    def segments(self, kind: Kind) -> Iterator[Segment]:
        """The entries of the table, in its order: for each backend those of the names that it is the first to claim.
        A segment is the same object as before if nothing of it changed.
        """
        return self._names[kind].segments()

    def _match_with(self) -> tuple[TemplateGroup, ...]:
        if self._groups is None:
            self._groups = tuple(group for _, group in self._templates.values() if group.patterns)
        return self._groups


def _well_formed_templates(offer: Offer) -> Generator[None, None, _Templates]:
    """A template that cannot be read, or that its backend has too many of, matches nothing; the capability stays
    listed.
    """
    found: list[Target] = []
    patterns: list[UriTemplate] = []
    left, spent = _TEMPLATE_CHARACTERS, 0
    for template in dict.fromkeys(offer.templates):
        left -= len(template)
        if left < 0:
            break
        spent += len(template) + _TEMPLATE_COST
        if spent > _CHARACTERS_AT_ONCE:
            spent = 0
            yield
        try:
            patterns.append(compile_template(template))
        except ValueError:
            continue
        found.append(Target(offer.backend_id, template))
    return tuple(found), group_templates(offer.backend_id, patterns)
