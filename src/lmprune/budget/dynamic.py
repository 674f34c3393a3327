"""The cheapest sum of errors within a budget, exactly: a dynamic programme over buckets of cost (SPDY; ZipLM)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .levels import Choice

#: how finely costs are told apart that have no common divisor
_BUCKETS = 10_000


def allocate(errors: Sequence[np.ndarray], costs: Sequence[np.ndarray], most: float) -> Choice | None:
    """The levels with the least sum of errors of all whose costs sum up to no more than `most`; None where there are
    none. errors, costs: (S,) of each site's levels.

    Costs that are whole numbers are counted by their greatest common divisor where that makes few enough buckets, so
    that a budget is met exactly; others are rounded up to buckets, so that it is never exceeded.

    >>> e, c = np.array([0.0, 1.0, 5.0]), np.array([4, 2, 0])
    >>> allocate([e, 3 * e], [c, c], 4)
    (1, 1)
    """
    least = [float(c.min()) for c in costs]
    room = most - sum(least)
    if room < -1e-9 * abs(most):
        return None
    weights, buckets = _in_buckets([c - low for c, low in zip(costs, least, strict=True)], max(room, 0.0))
    best, chosen = np.zeros(buckets + 1), []  # of the sites so far, for each number of buckets that may be spent
    for e, w in zip(errors, weights, strict=True):
        sums = np.full((len(e), buckets + 1), np.inf)
        for level, (error, spent) in enumerate(zip(e, w, strict=True)):
            if spent <= buckets:
                sums[level, spent:] = best[: buckets + 1 - spent] + error
        chosen.append(sums.argmin(0))
        best = sums.min(0)
    left, found = buckets, []
    for level_of, w in zip(reversed(chosen), reversed(weights), strict=True):
        found.append(int(level_of[left]))
        left -= int(w[found[-1]])
    return tuple(reversed(found))


def _in_buckets(costs: Sequence[np.ndarray], room: float) -> tuple[list[np.ndarray], int]:
    """Costs as whole numbers of buckets, and how many of those there are."""
    every = np.concatenate([*costs])
    if np.all(every == np.rint(every)):
        size = float(np.gcd.reduce(every.astype(np.int64)))
        if size and room // size <= 10 * _BUCKETS:
            return [np.rint(c / size).astype(np.int64) for c in costs], int(room // size)
    size = room / _BUCKETS or 1.0
    return [np.ceil(c / size - 1e-9).astype(np.int64) for c in costs], int(room / size + 1e-9)
