"""The lists that `make mutants` and `make numerics` run are not stale."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from mutants import Mutant, all_mutants  # noqa: E402
from numerics import SETTINGS, TESTS  # noqa: E402


def test_every_fault_can_still_be_put_in():
    mutants = list(all_mutants())
    for mutant in mutants:
        assert mutant.old != mutant.new and mutant.old in mutant.file().read_text(encoding="utf-8")
        assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in mutant.tests), mutant.tests
    assert len(mutants) >= 80 and len(set(mutants)) == len(mutants)


@pytest.mark.parametrize("old", ["no such text in this package", "return"])
def test_a_fault_that_fits_nowhere_or_twice_is_refused(old: str):
    with pytest.raises(LookupError, match=r"is there \d+ times; renew mutant_list.py"):
        Mutant("gradual", old, "", ()).file()


def test_what_make_numerics_runs_is_there():
    assert len(TESTS) == len(set(TESTS)) > 20 and len(SETTINGS) >= 6
    assert not [name for name in TESTS if not (ROOT / "tests" / f"test_{name}.py").is_file()]
