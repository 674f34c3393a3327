import math

import numpy as np
import pytest

from lmprune.evaluation.intervals import mean, share


def test_mean_and_scale():
    found = mean([True, False, True, True], scale=100)
    assert found.value == 75 and found.low < 75 < found.high <= 100


def test_the_interval_is_that_of_the_normal_approximation_where_there_are_many():
    scores = np.random.default_rng(1).exponential(size=4000)
    found, half = mean(scores), 1.96 * scores.std() / math.sqrt(4000)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=half / 8)
    assert found.high == pytest.approx(scores.mean() + half, abs=half / 8)
    assert mean(scores) == found


def test_no_spread_no_interval():
    assert (one := mean([0.5] * 7)).low == one.high == one.value == 0.5


@pytest.mark.parametrize(("right", "number"), [(0, 1000), (1000, 1000), (0, 1), (3, 10), (499, 1000), (999, 1000)])
def test_a_shares_interval_holds_the_rates_that_the_score_test_does_not_reject(right: int, number: int):
    """Wilson's, by its definition: the p with |share - p| ≤ 1.96 √(p(1 - p)/n), sought on a grid."""
    found = share([True] * right + [False] * (number - right))
    rates = np.linspace(0, 1, 400_001)
    inside = rates[np.abs(right / number - rates) <= 1.959964 * np.sqrt(rates * (1 - rates) / number) + 1e-12]
    assert found.value == right / number
    assert (found.low, found.high) == pytest.approx((inside[0], inside[-1]), abs=1e-5)


def test_none_right_of_many_is_no_certain_nothing():
    assert share([False] * 1000).low == 0 < share([False] * 1000).high == pytest.approx(0.00383, abs=1e-5)
