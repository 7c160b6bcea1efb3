"""Names that are cut at their beginning, where their prefix stood, and the prefixes of other backends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._routing.name_rule import name_rule
from trio_vmcp.models import NameConflict
from trio_vmcp.routing import (
    Bare,
    Bindings,
    ConflictResolution,
    Manual,
    Offer,
    Prefix,
    Priority,
    Router,
    Target,
    build_routing,
)

TAIL = 13  # characters of "_" and a digest
LIMIT = 32
FORMATS = (
    "{backend}_",
    "{backend}",
    "{backend}-",
    "_{backend}_",
    "_x{backend}_",
    "-{backend}_",
    "mcp.{backend}.",
    "x{backend}_",
)
IDS = ("a", "x", "git", "git_hub", "git-hub", "git.hub", "9", "elsewhere-and-far-away")


def shown_prefix(form: str, backend_id: str) -> str:
    """As it stands in advertised names."""
    return form.replace("{backend}", backend_id).replace(".", "_")


def forged(form: str, victim: str, limit: int = LIMIT) -> str:
    """A tool name that is cut so that the prefix of this backend stands at the beginning."""
    prefix = shown_prefix(form, victim)
    return "y" * limit + prefix + "z" * (limit - TAIL - len(prefix))


def owners_by_prefix(form: str, backend_ids: Sequence[str], name: str) -> set[str]:
    """The backends with the longest prefix that this name begins with."""
    prefixes = {backend_id: shown_prefix(form, backend_id) for backend_id in backend_ids}
    longest = max((prefix for prefix in prefixes.values() if name.startswith(prefix)), key=len, default=None)
    return {backend_id for backend_id, prefix in prefixes.items() if prefix == longest}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["tools", "prompts"])
@pytest.mark.parametrize("victim", ["git", "git_hub", "git.hub", "9"])
def test_a_forged_name_is_kept_out_of_the_prefix_of_another(form: str, kind: str, victim: str) -> None:
    """It is advertised all the same, with another beginning and the end of its own name; no conflict."""
    own = forged(form, victim)
    offers: list[Any] = [Offer("a", **{kind: (own,)}), Offer(victim, **{kind: ("search",)})]  # type: ignore[arg-type]  # one kind or the other
    (alone,) = getattr(build_routing(offers[:1], Prefix(form), max_name_length=LIMIT).table, kind)
    assert alone.startswith(shown_prefix(form, victim)), "the test is about this"
    routing = build_routing(offers, Prefix(form), max_name_length=LIMIT)
    (name,) = [name for name, target in getattr(routing.table, kind).items() if target == Target("a", own)]
    assert set() == owners_by_prefix(form, ["a", victim], name)
    assert (len(name), name[1:]) == (LIMIT, alone[1:])
    assert () == routing.conflicts


own_names = st.builds(
    lambda before, form, victim, after: before + shown_prefix(form, victim) + after,
    st.text("ag_-", max_size=40),
    st.sampled_from(FORMATS),
    st.sampled_from(IDS),
    st.text("ag_-.é", max_size=40),
) | st.builds(forged, st.sampled_from(FORMATS), st.sampled_from(IDS), st.integers(16, 40))


@given(
    st.permutations(IDS).flatmap(lambda ids: st.lists(st.sampled_from(ids), min_size=2, unique=True)),
    st.lists(own_names, min_size=1, max_size=6, unique=True),
    st.sampled_from(FORMATS),
    st.integers(16, 40),
)
def test_a_name_is_in_the_prefix_of_no_other_backend(
    backend_ids: list[str], names: list[str], form: str, limit: int
) -> None:
    """Whatever a backend lists: each advertised name that begins with configured prefixes belongs to a backend with the
    longest of them. Different tools have different names, in whatever order the backends are configured.
    """
    offers = [Offer(backend_id, tools=tuple(names)) for backend_id in backend_ids]
    routing = build_routing(offers, Prefix(form), max_name_length=limit)
    for name, target in routing.table.tools.items():
        assert len(name) <= limit
        assert target.backend_id in (owners_by_prefix(form, backend_ids, name) or {target.backend_id})
    assert len(set(routing.table.tools.values())) == len(routing.table.tools)
    assert routing.table.tools == build_routing(offers[::-1], Prefix(form), max_name_length=limit).table.tools
    # What is not advertised is withheld for what the whole names say, or for equal names, and is a conflict.
    withheld = {Target(i, own) for i in backend_ids for own in names} - set(routing.table.tools.values())
    assert {target.backend_id for target in withheld} <= {i for c in routing.conflicts for i in c.backend_ids}


@pytest.mark.parametrize("limit", [len("git_h.b") + TAIL, None])
def test_a_digest_may_complete_the_prefix_of_another(limit: int | None) -> None:
    """The name of `git` was changed without being cut. What it begins with is of its backend's making, so it is
    withheld as any other name inside that prefix is.
    """
    offers = [Offer("git", tools=("h.b",)), Offer("git_h_b", tools=("x",))]
    routing = build_routing(offers, Prefix(), max_name_length=limit)
    assert {"git_h_b_x": Target("git_h_b", "x")} == routing.table.tools
    assert [(("git",), "git_h_b")] == [(conflict.backend_ids, conflict.owner) for conflict in routing.conflicts]


@pytest.mark.parametrize("strategy", [Bare(), Priority("a"), Manual({forged("{backend}_", "git"): ("a", "x")})])
def test_without_prefixes_no_name_is_kept_out_of_any(strategy: ConflictResolution) -> None:
    """What a cut name begins with says nothing there."""
    own = "x" if isinstance(strategy, Manual) else forged("{backend}_", "git")
    offers = [Offer("a", tools=(own,)), Offer("git")]
    (name,) = build_routing(offers, strategy, max_name_length=LIMIT).table.tools
    assert name.startswith("git_")


def test_a_name_that_loses_one_character_is_kept_out_as_well() -> None:
    """It loses the id of its backend, and what is left begins with that of another."""
    own = "git." + "z" * (LIMIT - TAIL - len("git."))
    routing = build_routing([Offer("a", tools=(own,)), Offer("git")], Prefix("{backend}"), max_name_length=LIMIT)
    (name,) = routing.table.tools
    assert name.startswith("_it_zzz")
    assert () == routing.conflicts


def test_a_cut_name_may_begin_with_its_own_prefix() -> None:
    """Also if that is the longest of several."""
    own = forged("{backend}_", "git_hub")
    offers = [Offer("git"), Offer("git_hub", tools=(own,))]
    (name,) = build_routing(offers, Prefix(), max_name_length=LIMIT).table.tools
    assert name.startswith("git_hub_")


# Backends that come and go


def names_of(router: Router, backend_id: str = "a") -> list[str]:
    return [name for name, target in router.table.tools.items() if target.backend_id == backend_id]


def update(router: Router, *offers: Offer) -> None:
    """The router says what a new one would say of the same offers and bindings."""
    before = router.bindings
    router.update(offers)
    for bindings in (before, router.bindings):
        fresh = build_routing(offers, Prefix(), bindings=bindings, max_name_length=LIMIT)
        assert (fresh.table, fresh.conflicts) == (router.table, router.conflicts)


@pytest.mark.parametrize("others", list(permutations((Offer("git"), Offer("git_hub"), Offer("x")))))
def test_a_bound_name_stays_when_backends_come_and_go(others: tuple[Offer, ...]) -> None:
    """A name means one tool for the life of a session, and a tool keeps its name: neither a new backend whose prefix it
    begins with changes that, nor the end of one.
    """
    own = forged("{backend}_", "git_hub")
    offer = Offer("a", tools=(own,))
    rule = name_rule("models", LIMIT)

    router = Router(Prefix(), Bindings(), rule)
    update(router, offer)
    (first,) = names_of(router)
    assert first.startswith("git_hub_")
    for count in (1, 2, 3):
        update(router, offer, *others[:count])
        assert [first] == names_of(router)

    router = Router(Prefix(), Bindings(), rule)
    update(router, *others, offer)
    (first,) = names_of(router)
    assert first.startswith("_it_hub_")
    for count in (2, 1, 0):
        update(router, *others[:count], offer)
        assert [first] == names_of(router)


def test_an_unbound_name_changes_with_the_configuration() -> None:
    """The backend joins after another was added: its cut name is kept out of that prefix, and of no other."""
    own = forged("{backend}_", "git")
    router = Router(Prefix(), Bindings(), name_rule("models", LIMIT))
    update(router, Offer("a"))
    update(router, Offer("a"), Offer("git", tools=("x",)))
    update(router, Offer("a", tools=(own,)), Offer("git", tools=("x",)))
    (name,) = names_of(router)
    assert name.startswith("_it_")
    assert ("git_x", ()) == (*names_of(router, "git"), router.conflicts)


def test_only_the_prefixes_that_come_or_go_touch_cut_names() -> None:
    """Names that are cut to the beginning of another prefix are not decided about again."""
    cut = tuple(str(number) + forged("{backend}_", "git") for number in range(5))
    offers = [Offer("a", tools=cut), Offer("git")]
    router = Router(Prefix(), Bindings(), name_rule("models", LIMIT))
    router.update(offers)
    assert 0 == router.count_changes([*offers, Offer("other")])
    assert 5 == router.count_changes(offers[:1])


def test_a_withheld_cut_name_follows_its_whole_name() -> None:
    """`git` has no name inside `git_hub_`, however long the name is and whatever it is cut to."""
    offers = [Offer("git", tools=("hub_" + forged("{backend}_", "y"),)), Offer("git_hub"), Offer("y")]
    routing = build_routing(offers, Prefix(), max_name_length=LIMIT)
    assert {} == routing.table.tools
    assert [NameConflict] == [type(conflict) for conflict in routing.conflicts]
    assert ["git_hub"] == [conflict.owner for conflict in routing.conflicts]
    router = Router(Prefix(), Bindings(), name_rule("models", LIMIT))
    for configured in (offers[:2], offers, offers[:2], [*offers, Offer("z")], [offers[0], offers[2]]):
        update(router, *configured)
