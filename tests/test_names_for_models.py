"""Names that models are given: real ones stay as they are, and any others fit, for every strategy."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_vmcp.routing import (
    Bare,
    ConflictResolution,
    Manual,
    NamesFor,
    Offer,
    Prefix,
    Priority,
    Routing,
    build_routing,
)

REAL_TOOLS = Path(__file__).parent / "support" / "real_tools.txt"
# What the APIs of OpenAI, Anthropic and Gemini take in common, and MCP 2025-11-25, tools, "Tool Names".
SHAPES: dict[NamesFor, re.Pattern[str]] = {
    "models": re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII),
    "mcp": re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII),
}


def real_tools() -> dict[str, tuple[str, ...]]:
    """By the id of their server."""
    text = re.sub(r"\n +", " ", REAL_TOOLS.read_text())
    lines = (line.partition(": ") for line in text.splitlines() if not line.startswith("#"))
    return {backend_id: tuple(tools.split()) for backend_id, _, tools in lines}


@pytest.mark.parametrize("names_for", ["models", "mcp"])
def test_the_names_of_real_servers_stay(names_for: NamesFor) -> None:
    """All servers in one session: each tool is `{id}_{tool}`, and none is withheld."""
    tools = real_tools()
    assert len(tools) >= 18
    assert sum(map(len, tools.values())) >= 700
    offers = [Offer(backend_id, tools=names) for backend_id, names in tools.items()]
    routing = build_routing(offers, Prefix(), names_for=names_for)
    assert {f"{backend_id}_{name}" for backend_id, names in tools.items() for name in names} == set(routing.table.tools)
    assert all(name == f"{to.backend_id}_{to.name}" for name, to in routing.table.tools.items())
    assert () == routing.conflicts


@pytest.mark.parametrize("backend_id", list(real_tools()))
def test_the_names_of_a_real_server_stay_without_a_prefix(backend_id: str) -> None:
    """As they are."""
    names = real_tools()[backend_id]
    assert list(names) == list(build_routing([Offer(backend_id, tools=names)], Bare()).table.tools)


# Any names


@attrs.frozen
class World:
    """Backends, and a way to name what they list."""

    offers: tuple[Offer, ...]
    strategy: ConflictResolution
    names_for: NamesFor

    def route(self, offers: tuple[Offer, ...] | None = None) -> Routing:
        return build_routing(self.offers if offers is None else offers, self.strategy, names_for=self.names_for)

    def composed(self, backend_id: str, own: str) -> str | None:
        """The name before it is made to fit."""
        match self.strategy:
            case Prefix(format=form):
                return form.replace("{backend}", backend_id) + own
            case Manual():
                return self.strategy.advertised_name(backend_id, own)
            case _:
                return own


IDS = st.lists(
    st.sampled_from(["a", "a_", "a_b", "a.b", "a-b", "A", "a.b.c", "x" * 64, "x" * 50, "x" * 49 + "_"])
    | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True),
    min_size=1,
    max_size=3,
    unique=True,
)
# Whatever JSON can hold, half of a surrogate pair included, and what looks like the rest of another name.
OWN = (
    st.text(max_size=90, min_size=1)
    | st.text(st.sampled_from("ab_.-/ é\N{CYRILLIC SMALL LETTER A}\u0301\ud800\0"), min_size=1, max_size=140)
    | st.sampled_from(["b", "_b", "b_c", "b.c", "b_b.c", "x" * 62, "x" * 63, "x" * 126, "x" * 127, "é" * 64, "__", "."])
)


STRATEGIES: tuple[ConflictResolution, ...] = (
    Prefix(),
    Prefix("{backend}"),
    Prefix("{backend}."),
    Prefix("é{backend}/"),
    Bare(),
)


def _offers(ids: list[str], listed: list[list[str]]) -> tuple[Offer, ...]:
    return tuple(Offer(backend_id, tools=tuple(names)) for backend_id, names in zip(ids, listed, strict=True))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Backends whose tools are called what those of others were made to fit, too."""
    names_for: NamesFor = draw(st.sampled_from(["models", "mcp"]))
    ids = draw(IDS)
    strategy = draw(st.sampled_from((*STRATEGIES, Priority(ids[-1]))))
    listed = [draw(st.lists(OWN, max_size=5, unique=True)) for _ in ids]
    plain = World(_offers(ids, listed), strategy, names_for)
    fitted = [name for name in plain.route().table.tools if name not in listed[0]]
    copied = draw(st.lists(st.sampled_from(fitted), max_size=2, unique=True)) if fitted else []
    prefix = strategy.format.replace("{backend}", ids[0]) if isinstance(strategy, Prefix) else ""
    more = [name.removeprefix(prefix) for name in copied]
    listed[0] = list(dict.fromkeys(name for name in (*listed[0], *more) if name))
    offers = _offers(ids, listed)
    if draw(st.integers(0, 5)) == 0:
        targets = [(offer.backend_id, own) for offer in offers for own in offer.tools]
        given_names = draw(st.lists(OWN, min_size=len(targets), max_size=len(targets), unique=True))
        strategy = Manual(dict(zip(given_names, targets, strict=True)))
    return World(offers, strategy, names_for)


@settings(max_examples=25)
@given(worlds())
@example(World((Offer("a", tools=("b.c", "b_c")), Offer("a.b", tools=("c",))), Prefix(), "models"))
@example(World((Offer("a", tools=("x" * 80, "y" + "x" * 79)),), Bare(), "models"))
def test_any_names_fit_and_mean_one_thing(world: World) -> None:
    """Every name fits its readers and stands for one tool; a name that fits already stays; every tool that has no name
    is in a conflict. In another order of the lists each tool has the same name, or none.
    """
    routing = world.route()
    shown = {(to.backend_id, to.name): name for name, to in routing.table.tools.items()}
    assert len(shown) == len(routing.table.tools)
    conflicts = {conflict.name for conflict in routing.conflicts}
    for offer in world.offers:
        for own in offer.tools:
            composed, name = world.composed(offer.backend_id, own), shown.get((offer.backend_id, own))
            if composed is None:
                assert name is None
            elif SHAPES[world.names_for].fullmatch(composed):
                assert composed == name or composed in conflicts
            elif name is None:
                assert any(offer.backend_id in conflict.backend_ids for conflict in routing.conflicts)
            else:
                assert composed != name
    assert all(SHAPES[world.names_for].fullmatch(name) for name in routing.table.tools)
    turned = tuple(attrs.evolve(offer, tools=offer.tools[::-1]) for offer in world.offers)
    assert routing.table.tools == world.route(turned).table.tools


@settings(max_examples=50)
@given(IDS, OWN, st.sampled_from(["models", "mcp"]))
@example(["x" * 64], "search", "models")
def test_the_own_name_survives_the_longest(ids: list[str], own: str, names_for: NamesFor) -> None:
    """A name that is changed ends in a digest. Before that stands the tool's own name, as far as there is room: more
    than half of what a name may have.
    """
    backend_id = ids[0]
    (name,) = build_routing([Offer(backend_id, tools=(own,))], Prefix(), names_for=names_for).table.tools
    if name != f"{backend_id}_{own}":
        foreign = "[^A-Za-z0-9_-]" if names_for == "models" else "[^A-Za-z0-9_.-]"
        kept = re.sub(foreign, "_", own)[-(64 if names_for == "mcp" else 32) :]
        assert re.fullmatch(f".*{re.escape(kept)}_[a-z2-7]{{12}}", name)
        others = build_routing([Offer(backend_id, tools=("other", own))], Prefix(), names_for=names_for).table.tools
        assert own == others[name].name


@settings(max_examples=25)
@given(
    st.lists(st.text("ab_.-/ é", min_size=1, max_size=9), min_size=2, max_size=9, unique=True),
    st.text("x", max_size=70),
)
@example(["b.c", "b c", "b/c", "b_c"], "")
def test_different_names_stay_different(names: list[str], beginning: str) -> None:
    """However alike they become in the characters that are allowed, and where they are cut."""
    tools = tuple(beginning + name for name in names)
    routing = build_routing([Offer("a", tools=tools)], Prefix())
    assert set(tools) == {to.name for to in routing.table.tools.values()}
    assert () == routing.conflicts
