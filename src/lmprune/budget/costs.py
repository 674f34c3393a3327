"""What a model costs as its sites shrink: parameters, bytes or seconds; what does not shrink, and a curve a site.

A cost is a number for each count of units: of parameters and bytes a straight line, but of whole layers that differ, of
seconds one through measured points. The cost of a model is the sum, so no kind's units may lie in another's
(`check_additive`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from ..errors import UserError
from ..sites.address import Address, Kind
from ..sites.layers import Layers
from ..sites.place import Place
from ..sites.site import Site

Measure = Literal["params", "bytes", "seconds"]


@dataclass(frozen=True)
class Curve:
    """The cost of one site: straight lines between points. counts: rising; costs: one for each."""

    counts: tuple[int, ...]
    costs: tuple[float, ...]

    def at(self, counts: Sequence[int]) -> np.ndarray:
        """The costs of these numbers of units.

        >>> Curve((0, 10), (0.0, 5.0)).at([4, 10]).tolist()
        [2.0, 5.0]
        """
        return np.interp(counts, self.counts, self.costs)

    def up_to(self, count: int) -> Curve:
        """Of the site that has only so many units left.

        >>> Curve((0, 4, 10), (0.0, 3.0, 6.0)).up_to(6)
        Curve(counts=(0, 4, 6), costs=(0.0, 3.0, 4.0))
        """
        below = [point for point in zip(self.counts, self.costs, strict=True) if point[0] < count]
        counts, costs = zip(*below, (count, float(self.at([count])[0])), strict=True)
        return Curve(counts, costs)


@dataclass(frozen=True)
class Costs:
    """measure: what is counted. base: what costs the same whatever goes. curves: of each site."""

    measure: Measure
    base: float
    curves: Mapping[Address, Curve]

    def total(self, counts: Mapping[Address, int]) -> float:
        """Of the model with these numbers of units left."""
        return self.base + sum(float(self.curves[address].at([count])[0]) for address, count in counts.items())


def weight_costs(
    places: Sequence[Place], params: int, *, itemsize: int | None = None, adds_bias: bool = False
) -> Costs:
    """Of a model of `params` parameters: those, or the bytes of its weights where each takes `itemsize`.

    adds_bias: what is cut gets a bias in its reader, see `Solver`.
    """
    each = 1 if itemsize is None else itemsize
    curves = {place.address: weight_curve(place, each, adds_bias=adds_bias) for place in places}
    return costs_of("params" if itemsize is None else "bytes", float(params * each), curves)


def weight_curve(place: Place, each: int = 1, *, adds_bias: bool = False) -> Curve:
    """What so many of its units weigh at most, where a parameter weighs `each`: whole layers may differ, and those that
    stay may be the heaviest."""
    if isinstance(place, Layers):
        weights = accumulate(sorted(place.unit_params, reverse=True), initial=0)
        points = dict(enumerate(weights))
    else:
        new = place.reader().shape[1] if adds_bias and isinstance(place, Site) and place.reader_bias() is None else 0
        points = {count: count * place.params + new for count in (0, place.count - 1)}
        points |= {place.count: place.count * place.params}
    return Curve(tuple(points), tuple(float(weight * each) for weight in points.values()))


def costs_of(measure: Measure, dense: float, curves: Mapping[Address, Curve]) -> Costs:
    """From the cost of the whole model: its base is what the sites leave of it."""
    return Costs(measure, dense - sum(curve.costs[-1] for curve in curves.values()), curves)


def counts_before(places: Iterable[Place]) -> dict[Address, int]:
    """All units of each site."""
    return {place.address: place.count for place in places}


def check_additive(kinds: Sequence[Kind]) -> None:
    """Raises: UserError for whole layers beside parts of layers, which may be parts of the very layers that go."""
    if "layers" in kinds and len(kinds) > 1:
        parts = " and ".join(kind for kind in kinds if kind != "layers")
        raise UserError(
            f"layers and {parts} can't share a target, for parts may go with the same layers; prune by one, and then "
            "by the other"
        )
