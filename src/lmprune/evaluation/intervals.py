"""A measured mean with its 95% bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """low, high: the 95% interval (percentiles of RESAMPLES bootstrap resamples of the items)."""

    value: float
    low: float
    high: float


def mean(scores: Sequence[float], *, scale: float = 1.0) -> Estimate:
    """The mean of one score an item, times `scale`; the resamples are the same each time (seed 0)."""
    values = np.asarray(scores, dtype=np.float64) * scale
    draw = np.random.default_rng(0)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high))
