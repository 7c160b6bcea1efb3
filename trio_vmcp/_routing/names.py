"""Names of one kind, kept per backend: a change of one backend decides again only the names that it touches.

A backend may change ten thousand names at once, and several backends may claim them. So a change is made in steps, on a
copy where other tasks run in between: the copy shares with its original what neither changes in place.

What is decided depends on the claims in configured order and on the bindings, never on the order of the changes that
led there. `routes` alone holds the names with one claim, which are nearly all of them; every other name is contested.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import attrs

from trio_vmcp._routing.name_rule import NameRule
from trio_vmcp._routing.strategies import (
    NO_PREFIXES,
    ConflictResolution,
    Manual,
    Prefixes,
    all_prefixes,
    composer,
    first_owner,
    inner_prefixes,
    own_names,
)
from trio_vmcp._routing.table import Segment, Target
from trio_vmcp.models import NameConflict

__all__ = ["AT_ONCE", "SIMPLE_AT_ONCE", "KnownClaims", "Names"]

AT_ONCE = 512  # names in one step; one that is contested takes 10 us
SIMPLE_AT_ONCE = 16 * AT_ONCE  # of names that take no more than 0.3 us

_T = TypeVar("_T")

_NOTHING: Mapping[Any, Any] = MappingProxyType({})  # most claims have most of their fields empty


@attrs.frozen
class _Claims:
    """What one backend's own names are composed to.

    Attributes:
        listed: The own names.
        segment: Composed name to own name; of several own names that compose alike, the first.
        doubles: Composed name to all own names that compose to it, where there are several.
        preferred: Composed name to the own name among its `doubles` that has the name: the only one that no user has
            renamed. Absent: no own name has it, since the order of a list must not decide.
        renamed: Own name to the name that the user gives in its place.
        inner: The prefixes of other backends inside this one's, the longest first, each with its backend.
        belong_to: Composed name to the other backend that it belongs to by its prefix.
        cut: The names that were cut to fit, as they are where no prefix of another backend is in the way; sorted.
    """

    listed: Sequence[str]
    segment: Segment
    doubles: Mapping[str, tuple[str, ...]] = _NOTHING
    preferred: Mapping[str, str] = _NOTHING
    renamed: Mapping[str, str] = _NOTHING
    inner: Mapping[str, str] = _NOTHING
    belong_to: Mapping[str, str] = _NOTHING
    cut: Sequence[str] = ()

    @property
    def names(self) -> Mapping[str, str]:
        return self.segment.own

    def of(self, name: str) -> tuple[str, ...]:
        """The own names that this backend would answer a composed name with."""
        if name in self.doubles:
            return self.doubles[name]
        return (self.names[name],) if name in self.names else ()

    def chosen(self, name: str) -> str | None:
        """Which own name has a composed one; None: none, or several of which none goes first."""
        return self.preferred.get(name) if name in self.doubles else self.names.get(name)

    def is_equal(self, other: _Claims, name: str) -> bool:
        """Whether both claim this name for the same target and owner."""
        return (
            self.of(name) == other.of(name)
            and self.preferred.get(name) == other.preferred.get(name)
            and self.belong_to.get(name) == other.belong_to.get(name)
        )


def _no_claims(backend_id: str) -> _Claims:
    return _Claims((), Segment(backend_id, _NOTHING))


def _claim(
    strategy: ConflictResolution,
    backend_id: str,
    names: Sequence[str],
    rule: NameRule,
    inner: Mapping[str, str],
    renamed: Mapping[str, str],
    keep_out: Callable[[str], str],
) -> Generator[None, None, _Claims]:
    """
    Args:
        keep_out: From what a composed name is cut to, to what it is advertised as.
    """
    compose = composer(strategy, backend_id, renamed)
    unique = dict.fromkeys(names)
    if not inner:
        simple = yield from _claim_simply(compose, unique, rule)
        if simple is not None:
            return _Claims(names, Segment(backend_id, simple), renamed=renamed)
    own: dict[str, str] = {}
    doubles: dict[str, tuple[str, ...]] = {}
    belong_to: dict[str, str] = {}
    cut: list[str] = []
    for some in _pieces(unique, AT_ONCE):
        yield
        for name in some:
            whole = compose(name)
            if whole is None:
                continue
            composed = shown = rule.fit(whole)
            if composed is not whole and rule.cuts(whole):
                cut.append(composed)
                composed, shown = keep_out(composed), rule.legible(whole)
            for prefix, owner in inner.items():
                if shown.startswith(prefix):
                    belong_to.setdefault(composed, owner)
            first = own.setdefault(composed, name)
            if first != name:
                doubles[composed] = (*doubles.get(composed, (first,)), name)
    preferred: dict[str, str] = {}
    for composed, alike in doubles.items():
        native = [name for name in alike if name not in renamed]
        if len(native) == 1:
            preferred[composed] = native[0]
    return _Claims(names, Segment(backend_id, own), doubles, preferred, renamed, inner, belong_to, sorted(cut))


def _claim_simply(
    compose: Callable[[str], str | None], names: Collection[str], rule: NameRule
) -> Generator[None, None, dict[str, str] | None]:
    """Composed name to own name, where each own name is composed to one of its own that fits, as nearly all are; None:
    it is not so, and each name needs a look of its own, which takes ten times as long.
    """
    own: dict[str, str] = {}
    for some in _pieces(names, SIMPLE_AT_ONCE):
        yield
        composed = {whole: name for name in some if (whole := compose(name)) is not None}
        if not rule.fit_all(composed):
            return None
        own |= composed
    return own if len(own) == len(names) else None


# By the kind of the names, the id of their backend, and the identity of the names.
KnownClaims: TypeAlias = "WeakValueDictionary[tuple[str, str, int], _Claims]"


@attrs.define(eq=False)
class Names:
    """Which backend has which name.

    Attributes:
        _rule: What composed names are made to fit.
        routes: Advertised name to the backend where a call goes, in no order.
        _known: What names were composed to for other sessions of the same strategy and rule; None: there are none.
        bound: Advertised name to the backend that has the name for good; entries go with `release` alone.
        bound_bytes: By backend id: the size of the names that are bound to it.
    """

    _kind: Literal["tool", "prompt", "resource"]
    _strategy: ConflictResolution
    _rule: NameRule
    _binds: bool
    bound: dict[str, str]
    _known: KnownClaims | None = None
    routes: dict[str, str] = attrs.field(factory=dict, init=False)
    bound_bytes: Counter[str] = attrs.field(factory=Counter, init=False)
    _claims: dict[str, _Claims] = attrs.field(factory=dict, init=False)  # by backend id, in configured order
    _inner: dict[str, dict[str, str]] = attrs.field(factory=dict, init=False)  # `inner_prefixes` of the configured
    _prefixes: Prefixes = attrs.field(default=NO_PREFIXES, init=False)  # `all_prefixes` of the configured
    _contested: dict[str, tuple[str, ...]] = attrs.field(factory=dict, init=False)  # by name: its claimants' ids
    _conflicts: dict[str, NameConflict] = attrs.field(factory=dict, init=False)  # what came of each contested name
    _segments: dict[str, Segment] = attrs.field(factory=dict, init=False)  # each read since its names changed

    def __attrs_post_init__(self) -> None:
        for name, backend_id in self.bound.items():
            self._count(name, backend_id)

    def copy_in_steps(self) -> Generator[None, None, Names]:
        """A copy that can be changed while the original stays as it is."""
        twin = copy(self)
        for field in ("bound", "routes", "bound_bytes", "_claims", "_contested", "_conflicts", "_segments"):
            setattr(twin, field, getattr(self, field).copy())
            yield
        return twin

    def count_touched(self, order: Sequence[str]) -> int:
        """How many names have to be decided about again because these backends are configured now, in this order."""
        if order == list(self._claims):
            return 0
        _, _, again = self._prefixes_of(order)
        return len(self._contested) + sum(len(self._claims[backend_id].listed) for backend_id in again)

    def update_in_steps(
        self,
        listed: Mapping[str, Sequence[str]],
        order: Sequence[str],
        renamed: Mapping[str, Mapping[str, str]] = _NOTHING,
    ) -> Iterator[None]:
        """Decide again what a change touches, with a step for some names each.

        Args:
            listed: The own names of the backends that changed, each in its backend's order.
            order: The ids of all backends, in configured order.
            renamed: By the id of a backend that changed: own name to the name that the user gives in its place.
        """
        if isinstance(self._strategy, Manual):  # it goes by the own names
            renamed = _NOTHING
        given, again = listed, set[str]()
        # In order, so that names are bound in the order of the table; by the backend whose names they all are.
        touched: list[tuple[str | None, Collection[str]]] = []
        if order != list(self._claims):
            for gone in self._claims.keys() - set(order):
                yield from self._replace(gone, _no_claims(gone))
            self._claims = {backend_id: self._claims.get(backend_id) or _no_claims(backend_id) for backend_id in order}
            touched.append((None, list(self._contested)))
            self._segments = {}
            self._inner, self._prefixes, again = self._prefixes_of(order)
            listed = {backend_id: self._claims[backend_id].listed for backend_id in again} | dict(listed)
        for backend_id, names in listed.items():
            claims, inner = self._claims[backend_id], self._inner.get(backend_id, _NOTHING)
            others = renamed.get(backend_id, _NOTHING) if backend_id in given else claims.renamed
            if names != claims.listed or others != claims.renamed or backend_id in again:
                claims = yield from self._claim(backend_id, names, inner, others)
                self._segments.pop(backend_id, None)
                added = self._add_all(backend_id, claims)
                touched.append(added or (None, (yield from self._replace(backend_id, claims))))
        for sole, some in touched:
            if sole is None or not self._bind_all(sole, some):
                yield from self._settle_all(some)

    def _claim(
        self, backend_id: str, names: Sequence[str], inner: Mapping[str, str], renamed: Mapping[str, str]
    ) -> Generator[None, None, _Claims]:
        """What these names of a backend are composed to; shared with others, where it follows from the names alone."""
        # The claims hold the names, and the very same names come with the same `renamed`: both are of one listing.
        key = (self._kind, backend_id, id(names))
        found = self._known.get(key) if self._known is not None and not inner else None
        if found is not None:
            return found
        keep_out = partial(self._keep_out, backend_id)
        claims = yield from _claim(self._strategy, backend_id, names, self._rule, inner, renamed, keep_out)
        if self._known is not None and not inner and not claims.cut:
            self._known[key] = claims
        return claims

    def _prefixes_of(self, order: Sequence[str]) -> tuple[dict[str, dict[str, str]], Prefixes, set[str]]:
        """`_inner` and `_prefixes` where these backends are configured, and the backends whose names these may touch,
        although their lists are as before.
        """
        inner = inner_prefixes(self._strategy, order, self._rule.legible)
        prefixes = all_prefixes(self._strategy, order, self._rule.legible)
        changed = prefixes.changed_since(self._prefixes)
        again = {
            known
            for known, claims in self._claims.items()
            if claims.inner != inner.get(known, _NOTHING)
            or (claims.cut and any(_has_prefix(claims.cut, prefix) for prefix in changed))
        }
        return inner, prefixes, again

    def _keep_out(self, backend_id: str, cut: str) -> str:
        """What a name that is cut to this is advertised as. With a mark if it would begin with the prefix of another
        backend; but a name that is bound stays as it is, whatever is configured later.
        """
        if self.bound.get(cut) == backend_id:
            return cut
        marked = self._prefixes.marked(cut)
        is_marked = self.bound.get(marked) == backend_id or self._prefixes.belongs_elsewhere(cut, backend_id)
        return marked if is_marked else cut

    def adopt_in_steps(self, bound: Mapping[str, str]) -> Iterator[None]:
        """Bind names as they are bound elsewhere, except those that are bound here already."""
        adopted: list[str] = []
        for some in _pieces(bound.items(), AT_ONCE):
            yield
            for name, backend_id in some:
                if name not in self.bound:
                    self._bind(name, backend_id)
                    adopted.append(name)
        yield from self._settle_all(adopted)

    def release_in_steps(self, backend_id: str) -> Iterator[None]:
        """Let another backend have the names that are bound to this one, which must not be configured."""
        released: list[str] = []
        for some in _pieces(self.bound.items(), SIMPLE_AT_ONCE):
            yield
            released += [name for name, owner in some if owner == backend_id]
        for name in released:
            del self.bound[name]
        self.bound_bytes.pop(backend_id, None)
        yield from self._settle_all(released)

    def own_names(self, backend_id: str, name: str, renamed: Mapping[str, str]) -> tuple[str, ...] | None:
        """As `Router.own_names`."""
        if self._rule.may_be_changed(name):
            return None
        return own_names(self._strategy, backend_id, renamed, name)

    def find(self, name: str) -> Target | None:
        """Where a call goes; None: no backend has the name, or its owner does not list it."""
        backend_id = self.routes.get(name)
        if backend_id is None:
            return None
        own = self._claims[backend_id].chosen(name)
        assert own is not None  # unless a change is under way
        return Target(backend_id, own)

    def segments(self) -> Iterator[Segment]:
        """What is routed, in the order of the table: for each backend the names that it is the first to claim."""
        for backend_id, claims in self._claims.items():
            if backend_id not in self._segments:
                segment = claims.segment  # the same object as long as it lists the same
                if not claims.names.keys().isdisjoint(self._contested.keys()):
                    first = self._claimed_first(backend_id)
                    found = {name: target for name in first if (target := self.find(name)) is not None}
                    own = {name: target.name for name, target in found.items()}
                    others = {name: to.backend_id for name, to in found.items() if to.backend_id != backend_id}
                    segment = Segment(backend_id, own, others)
                self._segments[backend_id] = segment
            yield self._segments[backend_id]

    def conflicts(self) -> Iterator[list[NameConflict]]:
        """In the order of the table, those that one backend was the first to claim at a time."""
        for backend_id in self._claims if self._conflicts else ():
            names = self._claimed_first(backend_id)
            yield [self._conflicts[name] for name in names if name in self._conflicts]

    def _claimed_first(self, backend_id: str) -> Iterator[str]:
        for name in self._claims[backend_id].names:
            conflict = self._conflicts.get(name)
            if conflict is None or conflict.backend_ids[0] == backend_id:
                yield name

    def _add_all(self, backend_id: str, new: _Claims) -> tuple[str, Collection[str]] | None:
        """`_replace` for a backend that is listed for the first time, where none of its names is claimed by another;
        None: it is not so.
        """
        names = new.names.keys()
        if self._claims[backend_id].names or new.doubles or new.belong_to:
            return None
        if not names.isdisjoint(self.routes.keys()) or not names.isdisjoint(self._contested.keys()):
            return None
        self._claims[backend_id] = new
        self.routes |= dict.fromkeys(names, backend_id)
        return backend_id, names

    def _bind_all(self, backend_id: str, names: Collection[str]) -> bool:
        """`_settle` for all names of `_add_all`; False: some of them are bound, or are claimed by another by now."""
        if not self._contested.keys().isdisjoint(names) or not self.bound.keys().isdisjoint(names):
            return False
        if self._binds:
            self.bound |= dict.fromkeys(names, backend_id)
            self._count("".join(names), backend_id)
        return True

    def _replace(self, backend_id: str, new: _Claims) -> Generator[None, None, Collection[str]]:
        """Returns the names that have to be decided about again."""
        old = self._claims[backend_id]
        self._claims[backend_id] = new
        touched: dict[str, None] = {}
        for some in _pieces(old.names, AT_ONCE):
            yield
            for name in some:
                if not new.is_equal(old, name):
                    touched[name] = None
                    self._withdraw(backend_id, name)
        for some in _pieces(new.names, AT_ONCE):
            yield
            for name in some:
                if name in touched or name not in old.names:
                    touched[name] = None
                    self._add(backend_id, name)
        return touched

    def _withdraw(self, backend_id: str, name: str) -> None:
        if name in self._contested:
            self._contested[name] = tuple(known for known in self._contested[name] if known != backend_id)
        else:
            del self.routes[name]

    def _add(self, backend_id: str, name: str) -> None:
        """Add a claim; `_settle` decides what comes of it."""
        claimed_by = self._contested.get(name)
        if claimed_by is None:
            claimed_by = (self.routes[name],) if name in self.routes else ()
        self._contested[name] = (*claimed_by, backend_id)

    def _settle_all(self, names: Iterable[str]) -> Iterator[None]:
        rank = {backend_id: at for at, backend_id in enumerate(self._claims)}
        for some in _pieces(names, AT_ONCE):
            yield
            for name in some:
                self._settle(name, rank)

    def _settle(self, name: str, rank: Mapping[str, int]) -> None:
        """Decide about one name, with all the claims that are made to it now."""
        bound_to = self.bound.get(name)
        claimed_by = self._contested.pop(name, None)
        if claimed_by is None:
            if name not in self.routes:
                return
            claimed_by = (self.routes[name],)
        # A name that was bound before the owner of its prefix was added stays where it is.
        belongs_to = bound_to
        claims: list[str] = []
        for backend_id in sorted(claimed_by, key=rank.__getitem__):
            self._segments.pop(backend_id, None)
            made = self._claims[backend_id]
            claims += [backend_id] * len(made.of(name))
            belongs_to = belongs_to or made.belong_to.get(name)
        to: str | None = None
        if not claims or (len(claims) == 1 and belongs_to in (None, claims[0])):
            to = claims[0] if claims else None
            self._conflicts.pop(name, None)
        else:
            self._contested[name] = claimed_by
            claimants = tuple(dict.fromkeys(claims))
            owner = belongs_to or first_owner(self._strategy, claimants)
            if owner in claimants:
                to = owner if self._claims[owner].chosen(name) is not None else None
                owner = to  # None: its own names compose alike
            self._conflicts[name] = NameConflict(self._kind, name, claimants, owner)
        if to is None:
            self.routes.pop(name, None)
        else:
            self.routes[name] = to
            if bound_to is None:
                self._bind(name, to)

    def _bind(self, name: str, backend_id: str) -> None:
        if self._binds:
            self.bound[name] = backend_id
            self._count(name, backend_id)

    def _count(self, name: str, backend_id: str) -> None:
        self.bound_bytes[backend_id] += len(name.encode("utf-8", "surrogatepass"))


def _has_prefix(names: Sequence[str], prefix: str) -> bool:
    """Whether one of these names, which are sorted, begins so."""
    at = bisect_left(names, prefix)
    return at < len(names) and names[at].startswith(prefix)


def _pieces(items: Iterable[_T], most: int) -> Iterator[list[_T]]:
    """All of these in order, at most so many at a time."""
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some
