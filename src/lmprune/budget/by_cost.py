"""One ranking over units of unlike sizes: what a unit is worth for each parameter that it costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .selection import check_keep, num_kept


def counts_by_cost(
    scores: Sequence[Tensor],
    costs: Sequence[int],
    keep: float,
    *,
    least: Sequence[int],
    multiples: Sequence[int],
    seed: int = 0,
) -> list[int]:
    """How many units of each site stay, where all are ranked by score over cost and the best fill the budget.

    scores: one (U,) a site, larger = keep, in one unit of measure for all sites (an error). costs: of one unit of each
    site. keep: the share of all costs that may stay. least: the fewest units of each site. multiples: what each site's
    count is rounded to. Ties are broken by a permutation drawn from `seed`.
    Where all costs are equal this is `select`'s global scope.

    >>> cheap, dear = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([30.0, 9.0])
    >>> counts_by_cost([cheap, dear], [1, 10], 0.5, least=[1, 1], multiples=[1, 1])
    [2, 1]
    """
    check_keep(keep)
    sizes = [len(each) for each in scores]
    if keep == 1:
        return sizes
    budget = keep * sum(size * cost for size, cost in zip(sizes, costs, strict=True))
    worth = torch.cat([each.double().cpu() / cost for each, cost in zip(scores, costs, strict=True)])
    site_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    shuffled = torch.randperm(len(worth), generator=torch.Generator().manual_seed(seed)).argsort()
    ranking = shuffled[worth[shuffled].argsort(descending=True, stable=True)]
    counts = [min(floor, size) for floor, size in zip(least, sizes, strict=True)]
    spent, passed = sum(c * cost for c, cost in zip(counts, costs, strict=True)), [0] * len(sizes)
    for site in site_of[ranking].tolist():
        passed[site] += 1
        if passed[site] <= counts[site]:
            continue  # one of the few that stay whatever they are worth
        if spent + costs[site] > budget:
            break
        spent += costs[site]
        counts[site] += 1
    return [
        num_kept(size, count / size, multiple_of=multiple)
        for size, count, multiple in zip(sizes, counts, multiples, strict=True)
    ]
