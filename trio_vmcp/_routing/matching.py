"""Which backend's template a URI belongs to, at a cost that is bounded for all backends of a session together.

The template with the most literal characters has a URI, so that `{+anything}` of one backend takes no URI that another
backend's template describes. Backends that come first in configured order win ties.

Backends supply the templates, so each has an equal share of the work that one search may take. What one backend leaves
of its share goes to those that need more: costly templates of one backend do not keep those of the others from being
tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from trio_vmcp._protocol.uri_template import MAX_URI_LENGTH, Uri, UriTemplate

__all__ = ["TemplateGroup", "find_backend", "group_templates"]

# Of `Uri.work`, for one search of all templates: about 10 ms.
MOST_WORK = 20_000


@attrs.frozen
class TemplateGroup:
    """The templates of one backend, those with the most literal characters first."""

    backend_id: str
    patterns: tuple[UriTemplate, ...]


def group_templates(backend_id: str, patterns: Iterable[UriTemplate]) -> TemplateGroup:
    return TemplateGroup(backend_id, tuple(sorted(patterns, key=lambda pattern: -pattern.literals)))


def find_backend(groups: Sequence[TemplateGroup], uri: str) -> str | None:
    """The backend whose template matches, by RFC 6570, or else with `{var}` across `/`; None: no template matches.

    Args:
        groups: In configured order.
    """
    if len(uri) > MAX_URI_LENGTH:
        return None
    prepared = Uri.read(uri)
    found = _search(groups, prepared, across=False)
    return found if found is not None else _search(groups, prepared, across=True)


@attrs.define(eq=False)
class _Search:
    """The search through the templates of one backend."""

    rank: int
    group: TemplateGroup
    next: int = 0

    def advance(self, uri: Uri, limit: float, best: tuple[int, int], across: bool) -> tuple[int, int] | None:
        """Try templates until one is better than `best` or no other can be; the better of the two.

        Returns:
            None: The work would go over `limit`.
        """
        patterns = self.group.patterns
        while self.next < len(patterns):
            pattern = patterns[self.next]
            mark = (pattern.literals, -self.rank)
            if mark <= best:
                break
            if not across or pattern.has_segments:
                fits = pattern.fits(uri, limit, across=across)
                if fits is None:
                    return None
                if fits:
                    return mark
            self.next += 1
        return best


def _search(groups: Sequence[TemplateGroup], uri: Uri, *, across: bool) -> str | None:
    best = none = (-1, 0)  # literal characters, and the place in configured order: the greater is the better
    active = [_Search(rank, group) for rank, group in enumerate(groups)]
    left = float(MOST_WORK)
    # Under one operation each: it ends, although what is left may never become 0 exactly.
    while active and (share := left / len(active)) >= 1:
        unfinished: list[_Search] = []
        for search in active:
            begun = uri.work
            found = search.advance(uri, begun + share, best, across)
            if found is None:
                unfinished.append(search)
                left -= share
            else:
                best = found
                left -= uri.work - begun
        active = unfinished
    return None if best == none else groups[-best[1]].backend_id
