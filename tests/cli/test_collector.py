"""The garbage collector of `trio-vmcp serve`."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from trio_vmcp._cli.collector import MOST_YOUNG, patient_collector


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen, as in a process that begins; the suite freezes what it has imported."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    yield
    if frozen:
        gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_what_is_there_before_serving_is_looked_at_no_more() -> None:
    """New objects are, after more of them than usual; an application behind it finds the collector as it was."""
    before = gc.get_threshold()
    with patient_collector():
        assert (MOST_YOUNG, *before[1:]) == gc.get_threshold()
        assert gc.get_freeze_count()
        assert gc.isenabled()
    assert (before, 0) == (gc.get_threshold(), gc.get_freeze_count())


@pytest.mark.usefixtures("thawed")
def test_what_the_application_has_frozen_stays_so() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with patient_collector():
        assert frozen == gc.get_freeze_count()
    assert frozen == gc.get_freeze_count()


@pytest.mark.parametrize(("chosen", "used"), [(0, 0), (MOST_YOUNG + 1, MOST_YOUNG + 1), (1, MOST_YOUNG)])
def test_a_collector_that_the_user_has_set_looks_no_more_often(chosen: int, used: int) -> None:
    """0 is how it is switched off."""
    before = gc.get_threshold()
    gc.set_threshold(chosen, 10, 10)
    try:
        with patient_collector():
            assert used == gc.get_threshold()[0]
        assert chosen == gc.get_threshold()[0]
    finally:
        gc.set_threshold(*before)
