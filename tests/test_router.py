"""A router while backends come, go and list other names: what a change costs, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

import pytest

from trio_vmcp._routing import names
from trio_vmcp._routing.name_rule import name_rule
from trio_vmcp._routing.names import KnownClaims
from trio_vmcp._steps import take_steps
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

PREFIX, UNBOUND = Prefix(), Bindings()
LIMIT = 32
FORGED = "y" * LIMIT + "git_" + "z" * 15  # cut so that "git_" stands at the beginning


def router_of(
    *offers: Offer,
    strategy: ConflictResolution = PREFIX,
    bound: Bindings = UNBOUND,
    known: KnownClaims | None = None,
) -> Router:
    router = Router(strategy, bound, name_rule("models", LIMIT), known)
    router.update(offers)
    return router


def table_of(*offers: Offer) -> RoutingTable:
    """The table of a router that knows nothing else."""
    return build_routing(offers, PREFIX, max_name_length=LIMIT).table


# Steps


class Seen(str):
    """A name that notes when it is looked up."""

    __slots__ = ()
    looked_up: ClassVar[set[str]] = set()

    def __hash__(self) -> int:
        Seen.looked_up.add(str(self))
        return super().__hash__()


def numbers_in_steps(steps: Iterator[None]) -> list[int]:
    """How many names are looked up in each step."""
    found: list[int] = []
    Seen.looked_up.clear()
    for _ in steps:
        found.append(len(Seen.looked_up))
        Seen.looked_up.clear()
    return [*found, len(Seen.looked_up)]


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "AT_ONCE", 2)
    monkeypatch.setattr(names, "SIMPLE_AT_ONCE", 2)


MANY = 20
OLD, NEW = ([Seen(f"{mark}{number}") for number in range(MANY)] for mark in ("old", "new"))
MANUAL = Manual({name: ("a", name.upper()) for name in (*OLD, *NEW)})


def listing(tools: Sequence[str]) -> Offer:
    """One more than is advertised, so that each name needs a look of its own."""
    return Offer("a", tools=("another", *(name.upper() for name in tools)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((listing(OLD),), (listing(NEW),)),
        ((listing(OLD),), ()),
        ((listing(OLD),), (Offer("a"),)),
    ],
    ids=["other names", "removed", "no names"],
)
def test_each_step_of_a_change_takes_some_names(
    before: tuple[Offer, ...], after: tuple[Offer, ...], two_at_once: None
) -> None:
    """Whatever is done with a name: composing it, comparing it, adding or withdrawing it, and deciding about it."""
    router = router_of(*before, strategy=MANUAL)
    numbers = numbers_in_steps(router.update_in_steps(after))
    assert max(numbers) <= 2
    assert sum(numbers) >= MANY


def test_each_step_of_adopting_names_takes_some(two_at_once: None) -> None:
    """Those that are bound elsewhere are bound here, too, and then decided about."""
    router = router_of(Offer("a"), strategy=MANUAL)
    numbers = numbers_in_steps(router.adopt_in_steps(Bindings(dict.fromkeys(OLD, "b"))))
    assert 2 == max(numbers)
    assert dict.fromkeys(OLD, "b") == router.bindings.tools


def test_names_are_released_in_steps(two_at_once: None) -> None:
    """All that are bound are looked through, for those of one backend."""
    router = router_of(bound=Bindings({str(number): "b" for number in range(MANY)} | {"x": "a"}))
    assert MANY // 2 <= len(list(router.update_in_steps([], released=["a"])))
    assert set("b") == set(router.bindings.tools.values())


def test_plain_names_take_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are advertised as they are composed take far less time each than others, so one step is for more."""
    monkeypatch.setattr(names, "AT_ONCE", 1)
    monkeypatch.setattr(names, "SIMPLE_AT_ONCE", MANY)
    steps = router_of().update_in_steps([Offer("a", tools=tuple(f"t{number}" for number in range(3 * MANY)))])
    assert 3 == len(list(steps))


# What a change costs


def test_a_contest_that_is_not_touched_is_not_decided_again() -> None:
    """One of its backends lists a tool more: all else that is known of the others is the very same object."""
    one, two = Offer("a", tools=("x", "y")), Offer("b", tools=("x", "y"))
    router = router_of(one, two, strategy=Bare())
    before = router.conflicts
    router.update([one, Offer("b", tools=("x", "y", "z"))])
    assert 2 == len(before)
    assert all(old is now for old, now in zip(before, router.conflicts, strict=True))


def test_a_segment_stays_until_its_names_change() -> None:
    """Also where names are contested: the same object, and another one as soon as a backend before it lists a name."""
    offers = [Offer("a", tools=("v",)), Offer("b", tools=("x", "y")), Offer("c", tools=("x", "z"))]
    router = router_of(*offers, strategy=Priority("c"))
    before = list(router.segments("tools"))
    assert [{"v": "v"}, {"x": "x", "y": "y"}, {"z": "z"}] == [segment.own for segment in before]
    assert [{}, {"x": "c"}, {}] == [segment.elsewhere for segment in before]
    router.update([Offer("a", tools=("v", "w")), *offers[1:]])
    after = list(router.segments("tools"))
    assert [False, True, True] == [old is now for old, now in zip(before, after, strict=True)]
    router.update([Offer("a", tools=("v", "x")), *offers[1:]])
    assert [{"v": "v", "x": "x"}, {"y": "y"}, {"z": "z"}] == [segment.own for segment in router.segments("tools")]


async def test_a_copy_that_changes_leaves_the_segments_of_the_original() -> None:
    """Callers read the original until a change that is made in steps has ended."""
    offers = [Offer("a", tools=("v",)), Offer("b", tools=("x", "y")), Offer("c", tools=("x", "z"))]
    router = router_of(*offers, strategy=Priority("c"))
    before = list(router.segments("tools"))
    twin = await take_steps(router.copy_in_steps())
    twin.update([Offer("a", tools=("v", "x")), *offers[1:]])
    assert [["v", "x"], ["y"], ["z"]] == [list(segment.own) for segment in twin.segments("tools")]
    assert before == list(router.segments("tools"))


# What several sessions hold once


def known_claims() -> KnownClaims:
    return WeakValueDictionary()


def test_routers_hold_the_names_of_a_backend_once() -> None:
    """Whatever other backends there are, if these have no part in the names."""
    known, offer = known_claims(), Offer("a", tools=("x", "y"))
    one = router_of(offer, known=known)
    two = router_of(Offer("b", tools=("x",)), offer, known=known)
    assert next(one.segments("tools")) is list(two.segments("tools"))[1]


@pytest.mark.parametrize(
    ("offer", "other"),
    [
        (Offer("git", tools=("hub_x",)), Offer("git_hub")),  # inside the prefix of the other
        (Offer("a", tools=(FORGED,)), Offer("git")),  # cut to what begins as the names of the other
    ],
)
@pytest.mark.parametrize("is_first_alone", [True, False])
def test_names_that_other_backends_have_a_part_in_are_not_shared(
    offer: Offer, other: Offer, is_first_alone: bool
) -> None:
    """Beside the other backend the name is withheld or changed, and alone it is not, whichever session came first."""
    known = known_claims()
    orders = [(offer,), (offer, other)]
    routers = [router_of(*offers, known=known) for offers in (orders if is_first_alone else orders[::-1])]
    alone, beside = routers if is_first_alone else routers[::-1]
    assert table_of(offer) == alone.table
    assert table_of(offer, other) == beside.table
    assert alone.table != beside.table


# What is bound


def test_an_adopted_name_is_routed_after_any_update() -> None:
    """It was withheld, since it belongs to another backend by its prefix; elsewhere it was bound before that came."""
    offers = [Offer("git", tools=("hub_x",)), Offer("git_hub")]
    router = router_of(*offers)
    assert {} == router.table.tools
    assert 1 == len(router.conflicts)
    for _ in router.adopt_in_steps(Bindings({"git_hub_x": "git"})):
        pass
    router.update(offers)
    assert {"git_hub_x": Target("git", "hub_x")} == router.table.tools
    assert not router.conflicts


def test_all_names_that_are_bound_to_a_backend_count_until_they_are_released() -> None:
    """In bytes, those of tools and prompts that came at once or one by one; and then anew."""
    offer, bound = Offer("a", tools=("x", "yy"), prompts=("zzz",)), Bindings({"\N{EURO SIGN}": "a"})
    router = router_of(offer, bound=bound)
    assert 3 + 3 + 4 + 5 == router.bound_bytes("a")
    router.update([])
    assert 3 + 3 + 4 + 5 == router.bound_bytes("a")
    router.update([], released=["a"])
    assert 0 == router.bound_bytes("a")
    router.update([offer])
    assert 3 + 4 + 5 == router.bound_bytes("a")


# Several tools of one backend, and one name


def test_a_tool_that_is_called_as_another_one_was_made_to_fit() -> None:
    """It comes later: the first loses the name, which is neither's then."""
    (fitted,) = table_of(Offer("a", tools=("x.y",))).tools
    later = Offer("a", tools=("x.y", fitted.removeprefix("a_")))
    router = router_of(Offer("a", tools=("x.y",)))
    router.update([later])
    assert {} == router.table.tools
    assert router.find("tools", fitted) is None
    assert [(("a",), None)] == [(conflict.backend_ids, conflict.owner) for conflict in router.conflicts]
    router.update([Offer("a", tools=("x.y",))])
    assert {fitted: Target("a", "x.y")} == router.table.tools


def test_a_given_name_that_is_cut_can_be_given_as_it_is_cut() -> None:
    """The whole name lay inside the prefix of another backend, and what it was cut to does not."""
    whole = "hub_" + FORGED
    other, tools = Offer("git_hub"), ("x",)
    router = router_of(Offer("git", tools=tools, renamed={"x": whole}), other)
    (conflict,) = router.conflicts
    assert {} == router.table.tools
    given = Offer("git", tools=tools, renamed={"x": conflict.name.removeprefix("git_")})
    router.update([given, other])
    assert {conflict.name: Target("git", "x")} == router.table.tools == table_of(given, other).tools
    router = router_of(given, other)
    router.update([Offer("git", tools=tools, renamed={"x": whole}), other])
    assert {conflict.name: Target("git", "x")} == router.table.tools, "bound to it by now"
