"""Mutants of functions, judged in forks of a process that has imported the package and collected the tests.

A fork takes another code object for the function and runs tests: a hundredth of a second, where an import of the
package and a collection take one and more. What a function did while the package was imported stays as it was, and a
function whose variables are others cannot take the code. `hunt` judges such mutants again, with the mutant in place
from the import on.
"""

from __future__ import annotations

import gc
import json
import os
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import IO, Any

import attrs
import pytest
from _pytest.runner import runtestprotocol
from trio._core import _ki

from mutation.mutants import Mutant

__all__ = ["UNFIT", "Kills", "LiveJudge", "Unfit"]

UNFIT = 102  # the status of a fork in which the code does not fit


class Unfit(Exception):
    """No function takes this code."""


@attrs.frozen
class Kills:
    """How many mutants each test has noticed: of a module, and of a function."""

    _by_module: Counter[tuple[str, str]] = attrs.field(factory=Counter, init=False)
    _by_function: Counter[tuple[str, str, str]] = attrs.field(factory=Counter, init=False)

    def note(self, module: str, mutant: Mutant, test: str) -> None:
        self._by_module[module, test] += 1
        self._by_function[module, mutant.function, test] += 1

    def order(self, module: str, mutant: Mutant, test: str) -> tuple[int, int]:
        """Sorts the tests that are likely to notice this mutant before others."""
        return -self._by_function[module, mutant.function, test], -self._by_module[module, test]


@attrs.define(eq=False)
class LiveJudge:
    """A plugin for pytest: in place of the run, a line of JSON for each mutant, as soon as it is judged. In it are the
    mutant's number, the status of its fork, and the id of the test that failed or None.

    Attributes:
        files: Of the modules.
        mutants: Each with the name of its module.
        tests: The ids of the tests that may notice a mutant of a module, in order, by what each has killed so far.
        output: Takes the lines.
    """

    files: Mapping[str, str]
    mutants: Sequence[tuple[str, Mutant]]
    tests: Callable[[str, Mutant, Kills], Sequence[str]]
    workers: int
    output: IO[bytes]
    _kills: Kills = attrs.field(factory=Kills, init=False)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.unfreeze()  # what is frozen, by a fixture that looks for leaks, is not among the objects of `gc`
        functions = _functions_of(self.files.values())
        waiting = list(enumerate(self.mutants))[::-1]
        running: dict[int, tuple[int, int]] = {}  # number and pipe, by process
        gc.collect()
        gc.freeze()  # forks share what they do not write to
        while waiting or running:
            while waiting and len(running) < self.workers:
                number, (module, mutant) = waiting.pop()
                chosen = [items[test] for test in self.tests(module, mutant, self._kills) if test in items]
                reading, writing = os.pipe()
                pid = os.fork()
                if pid == 0:
                    self._try(mutant, self.files[module], functions, chosen, writing)
                os.close(writing)
                running[pid] = number, reading
            pid, wait_status = os.wait()
            number, reading = running.pop(pid)
            with os.fdopen(reading, "rb") as result:
                killer = result.read().decode() or None
            if killer is not None:
                self._kills.note(*self.mutants[number], killer)
            line = [number, os.waitstatus_to_exitcode(wait_status), killer]
            self.output.write(json.dumps(line).encode() + b"\n")
            self.output.flush()
        return True

    def _try(
        self,
        mutant: Mutant,
        file: str,
        functions: Mapping[tuple[str, str], Sequence[types.FunctionType]],
        items: Sequence[pytest.Item],
        writing: int,
    ) -> None:
        """In a fork, which ends here."""
        status = UNFIT
        try:
            _exchange(mutant, file, functions)
            killer = _first_failure(items)
            status = 0 if killer is None else 1
            os.write(writing, (killer or "").encode())
        except Unfit:
            pass
        finally:
            os._exit(status)


def _first_failure(items: Sequence[pytest.Item]) -> str | None:
    for number, item in enumerate(items):
        following = items[number + 1] if number + 1 < len(items) else None
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return None


def _functions_of(files: Collection[str]) -> dict[tuple[str, str], list[types.FunctionType]]:
    """The functions of modules that are alive, by file and qualified name, in the order of their lines."""
    found: dict[tuple[str, str], list[types.FunctionType]] = {}
    for value in gc.get_objects():
        if isinstance(value, types.FunctionType) and value.__code__.co_filename in files:
            found.setdefault((value.__code__.co_filename, value.__code__.co_qualname), []).append(value)
    for same in found.values():
        same.sort(key=lambda function: function.__code__.co_firstlineno)
    return found


def _exchange(mutant: Mutant, file: str, functions: Mapping[tuple[str, str], Sequence[types.FunctionType]]) -> None:
    """
    Raises:
        Unfit: There is no such function, or it has other variables of the functions around it.
    """
    codes = [code for code in _codes_in(compile(mutant.source, file, "exec")) if code.co_qualname == mutant.function]
    live = functions.get((file, mutant.function), ())
    old_codes = list(dict.fromkeys(function.__code__ for function in live))
    if not codes or len(codes) != len(old_codes):
        raise Unfit
    new_codes: dict[Any, types.CodeType] = dict(zip(old_codes, codes, strict=True))
    for function in live:
        old = function.__code__
        new = new_codes[old]
        if new.co_freevars != old.co_freevars:
            raise Unfit
        try:
            is_protected = _ki._CODE_KI_PROTECTION_STATUS_WMAP[old]
        except KeyError:
            pass
        else:
            _ki._CODE_KI_PROTECTION_STATUS_WMAP[new] = is_protected
        function.__code__ = new


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes_in(constant)
