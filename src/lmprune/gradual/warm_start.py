"""A warm start for learned scores: `obs` says where they begin, and refits the readers on the way down.

Scores that start at 0 spend a short run finding out what second-order calibration knows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..budget.selection import Scope
from ..scores.passes import undisturbed
from ..sites.families import FFNSpec
from ..sites.masks import UnitMasks
from ..solve.obs import error_curves, obs_refit
from .goal import Goal
from .milestones import cut_copy, write_back
from .schedules import milestone_steps

#: the worst neuron starts at minus this, the best at plus: what scores move in some hundred steps
SPREAD = 0.5


def initial_scores(model: Any, masks: UnitMasks, calibration: Tensor, scope: Scope, seed: int) -> list[Tensor]:
    """Scores (F_l,) from the ranks under `obs`, evenly spread over ±SPREAD, among all layers or within each."""
    with masks.off(), undisturbed(model):
        curves = error_curves(model, masks.sites, calibration, seed=seed)
    return _spread(curves) if scope == "global" else [_spread([curve])[0] for curve in curves]


def _spread(curves: Sequence[Tensor]) -> list[Tensor]:
    together = torch.cat(list(curves))
    ranks = together.argsort(stable=True).argsort(stable=True).float()
    even = (2 * ranks / max(len(together) - 1, 1) - 1) * SPREAD
    return list(even.split([len(curve) for curve in curves]))


class WarmStart:
    """Sets the scores when it is made; refits the kept neurons' readers at each milestone of the descent.

    number: how many milestones there are.
    """

    def __init__(
        self, model: Any, masks: UnitMasks, calibration: Tensor, goal: Goal, number: int, spec: FFNSpec | None
    ):
        self.model, self.masks, self.calibration, self.spec = model, masks, calibration, spec
        self.steps = milestone_steps(goal.num_steps, number)
        starts = initial_scores(model, masks, calibration, goal.scope, goal.seed)
        with torch.no_grad():
            for scores, start in zip(masks.scores, starts, strict=True):
                scores.copy_(start)

    def refit(self, step: int, before: Sequence[Tensor]) -> None:
        """At a milestone, the kept neurons' readers make up in place for those that left; at another step nothing.

        before: the neurons of each layer that took part until now.
        """
        if step not in self.steps:
            return
        kept = self.masks.kept
        whole = [torch.cat(both).unique() for both in zip(before, kept, strict=True)]  # some may have come back
        small, sites = cut_copy(self.model, self.masks, whole, self.spec)
        obs_refit(small, sites, self.calibration, [torch.searchsorted(*both) for both in zip(whole, kept, strict=True)])
        write_back(self.masks.sites, sites, kept)
