"""Names: which backend owns which, decided by the configuration and by earlier bindings alone."""

from __future__ import annotations

import math
import pickle
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import OWN_NAMES, histories, offer_lists, resolutions
from support.untraced import untraced

from trio_vmcp._protocol.uri_template import MAX_URI_LENGTH, compile_template
from trio_vmcp._routing.matching import TemplateGroup, find_backend, group_templates
from trio_vmcp._routing.name_rule import name_rule
from trio_vmcp._routing.names import SIMPLE_AT_ONCE
from trio_vmcp._routing.strategies import inner_prefixes
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
    RoutingTable,
    Target,
    build_routing,
)

KIB = 1024

TIME = Offer("time", tools=("now", "zone"), prompts=("ask",), resources=("clock://utc",))
FILES = Offer("files", tools=("now", "read"), prompts=("ask",), resources=("clock://utc", "file:///a"))


def group(backend_id: str, *templates: str) -> TemplateGroup:
    return group_templates(backend_id, map(compile_template, templates))


def test_prefix_is_put_before_tools_and_prompts_but_never_before_uris() -> None:
    """A prefix names the backend of a tool or prompt; a URI is a locator and is never changed."""
    table = build_routing([TIME, FILES], Prefix("{backend}_")).table
    assert {
        "time_now": Target("time", "now"),
        "time_zone": Target("time", "zone"),
        "files_now": Target("files", "now"),
        "files_read": Target("files", "read"),
    } == table.tools
    assert {"time_ask": Target("time", "ask"), "files_ask": Target("files", "ask")} == table.prompts
    assert {"clock://utc": Target("time", "clock://utc"), "file:///a": Target("files", "file:///a")} == table.resources


def test_a_uri_that_two_list_is_the_first_ones_and_reported() -> None:
    """The first backend in configured order serves a URI."""
    twice = attrs.evolve(TIME, resources=("clock://utc", "clock://utc"))
    routing = build_routing([FILES, twice], Prefix())
    assert Target("files", "clock://utc") == routing.table.resources["clock://utc"]
    assert (NameConflict("resource", "clock://utc", ("files", "time"), "files"),) == routing.conflicts


def test_bare_gives_a_contested_name_to_the_first() -> None:
    """Bare: the first backend in configured order gets the name, and the conflict names it as the owner."""
    routing = build_routing([FILES, TIME], Bare())
    assert Target("files", "now") == routing.table.tools["now"]
    assert NameConflict("tool", "now", ("files", "time"), "files") in routing.conflicts
    assert NameConflict("prompt", "ask", ("files", "time"), "files") in routing.conflicts
    assert {"now": "files", "read": "files", "zone": "time"} == routing.bindings.tools


@pytest.mark.parametrize(
    ("preferred", "owner"),
    [((), "files"), (("time",), "time"), (("absent", "time", "files"), "time"), (("absent",), "files")],
)
def test_priority_comes_before_configured_order(preferred: tuple[str, ...], owner: str) -> None:
    """Priority: listed ids come first, then configured order; a conflict lists backends in configured order."""
    routing = build_routing([FILES, TIME], Priority(*preferred))
    assert Target(owner, "now") == routing.table.tools["now"]
    assert NameConflict("tool", "now", ("files", "time"), owner) in routing.conflicts


def test_manual_advertises_what_it_names_and_nothing_else() -> None:
    """One mapping names tools and prompts."""
    routing = build_routing([TIME, FILES], Manual({"clock": ("time", "now"), "ask": ("files", "ask"), "x": ("a", "y")}))
    assert {"clock": Target("time", "now")} == routing.table.tools
    assert {"ask": Target("files", "ask")} == routing.table.prompts
    assert [] == [conflict for conflict in routing.conflicts if conflict.kind != "resource"]


def test_a_name_belongs_to_the_longest_prefix() -> None:
    """`a_` + `b` and `a` + `_b`: the name belongs to `a_`, whose prefix it begins with, and `a` cannot take it away."""
    routing = build_routing([Offer("a", tools=("_b", "c")), Offer("a_", tools=("b", "c"))], Prefix())
    assert {"a__b": Target("a_", "b"), "a_c": Target("a", "c"), "a__c": Target("a_", "c")} == routing.table.tools
    assert (NameConflict("tool", "a__b", ("a", "a_"), "a_"),) == routing.conflicts


SHADOWING = [  # format, the outer backend and its own name, the inner backend and its own name
    ("{backend}_", ("git", "hub_search"), ("git_hub", "search")),
    ("{backend}", ("git", "hubsearch"), ("github", "search")),
    ("{backend}-", ("git", "-search"), ("git-", "search")),
    ("mcp.{backend}.", ("a", "b.search"), ("a.b", "search")),
    ("{backend}_", ("git", "hub_" + "x" * 40), ("git_hub", "x" * 40)),
    ("{backend}_", ("git", "hub_" + "x" * 20), ("git_hub", "x" * 20)),  # fits, with no room for a digest
    ("{backend}_", ("a", "b_t_znsba74oag4h"), ("a.b", "t")),  # the name that `t` of `a.b` is made to fit
]


@pytest.mark.parametrize(("form", "outer", "inner"), SHADOWING)
@pytest.mark.parametrize("kind", ["tools", "prompts"])
@pytest.mark.parametrize("inner_first", [True, False])
def test_no_backend_has_a_name_inside_the_prefix_of_another(
    form: str, outer: tuple[str, str], inner: tuple[str, str], kind: str, inner_first: bool
) -> None:
    """Whether or not the other is there, and in either order: a call meant for `git_hub` never reaches `git`. Once
    `git_hub` had the name, `git` does not get it after `git_hub` was removed; an unbound name goes to `git` then.
    """
    order = [inner[0], outer[0]] if inner_first else [outer[0], inner[0]]
    own = dict([outer, inner])
    router = Router(Prefix(form), Bindings(), name_rule("models", 30))

    def update(*there: str, configured: Sequence[str] = order) -> list[str]:
        listed: dict[str, Any] = {i: {kind: (own[i],)} if i in there else {} for i in configured}
        router.update([Offer(i, **listed[i]) for i in configured])
        fresh = build_routing(list(router._offers.values()), Prefix(form), bindings=router.bindings, max_name_length=30)
        assert (fresh.table, fresh.conflicts) == (router.table, router.conflicts)
        return [target.backend_id for target in getattr(router.table, kind).values()]

    assert [] == update(outer[0])
    assert [(outer[0],)] == [conflict.backend_ids for conflict in router.conflicts]
    fitted = name_rule("models", 30).fit(form.replace("{backend}", outer[0]) + outer[1])
    assert [(fitted, inner[0])] == [(conflict.name, conflict.owner) for conflict in router.conflicts]
    assert [inner[0]] == update(*order)
    assert [] == update(outer[0])
    assert [] == update(outer[0], configured=[outer[0]])
    router = Router(Prefix(form), Bindings(), name_rule("models", 30))
    assert [] == update(outer[0])
    assert [outer[0]] == update(outer[0], configured=[outer[0]])
    assert [outer[0]] == update(*order), "bound before the other was added"


def test_prefixes_inside_each_other_are_found_once() -> None:
    """Each with the ones inside of it, the longest first; what stands beside it costs no name a comparison."""
    assert {
        "git": {"git_hub_x_": "git_hub_x", "git_hub_": "git_hub"},
        "git_hub": {"git_hub_x_": "git_hub_x"},
    } == (found := inner_prefixes(Prefix("{backend}_"), ["x", "git_hub", "git", "gitlab", "git_hub_x"], str))
    assert ["git_hub_x_", "git_hub_"] == list(found["git"])


def test_two_backends_with_one_prefix_each_have_their_names() -> None:
    """The prefix of `a.b` is advertised as that of `a_b`, and neither is inside the other."""
    routing = build_routing([Offer("a.b", tools=("x",)), Offer("a_b", tools=("x",))], Prefix())
    fitted = name_rule("models", None).fit("a.b_x")
    assert {fitted: Target("a.b", "x"), "a_b_x": Target("a_b", "x")} == routing.table.tools
    assert () == routing.conflicts


def test_of_several_prefixes_the_longest_has_a_name() -> None:
    """Three prefixes inside each other, and one that merely looks alike."""
    offers = [Offer(i, tools=("x", "b_x", "b_c_x", "c_x")) for i in ("a_b_c", "a", "ab", "a_b")]
    table = build_routing(offers, Prefix()).table.tools
    assert Target("a", "x") == table["a_x"]
    assert Target("a_b", "x") == table["a_b_x"]
    assert Target("a_b_c", "x") == table["a_b_c_x"]
    assert Target("ab", "b_x") == table["ab_b_x"]
    assert {"a", "a_b_c", "a_b", "ab"} == {target.backend_id for target in table.values()}
    assert all(not name.startswith("a_b_c_") or target.backend_id == "a_b_c" for name, target in table.items())


@pytest.mark.parametrize("strategy", [Prefix(), Bare(), Priority("a"), Manual({"a__b": ("a", "_b"), "b": ("b", "b")})])
def test_a_bound_name_is_its_owners_even_while_it_is_away(strategy: ConflictResolution) -> None:
    """A bound name goes to no other backend while its owner is away or does not list it; each claim is a conflict."""
    everything = [Offer(backend_id, tools=("b", "_b"), prompts=("b", "_b")) for backend_id in ("a", "a_", "b")]
    names = ("b", "_b", "a_b", "a__b", "a___b", "b_b", "b__b")
    bindings = Bindings(dict.fromkeys(names, "away"), dict.fromkeys(names, "away"))
    routing = build_routing(everything, strategy, bindings=bindings)
    assert {} == {**routing.table.tools, **routing.table.prompts}
    assert bindings is routing.bindings
    assert {"away"} == {conflict.owner for conflict in routing.conflicts}


def test_a_bound_name_stays_when_a_backend_before_its_owner_wants_it() -> None:
    """A binding wins over the configured order, and the conflict adds no binding."""
    bindings = build_routing([TIME], Bare()).bindings
    routing = build_routing([FILES, TIME], Bare(), bindings=bindings)
    assert Target("time", "now") == routing.table.tools["now"]
    assert NameConflict("tool", "now", ("files", "time"), "time") in routing.conflicts
    assert {"now": "time", "zone": "time", "read": "files"} == routing.bindings.tools
    assert routing.bindings is build_routing([FILES, TIME], Bare(), bindings=routing.bindings).bindings


def test_what_a_backend_lists_twice_counts_once() -> None:
    """A duplicate is not a conflict."""
    routing = build_routing([Offer("a", ("t", "t"), ("p", "p"), ("r://", "r://"), ("t://{x}", "t://{x}"))], Prefix())
    table = RoutingTable(
        {"a_t": Target("a", "t")}, {"a_p": Target("a", "p")}, {"r://": Target("a", "r://")}, (Target("a", "t://{x}"),)
    )
    assert (table, ()) == (routing.table, routing.conflicts)


# Names that the user gives.


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        (Prefix(), {"a_find": "search", "a_get": "get"}),
        (Bare(), {"find": "search", "get": "get"}),
        (Priority("a"), {"find": "search", "get": "get"}),
        (Manual({"x": ("a", "search"), "y": ("a", "find"), "z": ("a", "get")}), {"x": "search", "z": "get"}),
    ],
)
def test_a_given_name_takes_the_place_of_the_own_one(strategy: ConflictResolution, names: dict[str, str]) -> None:
    """The strategy makes the advertised name of it, except for `Manual`, which goes by own names. Calls carry the own
    name.
    """
    routing = build_routing([Offer("a", tools=("search", "get"), renamed={"search": "find", "gone": "x"})], strategy)
    assert {name: Target("a", own) for name, own in names.items()} == routing.table.tools
    assert () == routing.conflicts
    assert dict.fromkeys(names, "a") == routing.bindings.tools


def test_a_given_name_is_made_to_fit() -> None:
    """As any composed name is."""
    (name,) = build_routing([Offer("a", tools=("x",), renamed={"x": "find all.v2"})], Prefix()).table.tools
    assert re.fullmatch("a_find_all_v2_[a-z2-7]{12}", name)


def test_tools_alone_are_renamed() -> None:
    """A prompt of that name keeps its own."""
    table = build_routing([Offer("a", tools=("x",), prompts=("x",), renamed={"x": "y"})], Prefix()).table
    assert (["a_y"], ["a_x"]) == (list(table.tools), list(table.prompts))


@pytest.mark.parametrize("strategy", [Prefix(), Bare(), Priority("a")])
@pytest.mark.parametrize("tools", [("x", "y"), ("y", "x")])
def test_a_given_name_yields_to_the_own_name_of_another_tool(
    strategy: ConflictResolution, tools: tuple[str, ...]
) -> None:
    """In either order of the list: the renamed tool is withheld, and a conflict says so. Once the other is not listed
    any more, the renamed one has the name.
    """
    prefix = "a_" if isinstance(strategy, Prefix) else ""
    router = Router(strategy, Bindings(), name_rule("models", None))
    router.update([Offer("a", tools=tools, renamed={"x": "y"}), Offer("b")])
    assert {f"{prefix}y": Target("a", "y")} == router.table.tools
    assert (NameConflict("tool", f"{prefix}y", ("a",), "a"),) == router.conflicts
    router.update([Offer("a", tools=("x",), renamed={"x": "y"}), Offer("b")])
    assert {f"{prefix}y": Target("a", "x")} == router.table.tools
    assert not router.conflicts
    router.update([Offer("a", tools=("x", "y")), Offer("b")])
    assert {f"{prefix}{own}": Target("a", own) for own in ("x", "y")} == router.table.tools


def router_after(strategy: ConflictResolution, *changes: list[Offer]) -> Router:
    """It says what a new one would say of the latest offers."""
    router = Router(strategy, Bindings(), name_rule("models", None))
    for offers in changes:
        bindings = router.bindings
        router.update(offers)
        fresh = build_routing(offers, strategy, bindings=bindings)
        assert (fresh.table, fresh.conflicts) == (router.table, router.conflicts)
    return router


def test_other_given_names_for_the_same_tools() -> None:
    """A backend was exchanged for one with the same tools: the new names hold."""
    one, two = ([Offer("a", tools=("x", "y"), renamed={"x": to})] for to in ("b", "c"))
    assert ["a_c", "a_y"] == list(router_after(Prefix(), one, two, one, two).table.tools)


def test_given_names_stay_when_a_prefix_inside_comes() -> None:
    """Names are made anew then, of the given ones."""
    outer, inner = Offer("git", tools=("x", "y"), renamed={"x": "hub_x", "y": "z"}), Offer("git_hub")
    assert ["git_hub_x", "git_z"] == list(router_after(Prefix(), [outer], [outer, inner]).table.tools)
    assert ["git_z"] == list(router_after(Prefix(), [outer, inner]).table.tools)


def test_a_given_name_that_is_changed_to_an_own_one_yields() -> None:
    """Of two own names that fit alike neither is advertised; a given one yields to the own one that it fits like."""
    (fitted,) = build_routing([Offer("a", tools=("x.y",))], Bare()).table.tools
    tools = ("x.y", fitted)
    both, given = [Offer("a", tools=tools)], [Offer("a", tools=tools, renamed={fitted: "x.y"})]
    assert {} == router_after(Bare(), given, both).table.tools
    assert {fitted: Target("a", "x.y")} == router_after(Bare(), both, given).table.tools
    manual = Manual({"x.y": ("a", "x.y"), fitted: ("a", fitted)})
    assert {} == router_after(manual, [Offer("a", tools=tools, renamed={"x.y": "z"})]).table.tools


def test_two_tools_can_change_names() -> None:
    """What counts is the name that each of them gets."""
    routing = build_routing([Offer("a", tools=("x", "y"), renamed={"x": "y", "y": "x"})], Prefix())
    assert {"a_y": Target("a", "x"), "a_x": Target("a", "y")} == routing.table.tools
    assert () == routing.conflicts


def test_a_given_name_is_claimed_like_an_own_one_among_backends() -> None:
    """The strategy decides between backends; of the owner's tools the one of that own name has it."""
    offers = [Offer("a", tools=("x", "y"), renamed={"x": "z", "y": "w"}), Offer("b", tools=("z", "w", "y"))]
    routing = build_routing(offers, Bare())
    assert {"z": ("a", "x"), "w": ("a", "y"), "y": ("b", "y")} == {
        name: (target.backend_id, target.name) for name, target in routing.table.tools.items()
    }
    assert {"z", "w"} == {conflict.name for conflict in routing.conflicts}
    assert {"a"} == {conflict.owner for conflict in routing.conflicts}


def test_a_given_name_inside_the_prefix_of_another_backend_is_withheld() -> None:
    """`git` has no name inside `git_hub_`, given or own."""
    offers = [Offer("git", tools=("x",), renamed={"x": "hub_x"}), Offer("git_hub")]
    routing = build_routing(offers, Prefix())
    assert {} == routing.table.tools
    assert (NameConflict("tool", "git_hub_x", ("git",), "git_hub"),) == routing.conflicts


# Changes of a router.

A = Offer("a", tools=("x", "y", "z"), prompts=("p",), resources=("r://1",), templates=("t://{x}",))
B = Offer("b", tools=("w", "x"))


@pytest.mark.parametrize(
    ("now", "count"),
    [
        ([A, B], 0),
        ([attrs.evolve(A), attrs.evolve(B)], 0),
        ([attrs.evolve(A, tools=("z", "y", "x")), B], 0),
        ([attrs.evolve(A, tools=("x", "y", "new")), B], 2),
        ([attrs.evolve(A, prompts=(), resources=("r://1", "r://2"), templates=("u://{x}",)), B], 4),
        ([attrs.evolve(A, renamed={"x": "X"}), B], 3),
        ([A, B, Offer("c", tools=("x",), resources=("r://1",))], 2 + 1),  # and "x", which two claim already
        ([A], 2 + 1),
        ([B, A], 1),
    ],
)
def test_the_names_that_a_change_touches_are_counted(now: list[Offer], count: int) -> None:
    """Those that come, go or are called otherwise, and what is contested, if backends come, go or change places."""
    router = Router(Bare(), Bindings(), name_rule("models", None))
    router.update([A, B])
    assert count == router.count_changes(now)
    router.update(now)
    assert 0 == router.count_changes(now)


class Watched(tuple[str, ...]):
    """Names that count how often they are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        self.looks += 1
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        self.looks += 1
        return super().__eq__(other)

    __hash__ = tuple.__hash__


def test_an_unchanged_offer_is_not_looked_at() -> None:
    """When other backends come, change or go, whatever the number of its names."""
    names = tools, prompts, resources, templates = [Watched((f"{kind}://{{x}}",)) for kind in "tprs"]
    unchanged = Offer("a", tools, prompts, resources, templates)
    router = Router(Bare(), Bindings(), name_rule("models", None))
    router.update([unchanged, Offer("b", tools=("x",))])
    assert all(each.looks for each in names), "the test is about this"
    for each in names:
        each.looks = 0
    for others in ([Offer("b", tools=("y",))], [Offer("b", templates=("t://{y}",)), Offer("c")], []):
        router.update([unchanged, *others])
        assert Target("a", "s://{x}") == router.table.templates[0]
    assert [0] * 4 == [each.looks for each in names]


def test_what_is_read_is_put_together_in_steps() -> None:
    """The table and the conflicts: for each kind, the names of one backend at a time."""
    offers = [attrs.evolve(A, backend_id=f"b{number}") for number in range(20)]
    router = Router(Bare(), Bindings(), name_rule("models", None))
    router.update(offers)
    assert len(list(router.read_in_steps())) >= 2 * 3 * len(offers)


@pytest.mark.parametrize(
    ("lengths", "steps"), [([32] * 32, 0), ([32] * 31 + [33], 1), ([32] * (33 + 32), 1), ([32] * (33 + 33), 2)]
)
def test_templates_are_read_in_steps_of_two_kib(lengths: list[int], steps: int) -> None:
    """Each template counts 32 characters besides its own, since a short one costs time as well."""
    templates = tuple(f"{number:05}://{{x}}".ljust(length, "y") for number, length in enumerate(lengths))
    router = Router(Bare(), Bindings(), name_rule("models", None))
    assert 1 + steps == len(list(router.update_in_steps([Offer("a", templates=templates)])))  # one for their names
    assert len(templates) == len(router.table.templates)


# Names that do not fit.


def advertised(own: str, *, by: str = "files", **options: Any) -> str:
    """The name of the only tool of the only backend."""
    (name,) = build_routing([Offer(by, tools=(own,))], options.pop("strategy", Prefix()), **options).table.tools
    return name


@pytest.mark.parametrize(
    ("own", "options", "name"),
    [
        ("read-file_2", {}, "files_read-file_2"),
        ("x" * 58, {}, "files_" + "x" * 58),
        ("x" * 59, {}, "x" * 51 + "_"),
        ("x" * 40 + "." + "y" * 5, {}, "iles_" + "x" * 40 + "_yyyyy_"),
        ("read.v2", {}, "files_read_v2_"),
        ("read.v2", {"names_for": "mcp"}, "files_read.v2"),
        ("files/read v2", {"names_for": "mcp"}, "files_files_read_v2_"),
        ("x" * 122, {"names_for": "mcp"}, "files_" + "x" * 122),
        ("x" * 123, {"names_for": "mcp"}, "x" * 115 + "_"),
        (
            "search",
            {"by": "github.com-modelcontextprotocol-servers-src-github"},
            "elcontextprotocol-servers-src-github_search_",
        ),
        ("ta\tb", {"max_name_length": math.inf}, "files_ta_b_"),
        ("é", {"strategy": Manual({"naïve": ("files", "é")})}, "na_ve_"),
        ("read", {"max_name_length": 16}, "files_read"),
        ("read_files", {"max_name_length": 16}, "files_read_files"),
        ("read_filesx", {"max_name_length": 16}, "esx_"),
        ("read", {"max_name_length": 20, "by": "documents-of-all"}, "ll_read_"),
        ("", {"strategy": Bare()}, "_"),
    ],
)
def test_a_name_fits_models(own: str, options: dict[str, Any], name: str) -> None:
    """A name that fits stays. Another ends in a digest of the whole and keeps the tool's own name as long as there is
    room: it is cut at its beginning.
    """
    made = advertised(own, **options)
    allowed = "[A-Za-z0-9_.-]" if options.get("names_for") == "mcp" else "[A-Za-z0-9_-]"
    assert re.fullmatch(f"{allowed}+", made)
    assert len(made) <= options.get("max_name_length", 128 if options.get("names_for") == "mcp" else 64)
    assert made == name or re.fullmatch(f".*{re.escape(name)}[a-z2-7]{{12}}", made)
    assert made == advertised(own, **options)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["x" * 64, "read_file"],
        ["read_file", "x" * 65],
        ["read_file", ""],
        ["read.file", "read_file"],
        ["read_file", "\N{ARABIC-INDIC DIGIT ONE}"],
    ],
)
@pytest.mark.parametrize("names_for", ["models", "mcp"])
def test_names_that_fit_are_recognised_many_at_a_time(names: list[str], names_for: Any) -> None:
    """The quick look at many names says what a look at each of them says."""
    rule = name_rule(names_for, None)
    assert (names == list(map(rule.fit, names))) == rule.fit_all(names)


def test_a_shortened_name_is_equal_in_every_process() -> None:
    """Names that differ in the part cut off stay different."""
    names = ("read_the_whole_file", "read_the_whole_line")
    routing = build_routing([Offer("files", tools=names)], Prefix(), max_name_length=32)
    assert {"files_read_the_whole_file", "files_read_the_whole_line"} == set(routing.table.tools)
    routing = build_routing([Offer("files", tools=names)], Prefix(), max_name_length=24)
    assert ["_whole_file_pulpo3ulyzn7", "_whole_line_mg47gprcf4ip"] == list(routing.table.tools)


@pytest.mark.parametrize("strategy", [Prefix("{backend}"), Bare(), Priority("a")])
def test_a_name_made_to_look_shortened_is_an_ambiguity(strategy: ConflictResolution) -> None:
    """A tool that is listed under another tool's shortened name does not get it: within one backend neither does."""
    long = "a" * 40
    (shortened,) = build_routing([Offer("a", tools=(long,))], strategy, max_name_length=16).table.tools
    own = shortened.removeprefix("a") if isinstance(strategy, Prefix) else shortened
    for tools in [(long, own), (own, long)]:
        routing = build_routing([Offer("a", tools=tools)], strategy, max_name_length=16)
        assert ({}, {}) == (routing.table.tools, routing.bindings.tools)
        assert (NameConflict("tool", shortened, ("a",), None),) == routing.conflicts


def test_a_manual_name_equal_to_a_shortened_one_is_not_advertised() -> None:
    """If shortening makes two entries of Manual equal, neither is advertised: no order decides between them."""
    offers = [Offer("a", tools=("t",)), Offer("b", tools=("t",))]
    (shortened,) = build_routing(offers, Manual({"x" * 40: ("a", "t")}), max_name_length=16).table.tools
    manual = Manual({"x" * 40: ("a", "t"), shortened: ("b", "t")})
    routing = build_routing(offers, manual, max_name_length=16)
    assert ({}, Bindings()) == (routing.table.tools, routing.bindings)
    assert (NameConflict("tool", shortened, ("a", "b"), None),) == routing.conflicts


def test_any_text_can_be_shortened() -> None:
    """A name with a lone surrogate, which JSON allows, is shortened like any other."""
    (name,) = build_routing([Offer("a", tools=("\ud800" * 40,))], Bare(), max_name_length=16).table.tools
    assert 16 == len(name)


def test_no_limit_shortens_nothing() -> None:
    """With `max_name_length=math.inf` no name is shortened; one with other characters is changed all the same."""
    routing = build_routing([Offer("a", tools=("x" * 500,))], Bare(), max_name_length=math.inf)  # type: ignore[arg-type]
    assert ["x" * 500] == list(routing.table.tools)


# Properties.


@given(offer_lists(), resolutions(), st.integers(16, 40))
def test_every_name_means_one_thing_and_every_thing_has_one_name(
    offers: list[Offer], strategy: ConflictResolution, limit: int
) -> None:
    """Names are unique, within the limit, and reach what their backend offers; every missing one is a conflict."""
    routing = build_routing(offers, strategy, max_name_length=limit)
    for kind, plural in (("tool", "tools"), ("prompt", "prompts")):
        table: dict[str, Target] = getattr(routing.table, plural)
        offered = {Target(offer.backend_id, name) for offer in offers for name in getattr(offer, plural)}
        assert len(table) == len(set(table.values()))
        assert set(table.values()) <= offered
        assert all(len(name) <= limit for name in table)
        conflicts = {conflict.name: conflict for conflict in routing.conflicts if conflict.kind == kind}
        assert all(table[name].backend_id == c.owner for name, c in conflicts.items() if name in table)
        # Withheld although it belongs to a backend: to one that does not offer it, by its prefix.
        owned = {name: c for name, c in conflicts.items() if name not in table and c.owner is not None}
        assert all(isinstance(strategy, Prefix) and c.owner not in c.backend_ids for c in owned.values())
        assert not table.keys() & {name for name, conflict in conflicts.items() if conflict.owner is None}
        withheld = offered - set(table.values())
        if not isinstance(strategy, Manual):
            assert {target.backend_id for target in withheld} <= {i for c in conflicts.values() for i in c.backend_ids}
        assert {name: target.backend_id for name, target in table.items()} == getattr(routing.bindings, plural)


@given(offer_lists(), st.sampled_from([Prefix(), Prefix("{backend}")]))
def test_a_prefixed_name_does_not_depend_on_other_backends(offers: list[Offer], strategy: Prefix) -> None:
    """Whatever the other configured backends list, a tool has the same name or, if that is contested, none."""
    alone = {
        name: target
        for offer in offers
        for name, target in build_routing(
            [other if other is offer else Offer(other.backend_id) for other in offers], strategy, max_name_length=20
        ).table.tools.items()
    }
    together = build_routing(offers, strategy, max_name_length=20)
    assert together.table.tools.items() <= alone.items()
    contested = {conflict.name for conflict in together.conflicts if (conflict.kind, conflict.owner) == ("tool", None)}
    assert alone.keys() - contested == together.table.tools.keys()


@given(offer_lists(), resolutions())
def test_prefix_and_manual_do_not_even_depend_on_the_configured_order(
    offers: list[Offer], strategy: ConflictResolution
) -> None:
    """Prefix and Manual use no order; Bare and Priority give every name to the first backend in theirs."""
    one, two = build_routing(offers, strategy), build_routing(offers[::-1], strategy)
    if isinstance(strategy, Prefix | Manual):
        assert (one.table.tools, one.table.prompts, one.bindings) == (two.table.tools, two.table.prompts, two.bindings)
        return
    listed = strategy.backend_ids if isinstance(strategy, Priority) else ()
    ranked = sorted(offers, key=lambda offer: (*listed, offer.backend_id).index(offer.backend_id))
    rule = name_rule("models", None)
    claimed = [(offer.renamed.get(name, name), offer.backend_id) for offer in reversed(ranked) for name in offer.tools]
    expected = {rule.fit(name): backend_id for name, backend_id in claimed}
    assert expected == one.bindings.tools


@given(histories(max_size=5), resolutions())
def test_a_name_never_moves_to_another_backend(history: list[list[Offer]], strategy: ConflictResolution) -> None:
    """Backends join, fail, return and change their lists in any order, and a name reaches one backend throughout."""
    bindings = Bindings()
    reached: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for offers in history:
        routing = build_routing(offers, strategy, bindings=bindings, max_name_length=20)
        for kind in ("tools", "prompts"):
            assert getattr(bindings, kind).items() <= getattr(routing.bindings, kind).items()
            for name, target in getattr(routing.table, kind).items():
                reached[kind, name].add(target.backend_id)
                assert getattr(routing.bindings, kind)[name] == target.backend_id
        bindings = routing.bindings
    assert all(len(owners) == 1 for owners in reached.values())


@given(st.sets(st.sampled_from(OWN_NAMES) | st.text("aAb_\u0430\u00e9e\u0301", min_size=1, max_size=30), min_size=1))
def test_names_that_look_alike_are_different_names(names: set[str]) -> None:
    """Names that differ in case, homoglyphs or Unicode normalisation stay different names."""
    table = build_routing([Offer("a", tools=tuple(names))], Bare(), max_name_length=30).table
    assert {Target("a", name) for name in names} == set(table.tools.values())


@given(
    st.text(alphabet="aA0._-", min_size=1, max_size=64).map(lambda text: "a" + text[:63]),
    st.text(min_size=1, max_size=300) | st.text(alphabet="ab._-/ \t", min_size=1, max_size=80),
    st.sampled_from(["models", "mcp"]),
    st.none() | st.integers(16, 200),
)
def test_every_name_is_made_to_fit(backend_id: str, own: str, names_for: Any, limit: int | None) -> None:
    """For any id and name: of the right characters and length, unchanged if it was right, and legible if own is."""
    characters, most = ("A-Za-z0-9_-", 64) if names_for == "models" else ("A-Za-z0-9_.-", 128)
    most = most if limit is None else limit
    for strategy, whole in ((Prefix(), f"{backend_id}_{own}"), (Bare(), own), (Manual({"n" + own: ("a", own)}), None)):
        by = "a" if whole is None else backend_id
        name = advertised(own, by=by, strategy=strategy, names_for=names_for, max_name_length=limit)
        assert re.fullmatch(f"[{characters}]{{1,{most}}}", name)
        fits = whole is not None and re.fullmatch(f"[{characters}]{{1,{most}}}", whole)
        assert not fits or name == whole
        is_clean = whole is not None and re.fullmatch(f"[{characters}]{{1,{most - 13}}}", own)
        assert not is_clean or own in name


# Looking things up.


def test_a_listed_uri_goes_before_templates_and_the_first_template_that_matches_wins() -> None:
    """Templates are tried in configured order; a malformed one matches nothing and does not affect the others."""
    offers = [
        Offer("a", templates=("doc://{id", "doc://{id}")),
        Offer("b", resources=("doc://listed",), templates=("doc://{+path}",)),
    ]
    table = build_routing(offers, Prefix()).table
    assert (Target("a", "doc://{id}"), Target("b", "doc://{+path}")) == table.templates
    assert Target("b", "doc://listed") == table.find_resource("doc://listed")
    assert Target("a", "doc://other") == table.find_resource("doc://other")
    assert Target("b", "doc://x/y") == table.find_resource("doc://x/y")
    assert table.find_resource("file:///x/y") is None


OWNERS = [  # templates of backends in configured order, the URI, and which backend has it
    (["{+anything}", "db://{table}/{row}"], "db://users/7", 1),
    (["{+anything}", "db://{table}/{row}"], "x", 0),
    (["{a}{+b}", "db://{table}"], "db://users", 1),
    (["db://{table}", "db://users"], "db://users", 1),
    (["db://{table}/{row}", "db://users/{row}"], "db://users/7", 1),
    (["db://users/{row}", "db://{table}/{row}"], "db://users/7", 0),
    (["db://{x}", "db://{y}"], "db://users", 0),  # ties: configured order
    (["db://{+x}", "db://{y}"], "db://users", 0),
    (["{scheme}://{+rest}", "file:///{path}"], "file:///a/b", 0),  # by RFC 6570 first: `{path}` has no `/`
    (["{x}", "file:///{path}"], "file:///a/b", 1),  # with `{var}` across `/` the most literal characters win, too
    (["file://{path}", "file:///{path}"], "file:///a/b", 1),
    (["x://{/a}", "x://{.a}", "x://{?a}"], "x:///b/c", None),  # `{var}` alone is taken across `/`
    (["file:///{path}"], "file:///a/b", 0),
    (["file:///{path}"], "file:///a/b?c", None),
    (["file:///{path}"], "file:///a/b#c", None),
    (["file:///{path:3}"], "file:///a/b", 0),
    (["file:///{path:3}"], "file:///a/bc", None),
    (["file:///{a}/x/{b}"], "file:///1/2/x/3/4", 0),
]


@pytest.mark.parametrize(("templates", "uri", "owner"), OWNERS)
def test_the_most_literal_characters_have_a_uri(templates: list[str], uri: str, owner: int | None) -> None:
    """By RFC 6570 first, and where nothing matches so, with `{var}` across `/`. It does not matter which templates are
    of the same backend, nor whether the table was made by hand or was pickled.
    """
    names = [f"b{index}" for index in range(len(templates))]
    table = build_routing([Offer(i, templates=(t,)) for i, t in zip(names, templates, strict=True)], Prefix()).table
    expected = None if owner is None else Target(names[owner], uri)
    assert expected == table.find_resource(uri)
    assert expected == RoutingTable(templates=table.templates).find_resource(uri)
    assert expected == pickle.loads(pickle.dumps(table)).find_resource(uri)
    one = build_routing([Offer("other", templates=("{",)), Offer("all", templates=tuple(templates))], Prefix()).table
    assert (None if owner is None else Target("all", uri)) == one.find_resource(uri)


def test_a_backend_without_templates_costs_a_search_nothing() -> None:
    """However many there are beside the backend whose template matches."""

    def calls_to_find(offers: list[Offer]) -> int:
        """How many functions a search enters."""
        router = Router(Prefix(), Bindings(), name_rule("models", None))
        router.update(offers)
        assert Target("a", "x://1") == router.find_resource("x://1")
        entered: list[str] = []
        sys.setprofile(lambda frame, event, _: entered.append(event))
        try:
            router.find_resource("x://1")
        finally:
            sys.setprofile(None)
        return len(entered)

    owner = Offer("a", templates=("x://{id}",))
    malformed = [Offer(f"b{number}", tools=("t",), templates=("{",)) for number in range(50)]
    assert calls_to_find([owner]) == calls_to_find([*malformed, owner])


def test_equal_templates_are_a_conflict() -> None:
    """The first backend in configured order has them; equal means character by character."""
    offers = [Offer("a", templates=("x://{id}",)), Offer("b", templates=("x://{id}", "x://{key}"))]
    routing = build_routing(offers, Prefix())
    assert (NameConflict("resource", "x://{id}", ("a", "b"), "a"),) == routing.conflicts
    assert Target("a", "x://1") == routing.table.find_resource("x://1")


def test_a_table_made_by_hand_matches_its_templates() -> None:
    """A RoutingTable that is built directly compiles its templates itself."""
    assert Target("a", "x://1") == RoutingTable(templates=(Target("a", "x://{id}"),)).find_resource("x://1")
    with pytest.raises(ValueError, match="stray brace"):
        RoutingTable(templates=(Target("a", "{"),))


@pytest.mark.parametrize(
    ("wanted", "closest"),
    [
        ("time_nwo", ("time_now", "time_in_zone")),
        ("now", ("time_now",)),  # without the prefix
        ("zzz", ()),
        ("", ()),
        ("web_ftech", ("web_fetch",)),
    ],
)
def test_a_misspelt_name_is_told_the_closest_one(wanted: str, closest: tuple[str, ...]) -> None:
    """The error for an unknown name names the most similar advertised ones."""
    table = build_routing([Offer("time", tools=("now", "in_zone")), Offer("web", tools=("fetch",))], Prefix()).table
    assert closest == table.closest("tools", wanted)
    assert () == table.closest("prompts", wanted)


def test_looking_for_close_names_is_cheap_whatever_the_names() -> None:
    """A search among anagrams for a very long name costs less than difflib takes to rate 60 of them."""
    names = ["".join("ab"[index >> bit & 1] for bit in range(16)) * 4 + str(index) for index in range(12_000)]
    table = RoutingTable(tools=dict.fromkeys(names, Target("a", "x")))
    unknown = "abba" * 50_000
    unit = _cpu_time(lambda: [SequenceMatcher(None, name[:64], unknown[:64]).ratio() for name in names[-60:]], runs=1)
    assert _cpu_time(lambda: table.closest("tools", unknown), runs=2) < unit


def _cpu_time(work: Callable[[], object], *, runs: int = 3) -> float:
    """The CPU time of the fastest run, s."""
    times: list[float] = []
    for _ in range(runs):
        with untraced():
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    return min(times)


# What users write.


@pytest.mark.parametrize(
    "text", ["", "x_", "{Backend}_", "{backend}{backend}", "{backend}_{name}", "{backend}}", "{{backend}"]
)
def test_a_prefix_without_its_backend_is_refused(text: str) -> None:
    """The error of Prefix shows the format."""
    with pytest.raises(ValueError, match="Prefix format") as caught:
        Prefix(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("ids", [("a", "a"), ("",), (["a", "b"],), (7,)])
def test_a_priority_of_something_else_is_refused(ids: tuple[Any, ...]) -> None:
    """A list in place of ids, and an id that is listed twice, are ValueErrors that show it."""
    with pytest.raises(ValueError, match="Priority lists") as caught:
        Priority(*ids)
    assert repr(ids[-1]) in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        ("", ("a", "b")),
        (7, ("a", "b")),
        ("x", "ab"),
        ("x", ["a", "b"]),
        ("x", ("a",)),
        ("x", ("a", "")),
        ("x", (1, "b")),
    ],
)
def test_a_manual_entry_of_another_form_is_refused(entry: tuple[Any, Any]) -> None:
    """The error of Manual shows the entry."""
    with pytest.raises(ValueError, match="Manual entry") as caught:
        Manual(dict([entry]))
    assert f"{entry[0]!r}: {entry[1]!r}" in str(caught.value)


def test_two_names_for_one_thing_are_refused() -> None:
    """Two names for one capability are a ValueError: a capability is advertised once."""
    with pytest.raises(ValueError, match="'x' and 'y' both name"):
        Manual({"x": ("a", "b"), "y": ("a", "b")})


def test_strategies_and_results_cannot_change() -> None:
    """Arguments are copied, and all fields are read-only."""
    names = {"x": ("a", "b")}
    manual = Manual(names)
    names["y"] = ("a", "c")
    assert Manual({"x": ("a", "b")}) == manual
    assert (Priority("a", "b"), "Priority(backend_ids=('a', 'b'))") == (Priority("a", "b"), repr(Priority("a", "b")))
    assert hash(Priority("a")) == hash(Priority("a"))
    routing = build_routing([TIME], Prefix())
    for mapping in (manual.names, routing.table.tools, routing.table.resources, routing.bindings.prompts):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["new"] = None  # type: ignore[index]


def test_a_table_that_was_built_reads_as_a_mapping() -> None:
    """What a table tells of a name is the same in every way to ask, names of contested places included."""
    offers = [Offer("a", tools=("x", "y")), Offer("b", tools=("x", "z"))]
    tools = build_routing(offers, Priority("b")).table.tools
    expected = {"x": Target("b", "x"), "y": Target("a", "y"), "z": Target("b", "z")}
    assert list(expected) == list(tools)
    assert 3 == len(tools)
    assert expected == dict(tools.items()) == {name: tools[name] for name in tools}
    assert tools == expected
    assert expected == tools
    assert repr(expected) == repr(tools)
    assert tools.get("w") is None
    with pytest.raises(KeyError):
        tools["w"]


@pytest.mark.parametrize("odd", ["of two words", "renamed", "tool_0 again"])
def test_one_odd_name_among_many_costs_itself(odd: str) -> None:
    """Names are composed many at a time; the last of very many, that does not fit or that composes as another one does,
    gets what it gets alone, and the others keep theirs.
    """
    plain = [f"tool_{index}" for index in range(2 * SIMPLE_AT_ONCE)]
    renamed = {"renamed": "given", "tool_0 again": "tool_0"}
    tools = build_routing([Offer("a", tools=(*plain, odd), renamed=renamed)], Prefix()).table.tools
    others = {f"a_{name}": Target("a", name) for name in plain}
    odd_ones = [name for name, target in tools.items() if target == Target("a", odd)]
    assert others == {name: target for name, target in tools.items() if name not in odd_ones}
    assert {"renamed": ["a_given"], "tool_0 again": []}.get(
        odd, [name_rule("models", None).fit(f"a_{odd}")]
    ) == odd_ones


def test_the_time_to_route_a_backend_does_not_grow_with_their_number() -> None:
    """Of many small backends, each is looked at for itself, and not beside all names of those before it."""

    def time_for_all(backends: int) -> float:
        """Of 1000 backends, so many at a time: both take about as long, so that other load slows down both."""
        offers = [Offer(f"backend{i}", tools=tuple(f"tool_{j}" for j in range(10))) for i in range(backends)]
        return _cpu_time(lambda: [build_routing(offers, Prefix()) for _ in range(1000 // backends)])

    assert time_for_all(1000) < 2.5 * time_for_all(50)  # about the same; 6 times, if it is the square


def test_ten_backends_with_a_thousand_tools_each_are_routed_at_once() -> None:
    """An opening routes all names in one step of the loop, which must be short."""
    offers = [Offer(f"backend{i}", tools=tuple(f"tool_{j}" for j in range(1000))) for i in range(10)]
    assert 10_000 == len(build_routing(offers, Prefix()).table.tools)
    assert (
        _cpu_time(lambda: build_routing(offers, Prefix())) < 0.2
    )  # about 0.012 s; a quadratic algorithm takes minutes


LONG = MAX_URI_LENGTH - 1
PAIRS = "{?" + ",".join(f"{chr(97 + n % 26)}{n}" for n in range(50)) + "}"
COSTLY = {  # a template of the longest kind, and what the URI repeats
    "pairs": ("{+a}" + PAIRS + "~Q{z}", "x"),
    "anything": ("{+a}" * 60 + "!{b:1}", "a!a"),
    "values": ("{a}" * 60 + "~{+b}Q", "a"),
    "literals": ("{+a}a" * 60 + "!{b:1}", "a"),
    "prefixes": ("{a:9999}" * 60 + "!{b}", "a"),
    "long literal": ("{+x}" + "a" * 2000 + "{y}!{x:1}", "a"),
    "long name": ("{+x}{?" + "a" * 2000 + "}~Q{y}", "a"),
    "across": ("{+x}" + "{a}/" * 30 + "~Q{y}", "a/"),
    "another head": ("aaaa{x}", "?"),
    "another end": ("{x}aaaa", "?"),
}


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("name", COSTLY)
def test_all_templates_of_a_session_share_one_bound(name: str, count: int) -> None:
    """However many backends list costly templates: one search holds up the loop for less than 50 ms, and the template
    of a backend among them is found, though theirs have more literal characters and are tried first.
    """
    template, unit = COSTLY[name]
    uri = "y" + (unit * LONG)[: LONG - 1] + "~"
    hostile = group("hostile", *[template] * (64 * KIB // len(template)))
    owner = group("owner", "y{+rest}")
    groups = [*[hostile] * (count // 2), owner, *[hostile] * (count - count // 2)]
    assert "owner" == find_backend(groups, uri)
    assert None is find_backend([*[hostile] * count], uri)
    assert _cpu_time(lambda: find_backend([hostile] * count, uri)) < 0.05  # takes 0.02 s


def test_what_one_backend_leaves_of_the_bound_is_for_the_others() -> None:
    """A backend with thousands of templates needs more than its share, and gets what a hundred others do not use."""
    many = [f"x://{'{a}'}/{number}/{'{b}'}" for number in range(1500)]
    groups = [*(group(f"b{i}", "y://{id}") for i in range(100)), group("many", *many)]
    assert "many" == find_backend(groups, "x://1/1499/2")


def test_all_templates_of_a_backend_share_one_limit_of_bytes() -> None:
    """A backend with 2000 costly templates keeps 64 KiB of them, so matching a URI is bounded; other backends'
    templates match.
    """
    costly = tuple("{?" + ",".join(f"v{n}_{m}" for m in range(64)) + "}" for n in range(2000))
    table = build_routing(
        [Offer("hostile", templates=costly), Offer("good", templates=("note:///{x}",))], Prefix()
    ).table
    assert sum(len(target.name) for target in table.templates if target.backend_id == "hostile") <= 64 * KIB
    found = table.find_resource("note:///1")
    assert found is not None
    assert "good" == found.backend_id
    even = tuple(f"{number:05}://{{x}}".ljust(64, "y") for number in range(KIB + 1))
    table = build_routing([Offer("a", templates=even)], Prefix()).table
    assert even[:KIB] == tuple(target.name for target in table.templates)
