"""The levels of a site: how many units are left at each, what the model's error grows by, and what it then costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..sites.address import Address
from .costs import Costs

#: a level of each site, by its number; 0 = everything stays
Choice = tuple[int, ...]


@dataclass(frozen=True)
class Levels:
    """counts: units left at each level, falling, all of them first. errors: (S,) float64, from 0.

    gone: the units that go, the first to go first; the levels are prefixes of it.
    """

    address: Address
    counts: tuple[int, ...]
    errors: np.ndarray
    gone: Tensor

    @classmethod
    def of(cls, address: Address, gone: Tensor, cost: Tensor, counts: tuple[int, ...]) -> Levels:
        """From an elimination: which units went, and what each removal cost."""
        curve = np.concatenate([[0.0], cost.clamp_min(0).cumsum(0).numpy()])
        return cls(address, counts, curve[[counts[0] - left for left in counts]], gone)

    def dearer(self, times: float, level: int) -> Levels:
        """The same at so many times the error, and no further than this level."""
        errors = self.errors * times
        errors[level + 1 :] = np.inf
        return replace(self, errors=errors)

    def with_some(self) -> Levels:
        """The same without a level of no units."""
        number = len(self.counts) - (self.counts[-1] == 0)
        return replace(self, counts=self.counts[:number], errors=self.errors[:number])

    def kept(self, count: int) -> Tensor:
        """The units that stay where so many do, sorted."""
        stays = torch.ones(self.counts[0], dtype=torch.bool)
        stays[self.gone[: self.counts[0] - count]] = False
        return stays.nonzero().flatten()


def grid(count: int, *, step: int, least: int) -> tuple[int, ...]:
    """Numbers of units left: all, then multiples of `step`, then `least`.

    >>> grid(70, step=32, least=1), grid(3, step=1, least=1)
    ((70, 64, 32, 1), (3, 2, 1))
    """
    first = (count - 1) // step * step
    return (count, *(k for k in range(first, 0, -step) if k > least), *([least] if least < count else []))


@dataclass(frozen=True)
class Choices:
    """What a search chooses among. levels: of each site. costs: (S,) of each. most: what they may cost together,
    without what the model costs besides."""

    levels: tuple[Levels, ...]
    costs: tuple[np.ndarray, ...]
    most: float

    @classmethod
    def of(cls, levels: Sequence[Levels], costs: Costs, most: float) -> Choices:
        """most: of the whole model."""
        curves = tuple(costs.curves[each.address].at(each.counts) for each in levels)
        return cls(tuple(levels), curves, most - costs.base)

    def with_some(self) -> Choices | None:
        """Among levels of which something is left; None where the budget is out of reach then."""
        levels = [each.with_some() for each in self.levels]
        costs = tuple(cost[: len(each.counts)] for cost, each in zip(self.costs, levels, strict=True))
        found = Choices(tuple(levels), costs, self.most)
        return found if found.fits(tuple(len(each.counts) - 1 for each in levels)) else None

    @property
    def errors(self) -> tuple[np.ndarray, ...]:
        return tuple(each.errors for each in self.levels)

    def cost(self, choice: Choice) -> float:
        return float(sum(costs[level] for costs, level in zip(self.costs, choice, strict=True)))

    def fits(self, choice: Choice) -> bool:
        return self.cost(choice) <= self.most * (1 + 1e-9)

    def counts(self, choice: Choice) -> list[int]:
        """Units left of each site."""
        return [each.counts[level] for each, level in zip(self.levels, choice, strict=True)]
