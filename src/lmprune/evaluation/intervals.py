"""A measured value with its 95% bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """low, high: the 95% interval (percentiles over RESAMPLES bootstrap resamples of the items)."""

    value: float
    low: float
    high: float


def mean(scores: Sequence[float], *, scale: float = 1.0) -> Estimate:
    """The mean of one score an item, times `scale`."""
    values = np.asarray(scores, dtype=np.float64) * scale
    return bootstrap(float(values.mean()), len(values), lambda chosen: float(values[chosen].mean()))


def bootstrap(value: float, num_items: int, statistic: Callable[[Any], float]) -> Estimate:
    """The interval of a statistic of the items; the resamples are the same each time (seed 0).

    value: of all items. statistic: the same of the items with these indices, an array (num_items,) with repeats.
    """
    draw = np.random.default_rng(0)
    resampled = [statistic(draw.integers(num_items, size=num_items)) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high))
