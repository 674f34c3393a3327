"""The plain way to choose neurons while a model trains: rank them anew at every step."""

from __future__ import annotations

from torch import Tensor

from ..scores.criteria import Criterion, score_from
from ..sites.masks import UnitMasks, whole_tensor
from .goal import Chooser, Goal


class Ranking(Chooser):
    """The best neurons by their learned scores, or by a criterion that reads nothing but the weights.

    criterion: None = the learned scores.
    """

    def __init__(self, masks: UnitMasks, criterion: Criterion | None, goal: Goal):
        super().__init__(goal)
        self.masks, self.criterion = masks, criterion

    def choose(self, step: int, keep: float) -> list[Tensor] | None:
        return None if keep == 1 else self.goal.best(self.masks.sites, self.scores(), self.goal.at(keep))

    def scores(self) -> list[Tensor]:
        if self.criterion is None:
            return self.masks.whole_scores()
        return [whole_tensor(scores) for scores in score_from(self.masks.sites, self.criterion, seed=self.goal.seed)]
