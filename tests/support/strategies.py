"""Hypothesis strategies that several tests share: small worlds, so that names collide often, and drawn with one draw
each, so that whole histories of them stay cheap.
"""

from __future__ import annotations

from itertools import permutations

from hypothesis import strategies as st

from trio_vmcp.routing import Bare, ConflictResolution, Manual, Offer, Prefix, Priority

# "a_" + "b" and "a" + "_b" compose alike under the default prefix. The two A only look alike: one is Cyrillic.
BACKEND_IDS = ("a", "a_", "b", "a_b")
OWN_NAMES = ("b", "_b", "_b_b", "A", "\N{CYRILLIC CAPITAL LETTER A}", "x" * 20, "x" * 21)

_LISTS_OF_ONE = 4  # one byte each: whether it is present and which tools are renamed, then tools, prompts and resources
_RENAMED: tuple[dict[str, str], ...] = ({}, {}, {"b": "_b"}, {"b": "A", "_b": "b", "x" * 20: "x" * 21})


def offer_lists() -> st.SearchStrategy[list[Offer]]:
    """Offers of some backends in some configured order."""
    size = _LISTS_OF_ONE * len(BACKEND_IDS)
    return st.builds(_offers, st.sampled_from(list(permutations(BACKEND_IDS))), st.binary(min_size=size, max_size=size))


def histories(max_size: int) -> st.SearchStrategy[list[list[Offer]]]:
    """The offers of one configuration over time: backends come, go and change their lists."""
    size = _LISTS_OF_ONE * len(BACKEND_IDS)
    return st.builds(
        lambda ids, data: [_offers(ids, data[at : at + size]) for at in range(0, len(data) - size + 1, size)],
        st.sampled_from(list(permutations(BACKEND_IDS))),
        st.binary(min_size=size, max_size=size * max_size),
    )


def resolutions() -> st.SearchStrategy[ConflictResolution]:
    """Every way to resolve conflicts."""
    return st.sampled_from([*_PREFIXES, Bare(), *_PRIORITIES, *_MANUALS])


def _offers(backend_ids: tuple[str, ...], data: bytes) -> list[Offer]:
    offers: list[Offer] = []
    for index, backend_id in enumerate(backend_ids):
        there, tools, prompts, resources = data[index * _LISTS_OF_ONE : (index + 1) * _LISTS_OF_ONE]
        if there % 2:
            renamed = _RENAMED[there >> 1 & 3]
            offers.append(Offer(backend_id, _names(tools), _names(prompts), _names(resources), renamed=renamed))
    return offers


def _names(bits: int) -> tuple[str, ...]:
    """Some of OWN_NAMES, in either order."""
    names = tuple(name for index, name in enumerate(OWN_NAMES) if bits >> index & 1)
    return names[::-1] if bits >> len(OWN_NAMES) & 1 else names


_PREFIXES = (Prefix(), Prefix("{backend}"), Prefix("mcp_{backend}."))
_PRIORITIES = tuple(Priority(*ids) for ids in permutations(BACKEND_IDS, 2))
_TARGETS = [(backend_id, name) for name in OWN_NAMES for backend_id in BACKEND_IDS]
_MANUALS = tuple(Manual(dict(zip(OWN_NAMES, _TARGETS[first:], strict=False))) for first in range(0, len(_TARGETS), 3))
