"""A threshold on sigmoid(S), and a controller that makes the count come out (docs/methods.md, "Soft movement pruning").

With the threshold alone, the paper's runs ended with 1-3% too many neurons, or pruned nothing where the run was short.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..budget.selection import select
from ..sites.masks import UnitMasks
from .schedules import descent

#: τ_f: in the end a neuron stays if sigmoid(S) is above it
FINAL_THRESHOLD = 0.1
#: how fast the penalty's effort follows the error: ln(effort) per unit of score, a step at least and over the whole run
GAIN, RUN_GAIN = 0.1, 25.0
MAX_EFFORT = 1e4


class SoftThreshold:
    """Keeps sigmoid(S) > τ(t), τ rising 0 → τ_f along the cubic, and at least the final share of each layer; with
    `multiple_of` the nearest width to that.

    The controller looks at the neuron on the border, the one whose rank is the asked count: as long as its score is
    above the threshold too many stay, and the penalty's `effort` grows; once it is below, the effort falls.
    """

    def __init__(self, masks: UnitMasks, keep: float, num_steps: int, *, multiple_of: int, seed: int):
        self.masks, self.keep = masks, keep
        self.remaining = descent(num_steps)
        self.multiple_of, self.seed = multiple_of, seed
        self.gain = max(GAIN, RUN_GAIN / num_steps)
        self.effort = 1.0

    def choose(self, step: int, keep: float) -> list[Tensor] | None:
        threshold = FINAL_THRESHOLD * (1 - self.remaining(step))
        if threshold == 0:
            return None
        border = math.log(threshold / (1 - threshold))
        scores = [s.float().cpu() for s in self.masks.whole_scores()]
        self._steer(torch.cat(scores), keep, border)
        floors = select(scores, self.keep, scope="local", multiple_of=self.multiple_of, seed=self.seed)
        kept = []
        for scores_F, floor in zip(scores, floors, strict=True):
            above = int((scores_F > border).sum())
            share = max(above, len(floor)) / len(scores_F)
            kept += select([scores_F], share, scope="local", multiple_of=self.multiple_of, seed=self.seed)
        return kept

    def scores(self) -> list[Tensor]:
        return self.masks.whole_scores()

    def strength(self, step: int) -> float:
        """λ(t) / λ_f: the threshold's share of the way, times the controller's effort."""
        return (1 - self.remaining(step)) * self.effort

    def _steer(self, scores: Tensor, keep: float, border: float) -> None:
        rank = min(int(keep * len(scores)), len(scores) - 1)
        excess = float(scores.sort(descending=True).values[rank]) - border
        self.effort = min(max(self.effort * math.exp(self.gain * min(max(excess, -1.0), 1.0)), 1e-2), MAX_EFFORT)
