"""The directory: kept per backend, it says what a directory built from scratch would say, and costs what changed."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal, TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import BACKEND_IDS, OWN_NAMES, resolutions
from support.untraced import untraced

from trio_vmcp import routing
from trio_vmcp._known_results import Page
from trio_vmcp._routing import names
from trio_vmcp._session import directory as directory_module
from trio_vmcp._session.directory import MOST_AT_ONCE, MOST_BOUND_BYTES, MOST_REMOVED, Directory, new_directory
from trio_vmcp._session.foreign_names import ForeignNames
from trio_vmcp._session.listing import Listing
from trio_vmcp._session.pages import MOST_NAME_BYTES
from trio_vmcp._session.shared_lists import SharedLists
from trio_vmcp.errors import MessageTooLarge, ResourceNotFound, ToolNotFound
from trio_vmcp.models import JSON
from trio_vmcp.routing import Bare, Bindings, ConflictResolution, Offer, Prefix, Target
from trio_vmcp.settings import FactorySettings

Listings: TypeAlias = dict[str, Listing | None]
PREFIX, UNBOUND = Prefix(), Bindings()
READ = ("tools", "prompts", "resources", "resource_templates", "table", "conflicts", "bindings")
URIS = ("memo://1", "memo://2", "memo://{day}", "memo://{")


def directory_of(
    strategy: ConflictResolution = PREFIX, bindings: Bindings = UNBOUND, shared: SharedLists | None = None
) -> Directory:
    settings = FactorySettings(conflict_resolution=strategy, max_name_length=20)
    return new_directory(bindings, settings, shared=shared)


def definitions(names: tuple[str, ...], key: str, mark: int = 0) -> dict[str, dict[str, Any]]:
    return {name: {key: name, "description": str(mark)} for name in names}


def listing(*names: str, mark: int = 0, prompts: tuple[str, ...] = (), uris: tuple[str, ...] = ()) -> Listing:
    return Listing(
        tools=definitions(names, "name", mark),
        prompts=definitions(prompts, "name", mark),
        resources=definitions(tuple(uri for uri in uris if "{" not in uri), "uri", mark),
        resource_templates=definitions(tuple(uri for uri in uris if "{" in uri), "uriTemplate", mark),
    )


def some(of: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(of), unique=True, max_size=5).map(tuple)


# One step of a session: a backend is removed; joins at the end of the order, and has not been listed; is removed and
# joins again with the listing of before; or lists anew.
steps = st.one_of(
    st.tuples(st.just("remove"), st.sampled_from(BACKEND_IDS), st.none()),
    st.tuples(st.just("join"), st.sampled_from(BACKEND_IDS), st.none()),
    st.tuples(st.just("move"), st.sampled_from(BACKEND_IDS), st.none()),
    st.tuples(
        st.just("list"),
        st.sampled_from(BACKEND_IDS),
        st.builds(
            lambda names, mark, prompts, uris: listing(*names, mark=mark, prompts=prompts, uris=uris),
            some(OWN_NAMES),
            st.integers(0, 1),
            some(OWN_NAMES),
            some(URIS),
        ),
    ),
)
# Several steps may come between two updates: an opening brings all backends at once.
scripts = st.lists(st.lists(steps, max_size=6), max_size=8)
bound = st.dictionaries(st.sampled_from(OWN_NAMES), st.sampled_from((*BACKEND_IDS, "gone")), max_size=3)


def play(step: tuple[str, str, Listing | None], listings: Listings) -> None:
    what, backend_id, listed = step
    if what == "remove":
        listings.pop(backend_id, None)
    elif what == "join":
        listings.setdefault(backend_id, None)
    elif what == "move" and backend_id in listings:
        listings[backend_id] = listings.pop(backend_id)
    elif backend_id in listings:
        listings[backend_id] = listed


@settings(max_examples=50)  # each takes 10 ms
@given(scripts, resolutions(), bound, st.booleans())
def test_what_is_kept_is_what_is_built_from_scratch(
    script: list[list[tuple[str, str, Listing | None]]],
    strategy: ConflictResolution,
    owners: Mapping[str, str],
    in_steps: bool,
) -> None:
    """Joins, losses, changes and removals in every order: names, order, conflicts and bindings are those of a directory
    that sees the backends of now for the first time, with the bindings of before; made in one step or in many.
    """
    kept = directory_of(strategy, Bindings(owners, owners))
    listings: Listings = {}
    for between in script:
        for step in between:
            play(step, listings)
        fresh = directory_of(strategy, kept.bindings)
        fresh.update(dict(listings))
        if in_steps:
            for _ in kept.update_in_steps(dict(listings)):
                pass
        else:
            kept.update(dict(listings))
        for what in READ:
            assert getattr(fresh, what) == getattr(kept, what), what
        for kind in ("tools", "prompts", "resources"):
            assert list(getattr(fresh.table, kind)) == list(getattr(kept.table, kind))
        assert_calls_go_by_the_table(kept)


def in_pages(listed: Listing | None) -> Listing | None:
    """A listing that several sessions may hold."""
    return None if listed is None else attrs.evolve(listed, pages={"tools": (Page({}, b"digest"),)})


@settings(max_examples=25)  # each takes 15 ms
@given(scripts, resolutions(), st.lists(st.booleans(), min_size=8, max_size=8))
def test_what_sessions_hold_once_changes_for_none_of_them_alone(
    script: list[list[tuple[str, str, Listing | None]]], strategy: ConflictResolution, in_steps: list[bool]
) -> None:
    """Sessions of one factory that begin with the same lists hold what follows from them once. One of them goes on,
    change by change, as if it were alone, and the others go on seeing what they saw.
    """
    shared = SharedLists()
    changing, alone = directory_of(strategy, shared=shared), directory_of(strategy)
    others: list[tuple[Directory, list[object]]] = []
    listings: Listings = {}
    for between, steps in zip(script, in_steps, strict=False):
        for what, backend_id, listed in between:
            play((what, backend_id, in_pages(listed)), listings)
        for directory in (changing, alone):
            if steps:
                for _ in directory.update_in_steps(dict(listings)):
                    pass
            else:
                directory.update(dict(listings))
        assert state_of(alone) == state_of(changing)
        assert_calls_go_by_the_table(changing)
        beginning = directory_of(strategy, shared=shared)
        beginning.update(dict(listings))
        others.append((beginning, state_of(beginning)))
        fresh = directory_of(strategy)
        fresh.update(dict(listings))
        assert state_of(fresh) == state_of(beginning)
        for other, before in others:
            assert before == state_of(other)


def test_what_follows_from_equal_lists_is_made_once() -> None:
    """Table, bindings and entries are the very same objects for every session that begins with the same lists in the
    same order, until its own lists change.
    """
    shared = SharedLists()
    lists: Listings = {name: in_pages(listing("a", prompts=("b",), uris=URIS)) for name in BACKEND_IDS[:2]}
    one, two, turned = (directory_of(shared=shared) for _ in range(3))
    one.update(lists)
    assert not two.is_long(lists)
    two.update(lists)
    turned.update(dict(reversed(lists.items())))
    assert all(getattr(one, what) is getattr(two, what) for what in READ)
    assert all(getattr(one, what) is not getattr(turned, what) for what in ("tools", "table", "bindings"))
    two.update(lists | {BACKEND_IDS[0]: in_pages(listing("a", "c"))})
    assert len(one.tools) + 1 == len(two.tools)
    assert len(one.bindings.tools) + 1 == len(two.bindings.tools)


def test_entries_of_equal_lists_are_made_once_beside_different_ones() -> None:
    """One backend lists the same to two sessions, and another does not: the entries of the first are the same."""
    shared = SharedLists()
    same, own, others = (in_pages(listing(name, prompts=(name,), uris=URIS)) for name in "abc")
    one, two = directory_of(shared=shared), directory_of(shared=shared)
    one.update({"x": same, "y": own})
    two.update({"x": same, "y": others})
    assert [True, False] == [a is b for a, b in zip(one.tools, two.tools, strict=True)]
    assert [True, False] == [a is b for a, b in zip(one.prompts, two.prompts, strict=True)]


def test_very_many_names_that_follow_from_equal_lists_are_there_at_once() -> None:
    """The first session works them out in steps, and others have them without any work."""
    shared = SharedLists()
    lists: Listings = {"a": in_pages(listing(*(f"t{tool}" for tool in range(MOST_AT_ONCE + 1))))}
    one, two = directory_of(shared=shared), directory_of(shared=shared)
    assert one.is_long(lists)
    for _ in one.update_in_steps(lists):
        pass
    assert not two.is_long(lists)
    two.update(lists)
    assert one.table is two.table


def test_only_what_other_sessions_may_get_is_held_for_them() -> None:
    """A list that no digest identifies is this session's own."""
    shared = SharedLists()
    common, own = in_pages(listing("a")), listing("a")
    held: list[int] = []
    for lists in ({"x": common}, {"x": common, "y": None}, {"x": common, "y": own}, {"x": own}):
        directory = directory_of(shared=shared)
        directory.update(lists)
        held.append(len(shared.first_names))
    assert [1, 1, 0, 0] == held  # of one at a time: an entry goes with its directory


def test_a_session_with_names_of_its_own_shares_none() -> None:
    """Names that a restored session, or another instance of it, has bound are not those of a new session, although the
    lists are the same.
    """
    shared, foreign = SharedLists(), ForeignNames()
    lists: Listings = {"here": in_pages(listing("t"))}
    bare, bound = FactorySettings(conflict_resolution=Bare()), Bindings({"t": "away"}, {})
    foreign.put(bound, UNBOUND)
    new = new_directory(UNBOUND, bare, shared=shared)
    restored = new_directory(bound, bare, shared=shared)
    elsewhere = new_directory(UNBOUND, bare, foreign, shared)
    last = new_directory(UNBOUND, bare, shared=shared)
    for directory in (new, restored, elsewhere, last):
        directory.update(lists)
    assert [["t"], [], [], ["t"]] == [[*each.table.tools] for each in (new, restored, elsewhere, last)]
    assert new.table is last.table


@settings(max_examples=50)
@given(scripts, resolutions(), bound)
def test_names_that_another_instance_has_bound_are_as_if_bound_before(
    script: list[list[tuple[str, str, Listing | None]]],
    strategy: ConflictResolution,
    owners: Mapping[str, str],
) -> None:
    """From the next change on: a backend that comes or lists something new finds them bound. What is bound here stays
    as it is.
    """
    foreign = ForeignNames()
    kept = new_directory(UNBOUND, FactorySettings(conflict_resolution=strategy, max_name_length=20), foreign)
    listings: Listings = {}
    for at, between in enumerate(script):
        for step in between:
            play(step, listings)
        if at == len(script) // 2:
            foreign.put(Bindings(owners, owners), UNBOUND)
        pending = foreign.count > 0
        before = kept.bindings
        for _ in kept.update_in_steps(dict(listings)):
            pass
        if pending and foreign.count == 0:  # there was something to decide
            before = Bindings({**owners, **before.tools}, {**owners, **before.prompts})
        fresh = directory_of(strategy, before)
        fresh.update(dict(listings))
        for what in READ:
            assert getattr(fresh, what) == getattr(kept, what), what
        assert_calls_go_by_the_table(kept)


def test_a_withheld_name_that_another_instance_has_bound() -> None:
    """The name belongs to the backend with the longer prefix, which came late on the other instance: there it is bound
    to the one that had it first, so it is that one's here, too.
    """
    foreign = ForeignNames()
    directory = new_directory(UNBOUND, FactorySettings(conflict_resolution=PREFIX), foreign)
    directory.update({"git": listing("hub_x"), "git_hub": listing("y")})
    assert ["git_hub_y"] == [tool.name for tool in directory.tools]
    foreign.put(Bindings({"git_hub_x": "git"}, {}), UNBOUND)
    directory.update({"git": listing("hub_x"), "git_hub": listing("y", "z")})
    assert {"git_hub_x": "git", "git_hub_y": "git_hub", "git_hub_z": "git_hub"} == {
        tool.name: tool.backend_id for tool in directory.tools
    }


def test_what_this_instance_knows_is_no_news() -> None:
    """It may have released the name, for another backend to have: the row of the other instance still says the old."""
    foreign = ForeignNames()
    known, theirs = Bindings({"t": "old"}, {"p": "old"}), Bindings({"t": "old", "u": "there"}, {"p": "there"})
    foreign.put(theirs, known)
    assert 2 == foreign.count
    assert Bindings({"u": "there"}, {"p": "there"}) == foreign.take()
    foreign.put(theirs, theirs)
    assert (0, UNBOUND) == (foreign.count, foreign.take())


def test_a_backend_of_another_instance_counts_as_removed() -> None:
    """Its names are free for others after those of a hundred backends that were removed later."""
    foreign = ForeignNames()
    directory = new_directory(UNBOUND, FactorySettings(conflict_resolution=Bare()), foreign)
    foreign.put(Bindings({"t": "there"}, {}), UNBOUND)
    directory.update({"0": listing("own")})
    for number in range(MOST_REMOVED + 1):
        assert "there" == directory.owner_of("tools", "t")
        directory.update({str(number): None})
    directory.update({"heir": listing("t")})
    assert ["t"] == [tool.name for tool in directory.tools]


def test_many_names_of_another_instance_are_taken_in_steps() -> None:
    """As many as make a change of this instance's own a long one."""
    foreign = ForeignNames()
    directory = new_directory(UNBOUND, FactorySettings(conflict_resolution=Bare()), foreign)
    many = {f"t{number}": "there" for number in range(MOST_AT_ONCE + 1)}
    foreign.put(Bindings(many, {}), UNBOUND)
    listings: Listings = {"here": listing("t0", "own")}
    assert directory.is_long(listings)
    for _ in directory.update_in_steps(listings):
        pass
    assert ["own"] == [tool.name for tool in directory.tools]
    assert not directory.is_long({"here": listing("t1")})
    foreign.put(Bindings({f"u{name}": "there" for name in many}, {}), UNBOUND)
    assert not directory.is_long(listings), "they wait for the next change"


def assert_calls_go_by_the_table(directory: Directory) -> None:
    """What a call finds is what a caller reads, entry by entry."""
    table = directory.table
    for composed in {*table.tools, *table.prompts, *OWN_NAMES, *directory.bindings.tools}:
        assert table.tools.get(composed) == directory.find("tools", composed)
        assert table.prompts.get(composed) == directory.find("prompts", composed)
        assert directory.bindings.tools.get(composed) == directory.owner_of("tools", composed)
    for uri in (*URIS, "memo://monday"):
        if (target := table.find_resource(uri)) is None:
            with pytest.raises(ResourceNotFound):
                directory.find_resource(uri)
        else:
            assert target == directory.find_resource(uri)
    assert [(tool.name, Target(tool.backend_id, tool.backend_name)) for tool in directory.tools] == [
        *table.tools.items()
    ]


def state_of(directory: Directory) -> list[object]:
    """All that callers see."""
    found = [directory.find("tools", name) for name in (*OWN_NAMES, *directory.bindings.tools)]
    return [*(getattr(directory, what) for what in READ), *found, *map(directory.find_owner, URIS)]


@settings(max_examples=25)  # each takes 20 ms
@given(scripts, resolutions())
def test_between_the_steps_of_an_update_callers_see_the_state_of_before(
    script: list[list[tuple[str, str, Listing | None]]], strategy: ConflictResolution
) -> None:
    """However much of it is done: whole lists, and calls that go by them."""
    directory = directory_of(strategy)
    listings: Listings = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(names, "AT_ONCE", 1)
        for between in script:
            for step in between:
                play(step, listings)
            before = state_of(directory)
            for _ in directory.update_in_steps(dict(listings)):
                assert before == state_of(directory)


@pytest.mark.parametrize("strategy", [PREFIX, Bare(), Prefix("x{backend}")])
def test_an_update_that_is_given_up_leaves_nothing(
    strategy: ConflictResolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whichever step: what callers read next is what was before, and what comes next is made from that."""
    monkeypatch.setattr(names, "AT_ONCE", 1)
    old: Listings = {"a": listing("x", "y", uris=URIS), "b": listing("y", "w", uris=URIS), "d": listing("w")}
    new: Listings = {"b": listing("y", "z", uris=URIS[1:]), "c": listing("x", "z"), "d": None}
    given_up = True
    taken = 0
    while given_up:
        directory = directory_of(strategy)
        directory.update(old)
        given_up = len(list(islice(directory.update_in_steps(new), taken))) == taken
        for listings in (old, new) if given_up else (new,):
            fresh = directory_of(strategy)
            fresh.update(old)
            fresh.update(listings)
            if listings is new:
                directory.update(new)
            assert state_of(fresh) == state_of(directory), taken
        taken += 1
    assert taken > 50


MAKERS = [  # of what callers read
    (directory_module, "_MAKERS"),
    (directory_module, "ResourceTemplate"),
    (routing, "RoutingTable"),
    (routing, "Bindings"),
    (names.Names, "conflicts"),
]


def test_what_took_many_steps_is_there_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader would put everything together in one step."""
    own = directory_of(Bare())
    tools = [f"t{tool}" for tool in range(2000)]
    for _ in own.update_in_steps({known: listing(*tools, prompts=tuple(tools), uris=URIS) for known in "ab"}):
        pass
    for module, maker in MAKERS:
        monkeypatch.setattr(module, maker, None)
    assert [2000, 2000, 2, 2] == [len(getattr(own, what)) for what in READ[:4]]
    assert [2000, 2000, 2] == [len(getattr(own.table, what)) for what in READ[:3]]
    assert 4002 <= len(own.conflicts)
    assert [2000, 2000] == [len(own.bindings.tools), len(own.bindings.prompts)]


@pytest.mark.parametrize("extra", [0, 1])
def test_a_change_is_made_at_once_up_to_a_thousand_names_or_entries(extra: int) -> None:
    """New entries, entries that are described otherwise, and names that go, of all backends together. Lists that stay
    count for nothing.
    """
    count = MOST_AT_ONCE + extra - 1
    many = [listing("x", *(f"t{tool}" for tool in range(count)), mark=mark) for mark in range(2)]
    directory, few = directory_of(), listing("x")
    assert bool(extra) == directory.is_long({"a": many[0]})
    directory.update({"a": few, "b": many[0]})
    described = attrs.evolve(many[0], tools=many[1].tools)
    assert bool(extra) == directory.is_long({"a": few, "b": None})
    assert bool(extra) == directory.is_long({"a": few, "b": described}) == directory.is_long({"b": described})
    assert not directory.is_long({"a": few, "b": attrs.evolve(many[0], prompts={"p": {"name": "p"}})})


@pytest.mark.parametrize("strategy", [PREFIX, Bare()])
def test_a_large_change_is_made_in_steps(strategy: ConflictResolution) -> None:
    """A first listing, other names for all, and a removal: one for some names each; a small one is made at once."""
    large = {f"b{number}": listing(*(f"t{tool}" for tool in range(3000))) for number in range(3)}
    other = {known: listing(*(f"u{tool}" for tool in range(3000))) for known in large}
    directory = directory_of(strategy)
    for listings, changes in ((large, 9000), (other, 18000), ({"b0": other["b0"]}, 6000)):
        assert directory.is_long(listings)
        assert len(list(directory.update_in_steps(listings))) >= changes // names.AT_ONCE
        assert not directory.is_long(listings)
    assert not directory.is_long({"b0": other["b0"], "small": listing("x")})


@pytest.mark.parametrize(
    ("first", "others", "added", "is_long"),
    [
        ("t", "t", "x_y", True),  # `x_y_` lies inside of `x_`, so each name of `x` is looked at again
        ("it_is_cut_to_its_end_new_", "it_is_cut_to_its_end_aaa_", "new", True),  # one begins as those of `new`
        ("it_is_cut_to_its_end_new_", "it_is_cut_to_its_end_aaa_", "other", False),
        ("it_is_cut_to_its_end_new_", "it_is_cut_to_its_end_aaa_", "between", False),
        ("t", "t", "new", False),
    ],
)
def test_a_prefix_that_touches_many_names_is_taken_over_in_steps(
    first: str, others: str, added: str, is_long: bool
) -> None:
    """Of a backend that comes, or goes, however few names it has itself."""
    alone: Listings = {"x": listing(f"{first}000", *(f"{others}{tool:03x}" for tool in range(1, 2000)))}
    both: Listings = {**alone, added: listing("z")}
    directory = directory_of()
    directory.update(alone)
    for listings in (both, alone):
        assert is_long == directory.is_long(listings)
        for _ in directory.update_in_steps(listings):
            pass
        fresh = directory_of(bindings=directory.bindings)
        fresh.update(listings)
        assert fresh.tools == directory.tools


def test_templates_are_read_in_steps() -> None:
    """To read one takes as long as to decide about four names."""
    directory = directory_of()
    uris = tuple(f"memo://{number}/{{x}}" for number in range(2000))
    assert len(list(directory.update_in_steps({"a": listing(uris=uris)}))) >= 2000 * 18 // 2048


def test_a_state_change_computes_nothing() -> None:
    """Without a new list everything that was read is the very same object."""
    directory = directory_of()
    listings: Listings = {"a": listing("x", prompts=("p",), uris=URIS), "b": listing("x"), "c": None}
    directory.update(listings)
    before = [getattr(directory, what) for what in READ]
    directory.update(dict(listings))
    assert all(old is getattr(directory, what) for what, old in zip(READ, before, strict=True))


@pytest.mark.parametrize("strategy", [PREFIX, Bare()])
def test_a_changed_description_replaces_one_backends_part(strategy: ConflictResolution) -> None:
    """The entries of the others are the same objects, also where a name is contested, and no name is bound anew."""
    directory = directory_of(strategy)
    own = {"a": listing("w", "both"), "b": listing("both", "z")}
    directory.update(own)
    before, bindings = directory.tools, directory.bindings
    directory.update({**own, "b": listing("both", "z", mark=1)})
    assert {("a", "0"), ("b", "1")} == {(tool.backend_id, tool.description) for tool in directory.tools}
    assert all(old is now for old, now in zip(before[:2], directory.tools[:2], strict=True))
    assert bindings is directory.bindings


def test_a_changed_description_costs_a_small_part_of_building_all() -> None:
    """50 backends with 200 tools each: about 1 % of it, measured against the building itself."""
    listings: Listings = {f"b{number}": listing(*(f"tool_{tool}" for tool in range(200))) for number in range(50)}

    def cpu_time(directory: Directory, runs: int) -> float:
        best = math.inf
        for mark in range(runs):
            changed = {"b0": listing(*(f"tool_{tool}" for tool in range(200)), mark=mark)}
            with untraced():
                begun_at = time.process_time()
                directory.update(listings | changed)
                best = min(best, time.process_time() - begun_at)
            assert 10_000 == len(directory.tools)
        return best

    kept = directory_of()
    whole = min(cpu_time(directory_of(), 1), cpu_time(kept, 1))
    assert cpu_time(kept, 5) < whole / 10


def test_a_contested_name_shows_its_owners_definition_of_now() -> None:
    """Under Bare, "x" stands where the first backend lists it, with the definition that its owner gives it now."""
    directory, first = directory_of(Bare(), Bindings({"x": "b"})), listing("x")
    for mark in range(2):
        directory.update({"a": first, "b": listing("y", "x", mark=mark)})
        assert [("x", "b", str(mark)), ("y", "b", str(mark))] == [
            (tool.name, tool.backend_id, tool.description) for tool in directory.tools
        ]


def test_a_backend_that_moves_to_the_end_is_the_last_to_have_a_uri() -> None:
    """Removed and added again with the same list: names stay bound, URIs go by the configured order of now."""
    directory, one, two = directory_of(Bare()), listing("x", uris=URIS), listing("x", uris=URIS)
    for listings, first in (({"a": one, "b": two}, "a"), ({"b": two, "a": one}, "b")):
        directory.update(listings)
        assert Target(first, "memo://1") == directory.find_resource("memo://1") == directory.table.resources["memo://1"]
        assert Target(first, "memo://monday") == directory.find_resource("memo://monday")
        assert Target("a", "x") == directory.find("tools", "x")
        assert [tuple(listings)] * 5 == [conflict.backend_ids for conflict in directory.conflicts]


def test_a_table_that_was_read_does_not_change() -> None:
    """What a caller holds is what was true when it was read."""
    directory = directory_of()
    directory.update({"a": listing("x")})
    table, tools, bindings = directory.table, directory.tools, directory.bindings
    directory.update({"a": listing("y")})
    assert {"a_x": Target("a", "x")} == table.tools
    assert ["a_x"] == [tool.name for tool in tools]
    assert {"a_x": "a"} == bindings.tools
    assert {"a_x": "a", "a_y": "a"} == directory.bindings.tools


def test_names_of_one_backend_are_bounded() -> None:
    """Names that are bound count, listed or not; so do those of the row; other backends have a bound of their own."""
    half = "x" * MOST_NAME_BYTES  # as much as one listing may have
    assert 2 * len(half) == MOST_BOUND_BYTES
    directory = directory_of(bindings=Bindings({f"a_{half}": "a"}))
    directory.update({"a": None, "b": None})
    for fits in (listing(half[:-2]), listing(prompts=(half[:-2],)), Listing()):
        directory.check_names("a", None, fits)
    directory.check_names("b", None, listing(half + half))
    for over in (listing(half[:-1]), listing(prompts=(half[:-1],)), listing(half[100:], prompts=("y" * 99,))):
        with pytest.raises(MessageTooLarge, match="lists ever new names"):
            directory.check_names("a", None, over)
    directory = directory_of(bindings=Bindings({f"a_{half}{half}": "a"}))  # more than that, by its prefix
    directory.check_names("a", listing(half), listing(half, mark=1))  # nothing in it is new
    with pytest.raises(MessageTooLarge):
        directory.check_names("a", listing(half), listing(half, "y"))


def test_a_name_counts_once_however_often_it_is_decided() -> None:
    """Names count when they are bound; a contested name that is decided again is bound already."""
    names = tuple("x" * 50 + str(number) for number in range(MOST_BOUND_BYTES // 60))
    directory = new_directory(UNBOUND, FactorySettings(conflict_resolution=Bare()))
    size = sum(map(len, names))
    for mark in range(3):
        directory.update({"a": listing(*names), "b": listing(*names[mark:])})
        left = MOST_BOUND_BYTES - size
        directory.check_names("a", None, listing("y" * left))
        with pytest.raises(MessageTooLarge):
            directory.check_names("a", None, listing("y" * (left + 1)))


def test_nothing_is_kept_of_a_removed_backend() -> None:
    """A session may add and remove backends for ever."""
    directory, removed = directory_of(), listing("x")
    directory.update({"a": removed, "b": listing("x")})
    assert ["a_x", "b_x"] == [tool.name for tool in directory.tools]
    directory.update({"b": listing("x")})
    assert ["b_x"] == [tool.name for tool in directory.tools]
    assert [removed] == [holder for holder in gc.get_referrers(removed.tools) if isinstance(holder, Listing)]
    assert [] == [holder for holder in gc.get_referrers(removed.tools) if type(holder).__module__ != Listing.__module__]


def test_a_removed_backend_that_was_never_listed_leaves_nothing() -> None:
    """Not even its id: there may be a new one for each task of a session."""
    directory = directory_of()
    for number in range(9):
        directory.update({f"unlisted{number}": None})
    directory.update({})
    kept = [each.backend_id for each in gc.get_objects() if isinstance(each, Offer)]
    assert [] == [backend_id for backend_id in kept if backend_id.startswith("unlisted")]


@pytest.mark.parametrize("is_restored", [False, True])
def test_the_names_of_the_last_removed_backends_stay_bound(is_restored: bool) -> None:
    """Names of a backend that was removed before a hundred others may be another's. One that was added again counts as
    removed when it was removed the last time.
    """
    directory = directory_of(Bare())
    heir: Listings = {"heir": listing("t0", "t1", "t2", prompts=("t0",))}
    directory.update(dict.fromkeys(map(str, range(MOST_REMOVED + 1))))
    for number in [*range(MOST_REMOVED), 0]:  # the oldest is "1" by now
        directory.update({str(number): listing(f"t{number}", prompts=(f"t{number}",))})
    directory.update(heir)
    if is_restored:
        directory = directory_of(Bare(), directory.bindings)
        directory.update(heir)
    assert {str(number) for number in range(MOST_REMOVED)} == set(directory.bindings.tools.values())
    assert {} == directory.table.tools
    directory.update(heir | {"last": listing("u")})
    before = directory.bindings
    directory.update(heir)
    assert before != directory.bindings
    oldest = "0" if is_restored else "1"  # a row does not tell when a backend was removed
    assert oldest not in directory.bindings.tools.values()
    advertised = [entry.name for entry in directory.tools]
    assert [f"t{oldest}"] == advertised == list(directory.table.tools)
    assert Target("heir", f"t{oldest}") == directory.find("tools", f"t{oldest}")
    assert "heir" == directory.bindings.tools[f"t{oldest}"] == directory.owner_of("tools", f"t{oldest}")
    assert directory.bindings is directory.bindings
    assert [name for name in ("t0", "t1", "t2") if name != f"t{oldest}"] == [
        conflict.name for conflict in directory.conflicts if conflict.kind == "tool"
    ]


def test_what_is_bound_to_removed_backends_is_bounded() -> None:
    """However many come and go in the life of one session: the names of one hundred, and of those that are there."""
    directory = directory_of()
    for number in range(3 * MOST_REMOVED):
        directory.update({f"b{number}": listing(*map(str, range(9)))})
        assert len(directory.bindings.tools) <= 9 * 101
    assert 9 * 101 == len(directory.bindings.tools)


# What is asked of single entries.


def test_what_a_backend_offers_itself() -> None:
    """A resource, or what its templates match, also where another backend owns the URI."""
    directory = directory_of()
    directory.update({"a": listing(uris=("memo://1",)), "b": listing(uris=("memo://1", "memo://2", "file://{x}"))})
    offered = {
        uri: [known for known in ("a", "b", "gone") if directory.offers(known, uri)]
        for uri in ("memo://1", "memo://2", "file://3", "file://{x}", "memo://3")
    }
    assert {
        "memo://1": ["a", "b"],
        "memo://2": ["b"],
        "file://3": ["b"],
        "file://{x}": ["b"],
        "memo://3": [],
    } == offered
    directory.update({"a": listing(uris=("file://{y}",)), "b": listing(uris=("memo://{x}",))})
    assert [True, False, False, True] == [
        directory.offers(known, uri) for uri in ("file://1", "memo://1") for known in ("a", "b")
    ]


def test_which_uris_are_listed_as_they_are() -> None:
    """What a template merely matches is not listed."""
    directory = directory_of()
    directory.update({"a": listing(uris=("memo://1", "memo://{day}"))})
    assert [True, False] == [directory.lists_resource(uri) for uri in ("memo://1", "memo://2")]
    assert Target("a", "memo://{day}") == directory.find_template("memo://{day}")
    assert directory.find_template("memo://1") is None


@pytest.mark.parametrize("kind", ["tools", "prompts"])
def test_an_unknown_name_is_told_the_closest_ones(kind: Literal["tools", "prompts"]) -> None:
    """The same that the table tells."""
    directory = directory_of()
    directory.update({"a": listing("search", prompts=("search",), uris=("memo://monday",)), "b": listing("find")})
    error = directory.not_found(kind, "a_serach", ToolNotFound)
    assert ("a_search",) == error.closest == directory.table.closest(kind, "a_serach")
    with pytest.raises(ResourceNotFound) as caught:
        directory.find_resource("memo://mondya")
    assert ("memo://monday",) == caught.value.closest


def public(ttl: float) -> JSON:
    return {"cacheScope": "public", "ttlMs": ttl}


@pytest.mark.parametrize(
    ("first", "second", "ttl"),
    [
        ([public(5)], [public(3)], 3),
        ([public(3)], [public(5), public(4)], 3),
        ([public(5)], [], 5),  # it has no such list
        ([public(5)], [{}], None),
        ([], [], None),
    ],
)
def test_a_list_may_be_shared_as_long_as_all_backends_say(
    first: list[JSON], second: list[JSON], ttl: float | None
) -> None:
    """Those that have such a list; what they say of other lists does not count."""
    directory = directory_of()
    results = {"a": first, "b": second}
    lists = {known: {"resources": tuple(map(Page, those))} if those else {} for known, those in results.items()}
    directory.update({known: Listing(pages={**pages, "tools": (Page(public(1)),)}) for known, pages in lists.items()})
    assert ttl == directory.public_ttl("resources/list")
