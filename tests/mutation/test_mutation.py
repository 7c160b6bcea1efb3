"""The check by mutation, itself checked. `nox -s mutation` runs this first."""

from __future__ import annotations

import ast
import faulthandler
from pathlib import Path

import pytest

from mutation.command import judge, judges_of, some_of
from mutation.hunt import Suite, SurveyedTest, Verdict, hunt, judge_live, source_of, survey
from mutation.live import UNFIT, Kills
from mutation.mutants import Mutant, mutants_of, noted
from mutation.targets import EQUIVALENT, TARGETS, Target

LAMP = '''
class Lamp:
    """On or off."""

    limit: int = 3

    def press(self, times):
        """Press it."""
        self.presses = times
        if times > self.limit:
            raise ValueError
        return times % 2 == 1

    def never(self):
        return self.limit
'''

TEST_LAMP = """
import pytest
from lamp import Lamp

@pytest.mark.parametrize("times", [0, 2])
def test_off(times):
    assert not Lamp().press(times)

@pytest.mark.parametrize("times", [1, 3])
def test_on(times):
    assert Lamp().press(times)

def test_worn_out():
    with pytest.raises(ValueError):
        Lamp().press(4)
"""


def changes(body: str) -> list[str]:
    """The mutants of a function with this body: what they say, and their own body."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    mutants = list(mutants_of(f"async def f():\n{indented}\n", ["f"]))
    for mutant in mutants:
        compile(mutant.source, "f", "exec")
    return [" ".join(mutant.source.split()).removeprefix("async def f(): ") for mutant in mutants]


@pytest.mark.parametrize(
    ("body", "mutated"),
    [
        ("x()", ["pass"]),
        ('"""Says what."""', []),
        ("...", []),
        ("await x()", ["pass"]),
        ("return x()", ["return"]),
        ("x: TypeAlias = y", []),
        ('T = TypeVar("T")', []),
        ("return False", ["return True"]),
        ("return None", []),
        ("return 0", ["return", "return 1"]),
        ("if x():\n    pass", ["if not x(): pass", "pass"]),
        ("if not x():\n    pass", ["pass", "if x(): pass"]),
        ("while True:\n    x()", ["pass", "while False: x()", "while True: pass"]),
        ("return x < y", ["return", "return x <= y", "return x >= y"]),
        ("return x is None", ["return", "return x is not None"]),
        ("return x and y", ["return", "return x or y", "return y", "return x"]),
        ("return min(x, 2)", ["return", "return max(x, 2)", "return min(x, 3)"]),
        ("return x if y else z", ["return", "return z if y else x"]),
        ("x(shield=True)", ["pass", "x(shield=False)"]),
        ("x(shield=y)", ["pass", "x()"]),
        ("x += 1", ["x -= 1", "pass", "x += 2"]),
        ("return x / y", ["return", "return x * y"]),
        ("return [x for x in y if z]", ["return", "return [x for x in y]"]),
        ("with x:\n    y()", ["y()", "with x: pass"]),
        (
            "async with x, y as z:\n    z()",
            ["async with y as z: z()", "async with x: z()", "async with x, y as z: pass"],
        ),
        ("try:\n    x()\nfinally:\n    y()", ["x()", "try: pass finally: y()", "try: x() finally: pass"]),
        (
            "try:\n    x()\nexcept E:\n    y()",
            ["x()", "try: pass except E: y()", "try: x() except E: pass"],
        ),
    ],
)
def test_what_can_be_wrong(body: str, mutated: list[str]) -> None:
    """Every edit of every kind of statement, and no other."""
    assert mutated == changes(body)


def test_a_mutant_has_a_name_for_good() -> None:
    """Function and quoted source, not a line number; the same change of the same text a second time is counted."""
    mutants = list(mutants_of("class C:\n    def f(self):\n        x()\n        x()\n", ["C.f"]))
    assert ["C.f: delete `x()`", "C.f: delete `x()` (no. 2)"] == [mutant.name for mutant in mutants]
    assert [3, 4] == [mutant.line for mutant in mutants]


def test_looks_are_not_mutated() -> None:
    """Of a field's declaration what counts is its default; of a module neither imports nor docstrings are dropped."""
    source = '"""Doc."""\nimport attrs\nclass C:\n    x: int = attrs.field(default=1, repr=False)\n'
    assert ["delete", "1 becomes 2 in"] == [mutant.change.split(" `")[0] for mutant in mutants_of(source)]


def test_an_unknown_function_is_an_error() -> None:
    """A renamed function must not drop out of the check unnoticed."""
    with pytest.raises(ValueError, match=r"no function \['gone'\]"):
        list(mutants_of("def f(): pass", ["f", "gone"]))


def test_notes_tell_which_statements_ran() -> None:
    """Before every statement, in nested blocks and functions, too."""
    seen: list[int] = []
    source = "def f(x):\n  if x:\n    y = 1\n  else:\n    y = 2\n  def g():\n    return y\n  return g()\n"
    space: dict[str, object] = {"note": seen.append}
    exec(compile(ast.parse(noted(source, ["f"], "note")), "f", "exec"), space)
    assert 2 == space["f"](False)  # type: ignore[operator]
    assert [2, 5, 6, 8, 7] == seen


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A package of one module that no installed one has anything to do with."""
    (tmp_path / "lamp.py").write_text(LAMP)
    (tmp_path / "test_lamp.py").write_text(TEST_LAMP)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    monkeypatch.syspath_prepend(tmp_path)
    faulthandler.cancel_dump_traceback_later()  # pytest's: a fork would lose its thread and keep the lock that it holds
    return Suite(files=[tmp_path / "test_lamp.py"], root=tmp_path)


def verdicts_of(suite: Suite, source: str = LAMP) -> dict[str, Verdict]:
    surveyed = survey(suite, {"lamp": None})
    mutants = [("lamp", mutant) for mutant in mutants_of(source)]
    return {verdict.mutant.name: verdict for _, verdict in hunt(suite, mutants, surveyed, workers=2)}


def test_an_untested_line_is_found(suite: Suite) -> None:
    """Survivors are exactly the line that no test looks at and the function that none runs."""
    verdicts = verdicts_of(suite)
    survivors = {name: verdict.tests for name, verdict in verdicts.items() if verdict.survived}
    assert {
        "Lamp.press: delete `self.presses = times`": 5,
        "Lamp.never: return nothing in `return self.limit`": 0,
    } == survivors
    assert "test_lamp.py::test_worn_out" == verdicts["Lamp.press: delete `raise ValueError`"].killed_by


def test_what_runs_while_the_module_is_imported(suite: Suite) -> None:
    """A function whose result the module keeps, and one that loses the variable of the function around it."""
    (suite.root / "lamp.py").write_text(
        "def most():\n"
        "    return 3\n"
        "MOST = most()\n"
        "class Base:\n"
        "    def count(self):\n"
        "        return 1\n"
        "class Lamp(Base):\n"
        "    def count(self):\n"
        "        return super().count()\n"
    )
    (suite.root / "test_lamp.py").write_text(
        "import lamp\n"
        "def test_most():\n"
        "    assert lamp.most() and lamp.MOST == 3\n"
        "def test_count():\n"
        "    assert 1 == lamp.Lamp().count()\n"
    )
    verdicts = verdicts_of(suite, (suite.root / "lamp.py").read_text())
    assert "test_lamp.py::test_most" == verdicts["most: 3 becomes 4 in `return 3`"].killed_by
    assert "test_lamp.py::test_count" == verdicts["Lamp.count: return nothing in `return super().count()`"].killed_by
    assert not any(verdict.survived for verdict in verdicts.values())


def test_a_deleted_name_of_a_module_is_gone(suite: Suite) -> None:
    """What uses it raises a NameError, also in functions that run long after the import; what no test uses survives."""
    (suite.root / "lamp.py").write_text(
        "MOST = 3\nLEAST = 1\ndef most():\n    return MOST\ndef least():\n    return LEAST\n"
    )
    (suite.root / "test_lamp.py").write_text("import lamp\ndef test_most():\n    assert lamp.most()\n")
    verdicts = verdicts_of(suite, (suite.root / "lamp.py").read_text())
    assert "test_lamp.py::test_most" == verdicts["<module>: delete `MOST = 3`"].killed_by
    assert verdicts["<module>: delete `LEAST = 1`"].survived


def test_mutants_take_the_place_of_functions_that_the_garbage_collector_does_not_list(suite: Suite) -> None:
    """What looks for leaks freezes the heap before the tests: that must not send mutants the slow way."""
    (suite.root / "conftest.py").write_text("import gc\ndef pytest_collection_finish():\n    gc.freeze()\n")
    mutants = [("lamp", mutant) for mutant in mutants_of(LAMP) if mutant.in_function]
    statuses = [status for _, status, _ in judge_live(suite, mutants, survey(suite, {"lamp": None}), 1)]
    assert len(mutants) == len(statuses)
    assert UNFIT not in statuses


def test_what_noticed_a_mutant_of_the_same_function_is_asked_first() -> None:
    """Then what noticed mutants of the same module; what noticed those of others has no advantage."""
    kills = Kills()
    press, never = (Mutant(function, "", 1, in_function=True, write=str) for function in ("press", "never"))
    for module, mutant, test in [("lamp", never, "a"), ("lamp", never, "a"), ("lamp", press, "b"), ("fan", press, "c")]:
        kills.note(module, mutant, test)
    assert ["b", "a", "c"] == sorted("cab", key=lambda test: kills.order("lamp", press, test))


def test_only_the_tests_of_its_target_judge_a_module() -> None:
    """The modules of one run share a survey of all their tests. What ran while they were imported belongs to each."""
    those = [SurveyedTest(name, 0.1, frozenset()) for name in ("", "tests/a/test_b.py::c", "tests/a/test_bd.py::c")]
    assert those[:2] == judges_of(Target(("a/test_b",)), those)


def test_what_hangs_is_killed(suite: Suite) -> None:
    """A mutant that never ends, and one that waits under Trio for what never comes."""
    (suite.root / "lamp.py").write_text(
        "import trio\n"
        "async def wait(event):\n"
        "    event.set()\n"
        "    await event.wait()\n"
        "def count(n):\n"
        "    while n > 0:\n"
        "        n -= 1\n"
        "    return n\n"
    )
    (suite.root / "test_lamp.py").write_text(
        "import lamp, trio\n"
        "from trio.testing import MockClock\n"
        "def test_wait():\n"
        "    trio.run(lamp.wait, trio.Event())\n"
        "def test_wait_in_virtual_time():\n"
        "    trio.run(lamp.wait, trio.Event(), clock=MockClock(autojump_threshold=0))\n"
        "def test_count():\n"
        "    assert 0 == lamp.count(3)\n"
    )
    verdicts = verdicts_of(suite, (suite.root / "lamp.py").read_text())
    assert "it hangs" == verdicts["wait: delete `event.set()`"].killed_by
    assert "it hangs" == verdicts["count: delete `n -= 1`"].killed_by
    assert "test_lamp.py::test_count" == verdicts["count: delete `while n > 0:`"].killed_by


def test_tests_that_fail_anyway_prove_nothing(suite: Suite) -> None:
    """The first run says which; there is no second."""
    (suite.root / "test_lamp.py").write_text("def test_red():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"fail without any mutant: test_lamp\.py::test_red"):
        survey(suite, {"lamp": None})


def verdict(name: str, killed_by: str | None) -> Verdict:
    function, _, change = name.partition(": ")
    return Verdict(Mutant(function, change, 1, in_function=True, write=str), killed_by, 1)


@pytest.mark.parametrize(("killed", "good"), [(95, True), (94, False)])
def test_the_bar(killed: int, good: bool) -> None:
    """Of a hundred mutants 95 must be killed; the others are named."""
    verdicts = [verdict(f"f: {number}", "a test" if number < killed else None) for number in range(100)]
    verdict_is, report = judge(verdicts, [])
    assert good == verdict_is
    assert 100 - killed == report.count("SURVIVED")


def test_what_is_equivalent_does_not_count() -> None:
    """An equivalent mutant counts neither way; an entry for a mutant that is killed or gone is an error."""
    verdicts = [verdict("f: a", None), verdict("f: b", "a test")]
    assert (True, "1 of 1 mutants killed (100.0%), 1 more are equivalent") == judge(verdicts, ["f: a"])
    assert [False] * 2 == [judge(verdicts, ["f: a", stale])[0] for stale in ("f: b", "f: gone")]


def test_every_equivalent_mutant_exists() -> None:
    """A changed line is another mutant, and its entry has to be looked at again."""
    names = {m.name for module, target in TARGETS.items() for m in mutants_of(source_of(module), target.functions)}
    assert set() == set(EQUIVALENT) - names


@pytest.mark.parametrize(("mutants", "most", "days"), [(10, 3, 4), (9, 3, 3), (3, 3, 1), (2, 3, 1), (0, 3, 1)])
def test_a_sample_of_each_day_takes_all_in_turn(mutants: int, most: int, days: int) -> None:
    """At most so many a day, none twice and none left out."""
    samples = [some_of(range(mutants), most, day=day) for day in range(20_000, 20_000 + days)]
    assert max(map(len, samples)) <= most
    assert [*range(mutants)] == sorted(mutant for sample in samples for mutant in sample)
