"""The routing table: advertised name to target, for callers to read."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from heapq import nlargest
from itertools import islice
from types import MappingProxyType
from typing import Literal

import attrs

from trio_vmcp._protocol.uri_template import UriTemplate, compile_template
from trio_vmcp._read_only import Copyable
from trio_vmcp._routing.matching import TemplateGroup, find_backend, group_templates

__all__ = ["RoutingTable", "Segment", "Target", "closest_names", "find_resource", "joined_in_steps"]

# What one search for close names may cost, however large the table and hostile the names: about 15 ms.
_SCANNED_NAMES = 10_000
_COMPARED_NAMES = 500
_RATED_NAMES = 20
_COMPARED_LENGTH = 64  # characters
_CLOSEST_NAMES = 3
_CLOSE = 0.6  # of difflib's ratio: its own default


@attrs.frozen
class Target:
    """Where a call goes: a backend, and the name that the backend itself uses (or the URI)."""

    backend_id: str
    name: str


_NO_OTHERS: Mapping[str, str] = MappingProxyType({})


@attrs.frozen(eq=False)
class Segment:
    """Advertised names of one place of the table, in its order. No object for each name: there may be many thousands,
    and the garbage collector looks at every object that may hold others.

    Attributes:
        backend_id: The place is its own, and so are nearly all of the names.
        own: Advertised name to the name that its backend uses.
        elsewhere: The backends of the names that others have.
    """

    backend_id: str
    own: Mapping[str, str]
    elsewhere: Mapping[str, str] = _NO_OTHERS


class Targets(Mapping[str, Target]):
    """Advertised name to target, read-only. A `Target` is made when it is asked for.

    Args:
        own: Advertised name to the name that its backend uses.
        backend_ids: Advertised name to the backend.
    """

    __slots__ = ("_backend_ids", "_own")

    def __init__(self, own: Mapping[str, str], backend_ids: Mapping[str, str]) -> None:
        self._own = own
        self._backend_ids = backend_ids

    def __getitem__(self, name: str) -> Target:
        return Target(self._backend_ids[name], self._own[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def __repr__(self) -> str:
        return repr(dict(self))


def joined_in_steps(segments: Iterable[Segment]) -> Generator[None, None, Targets]:
    """All names of these segments, in their order, with a step for each segment."""
    own: dict[str, str] = {}
    backend_ids: dict[str, str] = {}
    for segment in segments:
        yield
        own |= segment.own
        backend_ids |= dict.fromkeys(segment.own, segment.backend_id)
        backend_ids |= segment.elsewhere
    return Targets(own, backend_ids)


def _as_targets(mapping: Mapping[str, Target]) -> Targets:
    if isinstance(mapping, Targets):
        return mapping
    own = {name: target.name for name, target in mapping.items()}
    return Targets(own, {name: target.backend_id for name, target in mapping.items()})


def _no_targets() -> Mapping[str, Target]:
    return {}


def _grouped(table: RoutingTable) -> tuple[TemplateGroup, ...]:
    by_backend: dict[str, list[UriTemplate]] = {}
    for target in table.templates:
        by_backend.setdefault(target.backend_id, []).append(compile_template(target.name))
    return tuple(group_templates(backend_id, patterns) for backend_id, patterns in by_backend.items())


@attrs.frozen
class RoutingTable(Copyable):
    """Advertised name to target. Tools and prompts each have names of their own; resources are keyed by URI.

    Attributes:
        templates: Backend and RFC 6570 template, in configured order; malformed ones are left out, and so is what one
            backend lists beyond 64 Ki characters of them.
    """

    tools: Mapping[str, Target] = attrs.field(factory=_no_targets, converter=_as_targets)
    prompts: Mapping[str, Target] = attrs.field(factory=_no_targets, converter=_as_targets)
    resources: Mapping[str, Target] = attrs.field(factory=_no_targets, converter=_as_targets)
    templates: tuple[Target, ...] = ()
    _groups: tuple[TemplateGroup, ...] = attrs.field(
        default=attrs.Factory(_grouped, takes_self=True), alias="groups", repr=False, eq=False
    )

    def find_resource(self, uri: str) -> Target | None:
        """The backend that serves a URI: the first that lists the URI, else that of the template that matches with the
        most literal characters: by RFC 6570, and where none does, with `{var}` across `/`.
        """
        return find_resource(uri, self.resources.get(uri), self._groups)

    def closest(self, kind: Literal["tools", "prompts", "resources"], name: str) -> tuple[str, ...]:
        """Advertised names that look like this one, best first, for an error message."""
        mapping: Mapping[str, Target] = getattr(self, kind)
        return closest_names(name, mapping)


def find_resource(uri: str, listed: Target | None, groups: Sequence[TemplateGroup]) -> Target | None:
    """A listed URI goes before templates."""
    if listed is not None:
        return listed
    backend_id = find_backend(groups, uri)
    return None if backend_id is None else Target(backend_id, uri)


def closest_names(name: str, names: Iterable[str]) -> tuple[str, ...]:
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
