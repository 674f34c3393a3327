"""From scores to kept neurons: a ranking, never a threshold, so that the count is exact whatever the ties.

Pure functions; larger scores stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UserError

Scope = Literal["local", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Descent:
    """A choice among what earlier ones left.

    counts: how many units each layer had at first, of which `keep` is a share.
    goes_on: fewer are chosen later. The last choice could not make up for what a global count rounded down before it.
    """

    counts: Sequence[int]
    goes_on: bool

    def of(self, layers: Iterable[int]) -> Descent:
        """The same of some of the layers."""
        return Descent([self.counts[layer] for layer in layers], self.goes_on)


def check_keep(keep: float) -> float:
    """`keep` as given, if it is a ratio in (0, 1]."""
    if not isinstance(keep, int | float):
        raise UserError(f"keep must be a number in (0, 1], got {keep!r}")
    if not 0 < keep <= 1:
        cure = f"; to keep {keep:g}%, pass {keep / 100:g}" if 1 < keep <= 100 else ""
        raise UserError(f"keep must be in (0, 1], got {keep:g}{cure}")
    return keep


def num_kept(number: int, keep: float, *, multiple_of: int = 1) -> int:
    """How many of `number` neurons stay at ratio `keep`: round(keep · number), at least 1.

    With `multiple_of` the count is the nearest multiple, at least one multiple and never more than `number`.

    >>> num_kept(10, 0.25), num_kept(1536, 0.7, multiple_of=32), num_kept(3, 0.01), num_kept(70, 1, multiple_of=32)
    (3, 1088, 1, 70)
    """
    if check_keep(keep) == 1:
        return number
    count = int(keep * number + 0.5)
    if multiple_of > 1:
        count = int(count / multiple_of + 0.5) * multiple_of or multiple_of
    return min(max(count, 1), number)


def check_multiple_of(multiple_of: int, keep: float, widths: Sequence[int]) -> int:
    """`multiple_of` as given, if some layer of these widths can lose neurons by it."""
    if multiple_of < 1:
        raise UserError(f"multiple_of must be at least 1, got {multiple_of}")
    if keep < 1 and multiple_of >= max(widths):
        raise UserError(
            f"no neuron could go: layers have at most {max(widths)}, and multiple_of {multiple_of} leaves that many; "
            "use a smaller one"
        )
    return multiple_of


def select(
    scores: Sequence[Tensor],
    keep: float,
    *,
    scope: Scope,
    multiple_of: int = 1,
    min_keep: int = 1,
    seed: int = 0,
    parts: Sequence[int] | None = None,
    descent: Descent | None = None,
) -> list[Tensor]:
    """Kept indices of each layer, sorted, int64.

    scores: one (F_l,) a layer, larger = keep. keep: ratio of all neurons. scope: `local` keeps the ratio in every
    layer, `global` ranks all neurons together. min_keep: the least a layer may be left with under global scope.
    multiple_of: each layer's width becomes the nearest multiple of it, one at least: the total is then at most
        L·multiple_of/2 below the asked one, and less than L·multiple_of above, as where most layers are to keep few.
    parts: of each layer, in how many runs of equal length its units lie, of which each must keep equally many; one.
    descent: None = these are all units that there were. A layer then ends at the width that one choice would give it.
    Ties are broken by a permutation drawn from `seed`, not by layer or position.
    Raises: UserError if a score is NaN.
    """
    for layer, s in enumerate(scores):
        if s.isnan().any():
            raise UserError(
                f"layer {layer} has {int(s.isnan().sum())} NaN scores; is the checkpoint or the data broken?"
            )
    tie_breaks, parts = _permutations(scores, seed), parts or [1] * len(scores)
    multiples, whole = [multiple_of * p for p in parts], descent.counts if descent else [len(s) for s in scores]
    if scope == "local":
        asked = [num_kept(number, keep, multiple_of=m) for number, m in zip(whole, multiples, strict=True)]
        counts = [min(count, len(s)) for count, s in zip(asked, scores, strict=True)]
    else:
        budget, up = num_kept(sum(whole), keep), descent is not None and descent.goes_on
        counts = _global_counts(scores, tie_breaks, budget, multiples, max(min_keep, 1), up=up)
    layers = zip(scores, tie_breaks, counts, parts, strict=True)
    return [_top_of_parts(s, t, count, p) for s, t, count, p in layers]


def _top_of_parts(scores: Tensor, tie_break: Tensor, count: int, parts: int) -> Tensor:
    """`top`, the same number from each of the parts."""
    runs = zip(scores.chunk(parts), tie_break.chunk(parts), strict=True)
    return torch.cat([top(s, t, count // parts) + i * len(s) for i, (s, t) in enumerate(runs)])


def top(scores: Tensor, tie_break: Tensor, count: int) -> Tensor:
    """Sorted indices of the `count` largest scores; among equals, the smallest `tie_break` first."""
    return _ranking(scores, tie_break)[:count].sort().values


def _ranking(scores: Tensor, tie_break: Tensor) -> Tensor:
    """Indices from best to worst: stable sort by score over an order that `tie_break` has shuffled."""
    shuffled = tie_break.argsort()
    return shuffled[scores.double().cpu()[shuffled].argsort(descending=True, stable=True)]


def _permutations(scores: Sequence[Tensor], seed: int) -> list[Tensor]:
    sizes = [len(s) for s in scores]
    return list(torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed)).split(sizes))


def _global_counts(
    scores: Sequence[Tensor], tie_breaks: Sequence[Tensor], budget: int, multiples: Sequence[int], min_keep: int, *,
    up: bool,
) -> list[int]:  # fmt: skip
    """Widths under a global ranking: every layer gets its floor, the rest of the budget goes to the best scores.

    up: to the next multiples, rather than to the nearest.
    """
    sizes = [len(s) for s in scores]
    layer_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    floors = [min(max(min_keep, 1), size) for size in sizes]
    guaranteed = [top(s, t, floor) for s, t, floor in zip(scores, tie_breaks, floors, strict=True)]
    rest = torch.ones(sum(sizes), dtype=torch.bool)
    offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0).tolist()
    for offset, indices in zip(offsets, guaranteed, strict=True):
        rest[indices + offset] = False
    ranking = _ranking(torch.cat([s.double().cpu() for s in scores]), torch.cat(list(tie_breaks)))
    ranking = ranking[rest[ranking]][: max(budget - sum(floors), 0)]
    counts = (torch.bincount(layer_of[ranking], minlength=len(sizes)) + torch.tensor(floors)).tolist()
    counted = zip(sizes, counts, multiples, strict=True)
    if up:
        return [min(-(-count // m) * m, size) for size, count, m in counted]
    return [count if m == 1 else num_kept(size, count / size, multiple_of=m) for size, count, m in counted]
