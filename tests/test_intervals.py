import math

import numpy as np
import pytest

from lmprune.evaluation.intervals import mean


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
