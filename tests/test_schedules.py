"""Keep ratio over the steps of a run."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmprune.errors import UserError
from lmprune.gradual.schedules import MIN_STEPS, cubic, descent, milestone_steps, oneshot

ratios = st.floats(0.01, 1.0)
lengths = st.integers(MIN_STEPS, 3000)


@given(ratios, lengths)
def test_the_cubic_starts_at_1_falls_and_rests_at_keep(keep: float, num_steps: int):
    at = [cubic(keep, num_steps)(step) for step in range(num_steps)]
    assert all(earlier >= later for earlier, later in pairwise(at))
    assert all(at[step] == 1 for step in range(int(0.1 * num_steps) + 1))
    rest = [step for step in range(num_steps) if step >= 0.7 * num_steps]
    assert len(rest) >= 0.3 * num_steps - 1 and all(at[step] == pytest.approx(keep) for step in rest)


def test_the_cubic_is_the_formula_of_methods_1():
    num_steps, keep = 200, 0.25
    start, rest = 0.1 * num_steps, 0.3 * num_steps
    for step in range(20, 141):
        expected = keep + (1 - keep) * (1 - (step - start) / (num_steps - start - rest)) ** 3
        assert cubic(keep, num_steps)(step) == pytest.approx(expected)


def test_oneshot_is_there_at_once():
    assert {oneshot(0.3)(step) for step in (0, 1, 10**6)} == {0.3}


@given(lengths)
def test_the_descent_is_what_is_left_of_the_cubic_whatever_the_ratio(num_steps: int):
    for step in range(0, num_steps, max(num_steps // 7, 1)):
        assert cubic(0.2, num_steps)(step) == pytest.approx(0.2 + 0.8 * descent(num_steps)(step))


@given(lengths, st.integers(1, 8))
def test_after_the_last_milestone_the_ratio_is_the_final_one(num_steps: int, number: int):
    steps = milestone_steps(num_steps, number)
    assert steps == sorted(set(steps)) and 1 <= len(steps) <= number
    assert 0.1 * num_steps < steps[0] and steps[-1] < num_steps
    assert cubic(0.4, num_steps)(steps[-1]) == pytest.approx(0.4)


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, 25])
def test_a_ratio_that_is_none_is_refused(keep: float):
    for schedule in (lambda: oneshot(keep), lambda: cubic(keep, 100)):
        with pytest.raises(UserError, match="keep must be in"):
            schedule()


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match=r"9 training steps are too few.*--schedule oneshot"):
        cubic(0.5, 9)
