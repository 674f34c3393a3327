"""A threshold on sigmoid(S), and a controller that makes the count come out (docs/methods.md, "Soft movement pruning").

With the threshold alone, the paper's runs ended with 1-3% too many neurons, or pruned nothing where the run was short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..sites.masks import UnitMasks
from .goal import Chooser, Goal
from .optimizing import SCORE_LR
from .schedules import descent

#: τ_f: in the end a neuron stays if sigmoid(S) is above it
FINAL_THRESHOLD = 0.1
#: how fast the penalty's effort follows the error: ln(effort) per unit of score, a step at least and over the whole run
GAIN, RUN_GAIN = 0.1, 25.0
MAX_EFFORT = 1e4


class SoftThreshold(Chooser):
    """Keeps sigmoid(S) > τ(t), τ rising 0 → τ_f along the cubic, and at least the final share of each layer; with
    `multiple_of` the nearest width to that.

    The controller looks at the neuron on the border, the one whose rank is the asked count: as long as its score is
    above the threshold too many stay, and the penalty's `effort` grows; once it is below, the effort falls.
    """

    def __init__(self, masks: UnitMasks, goal: Goal):
        super().__init__(goal)
        self.masks = masks
        self.remaining = descent(goal.num_steps)
        self.gain = max(GAIN, RUN_GAIN / goal.num_steps)
        self.effort = 1.0

    def choose(self, step: int, keep: float) -> list[Tensor] | None:
        threshold = FINAL_THRESHOLD * (1 - self.remaining(step))
        if threshold == 0:
            return None
        border = math.log(threshold / (1 - threshold))
        scores = [s.float().cpu() for s in self.masks.whole_scores()]
        self._steer(torch.cat(scores), self._asked(keep), border)
        sites = self.masks.sites
        floors = self.goal.best(sites, scores, self.goal.keep, scope="local")
        kept = []
        for site, scores_F, floor in zip(sites, scores, floors, strict=True):
            above = int((scores_F > border).sum())
            share = max(above, len(floor)) / len(scores_F)
            kept += self.goal.best([site], [scores_F], share, scope="local")
        return kept

    def scores(self) -> list[Tensor]:
        return self.masks.whole_scores()

    @property
    def score_lr(self) -> float:
        """A score must be able to sink to logit(τ_f) = -2.2 within the run."""
        return max(SCORE_LR, 10 / self.goal.num_steps)

    def penalty_weight(self, step: int, final: float) -> float:
        """λ(t): rises with the threshold, λ_f · τ(t) / τ_f, times the controller's effort."""
        return final * ((1 - self.remaining(step)) * self.effort)

    def state(self) -> dict[str, Tensor]:
        return {"soft.effort": torch.tensor(self.effort, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.effort = float(state["soft.effort"])

    def _asked(self, keep: float) -> int:
        """The count of all units where the schedule asks for `keep`."""
        if not isinstance(share := self.goal.at(keep), Mapping):
            return int(share * sum(mask.count for mask in self.masks))
        return int(sum(share[mask.kind] * mask.count for mask in self.masks))

    def _steer(self, scores: Tensor, asked: int, border: float) -> None:
        rank = min(asked, len(scores) - 1)
        excess = float(scores.sort(descending=True).values[rank]) - border
        self.effort = min(max(self.effort * math.exp(self.gain * min(max(excess, -1.0), 1.0)), 1e-2), MAX_EFFORT)
