"""Criteria: one score a neuron, larger = keep. A new one is one decorated function (docs/add_a_criterion.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import UserError, unknown
from ...progress import Progress
from ...sites.site import Site
from ..statistics import FORWARD, GRADIENT, SeamStatistics, collect

#: (site, its statistics, random numbers) -> scores (U,), or (F,), whose sums over the runs are the units' scores; the
#: statistics are empty where the criterion needs none
ScoreFunction = Callable[[Site, SeamStatistics, torch.Generator], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A score and the statistics it needs: names of SeamStatistics' fields."""

    name: str
    needs: frozenset[str]
    function: ScoreFunction

    @property
    def needs_data(self) -> bool:
        return bool(self.needs)

    @property
    def needs_gradients(self) -> bool:
        """The text is also read backwards, which costs 2-3 times as much: a few thousand tokens are enough."""
        return bool(self.needs & GRADIENT)


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, needs: Iterable[str] = ()) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register the decorated function as the criterion `name`."""
    assert name not in CRITERIA, f"two criteria are named {name}"
    assert set(needs) <= FORWARD | GRADIENT, f"{name} needs statistics that do not exist: {set(needs)}"

    def register(function: ScoreFunction) -> ScoreFunction:
        CRITERIA[name] = Criterion(name, frozenset(needs), function)
        return function

    return register


def get_criterion(name: str) -> Criterion:
    """Raises: UserError with the nearest known names."""
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


def score(
    model: nn.Module,
    sites: Sequence[Site],
    name: str,
    input_ids: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    """Scores (U,) of every site under the criterion `name`, fp32 on the CPU, larger = keep.

    input_ids: calibration text (sequences, T), for criteria with `needs_data`. batch_size, progress: see `collect`.
    Raises: UserError for an unknown criterion, missing text, or statistics that are not finite.
    """
    rule = get_criterion(name)
    statistics = None
    if rule.needs_data:
        if input_ids is None:
            raise UserError(f"criterion {name!r} needs calibration text; pass some, or use magnitude or random")
        statistics = collect(model, sites, input_ids, needs=rule.needs, batch_size=batch_size, progress=progress)
    return score_from(sites, name, statistics, seed=seed)


def score_from(
    sites: Sequence[Site], name: str, statistics: Sequence[SeamStatistics] | None = None, *, seed: int = 0
) -> list[Tensor]:
    """Like `score`, from statistics that are there already: one `collect` can serve many criteria."""
    rule = get_criterion(name)
    generator = torch.Generator().manual_seed(seed)
    layers = zip(sites, statistics or [SeamStatistics()] * len(sites), strict=True)
    with torch.no_grad():
        scores = [rule.function(site, stats, generator).float().cpu() for site, stats in layers]
        scores = [site.per_unit(s) if s.shape == (site.width,) else s for site, s in zip(sites, scores, strict=True)]
    for site, scores_U in zip(sites, scores, strict=True):
        assert scores_U.shape == (site.count,), f"{name} must give one score a unit, got {tuple(scores_U.shape)}"
    return scores


from . import activation, gradient, random, weights  # noqa: E402, F401  (registers the criteria)
