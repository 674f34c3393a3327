"""A measured value with its 95% interval: by the bootstrap, or Wilson's for a share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 1000
_LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + _LEVEL) / 2)


@dataclass(frozen=True)
class Estimate:
    """low, high: the 95% interval, of a `share` Wilson's, else percentiles over RESAMPLES resamples of the items."""

    value: float
    low: float
    high: float


def share(right: Sequence[bool]) -> Estimate:
    """How many of the items are right, from 0 to 1, with Wilson's score interval: no resample of 0 of 1,000 holds
    anything but 0, and the truth may well be 0.003.

    >>> share([False] * 1000)
    Estimate(value=0.0, low=0.0, high=0.003826758485555122)
    """
    number = len(right)
    value, spread = sum(right) / number, _Z**2 / number
    middle = (value + spread / 2) / (1 + spread)
    half = (value * (1 - value) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return Estimate(value, max(middle - half, 0.0), min(middle + half, 1.0))


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


def normal(value: float | None, error: float | None) -> list[float] | None:
    """The 95% interval around a mean with a standard error, for JSON; None where there is no error."""
    return None if value is None or error is None else [value - _Z * error, value + _Z * error]
