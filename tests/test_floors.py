"""Imports between the parts of `trio_vmcp` go down its floors, never up, and never in a circle."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

# From the ground up. A module or package may import from lower floors, and not from its own floor. A part that is not
# in this table fails the test: add it to its floor.
FLOORS = (
    ("_header_rules", "_read_only", "_tool_patterns"),
    ("models",),
    ("errors", "observe"),
    ("_protocol", "identity", "metadata", "_interrupts", "_light_event", "_nursery", "_request_note", "_steps"),
    ("_principal", "_routing", "storage"),
    ("routing",),
    ("settings", "_http"),
    ("_limits",),
    ("connector",),
    ("_known_results",),
    ("_client", "session", "auth"),
    ("_session",),
    ("default_session",),
    ("factory",),
    ("_manager",),
    ("manager",),
    ("default_manager",),
    ("observers",),
    ("testing", "_exports", "serve"),
    ("_cli",),
    ("cli", "__init__"),
    ("__main__",),
)
# Parts without I/O and without Trio, which can be tested without an event loop.
PURE = (
    "_header_rules",
    "_limits",
    "_principal",
    "_read_only",
    "_tool_patterns",
    "errors",
    "models",
    "observe",
    "identity",
    "metadata",
    "routing",
    "_routing",
    "_protocol",
)
IO = ("trio", "httpx", "socket", "ssl", "subprocess", "asyncio", "anyio")


def home() -> Path:
    spec = find_spec("trio_vmcp")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules() -> dict[str, Path]:
    """Dotted names below `trio_vmcp`, "__init__" for the package itself."""
    package = home()
    names = {path: path.relative_to(package).with_suffix("").parts for path in package.rglob("*.py")}
    return {
        ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts): path
        for path, parts in names.items()
    }


@cache  # each file is parsed once for all tests
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in the file; names of functions are cut off by `known`."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
    return tuple(found)


def own_imports(name: str, known: dict[str, Path]) -> set[str]:
    """The modules of the package that one of them imports."""
    found = set()
    for imported in imports(known[name]):
        if imported.split(".")[0] == "trio_vmcp":
            parts = imported.split(".")[1:]
            while parts and ".".join(parts) not in known:
                parts.pop()
            found.add(".".join(parts) or "__init__")
    return found - {name}


def part_of(name: str) -> str:
    return name.split(".")[0]


def floor_of(part: str) -> int:
    return next((floor for floor, parts in enumerate(FLOORS) if part in parts), -1)


@pytest.mark.parametrize("part", sorted({part_of(name) for name in modules()}))
def test_a_part_imports_from_lower_floors_alone(part: str) -> None:
    """A part that imports from a higher floor would depend on the code that is built on it."""
    assert floor_of(part) >= 0, f"{part} has no floor"
    known = modules()
    upward = {
        f"{name} imports {imported}"
        for name in known
        for imported in own_imports(name, known)
        if part_of(name) == part != part_of(imported) and floor_of(part_of(imported)) >= floor_of(part)
    }
    assert set() == upward


def test_no_module_is_in_a_circle_of_imports() -> None:
    """There is no circle, not inside a part and not behind `TYPE_CHECKING` either."""
    known = modules()
    # A package's __init__ collects the names of its own modules; its imports from them do not count as a circle.
    graph = {
        name: {imported for imported in own_imports(name, known) if not name.startswith(f"{imported}.")}
        for name in known
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("part", PURE)
def test_what_decides_without_io_imports_none(part: str) -> None:
    """Modules of decisions import no module that waits, connects or starts processes."""
    found = {
        f"{name} imports {imported}"
        for name, path in modules().items()
        if part_of(name) == part
        for imported in imports(path)
        if imported.split(".")[0] in IO
    }
    assert set() == found


@pytest.mark.parametrize("wing", ["_manager", "_session", "_client", "_client/channels", "_routing", "_cli"])
def test_the_map_of_a_wing_names_its_files(wing: str) -> None:
    """The docstring of the package says which file answers which question: it names each file, and no other."""
    folder = home() / wing
    named = re.findall(r"`([a-z_]+\.py)`", ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "")
    assert {path.name for path in folder.glob("*.py")} - {"__init__.py"} <= set(named)
    assert set(named) <= {path.name for path in folder.rglob("*.py")}


def test_no_test_module_imports_another() -> None:
    """Helpers that tests share stand in tests/support: a test module that is imported is collected or patched twice."""
    tests = Path(__file__).parent
    # Most files have the word in definitions alone, and need not be parsed.
    named = [path for path in tests.rglob("*.py") if re.search(r"(?<!def )\btest_", path.read_text())]
    found = {
        f"{path.relative_to(tests)} imports {imported}"
        for path in named
        for imported in imports(path)
        if any(part.startswith("test_") for part in imported.split("."))
    }
    assert set() == found


def test_every_task_is_started_in_one_way() -> None:
    """`_nursery.start_task` protects a task from a Ctrl-C, and `start_soon` does not. The command handles the signal
    itself.
    """
    files = {name: path for name, path in modules().items() if part_of(name) not in ("testing", "_cli", "cli")}
    assert len(files) > 80
    assert ["_nursery"] == [name for name, path in files.items() if ".start_soon(" in path.read_text()]
