"""The plain way to choose neurons while a model trains: rank them anew at every step."""

from __future__ import annotations

from torch import Tensor

from ..budget.selection import Scope, select
from ..methods import Method
from ..scores.criteria import score_from
from ..sites.masks import UnitMasks, whole


class Ranking:
    """The best neurons by their learned scores, or by a criterion that reads nothing but the weights."""

    def __init__(self, masks: UnitMasks, method: Method, *, scope: Scope, multiple_of: int, seed: int):
        self.masks, self.method = masks, method
        self.scope: Scope = scope
        self.multiple_of, self.seed = multiple_of, seed

    def choose(self, step: int, keep: float) -> list[Tensor] | None:
        if keep == 1:
            return None
        return select(self.scores(), keep, scope=self.scope, multiple_of=self.multiple_of, seed=self.seed)

    def scores(self) -> list[Tensor]:
        if self.method.learned:
            return self.masks.whole_scores()
        return [whole(scores) for scores in score_from(self.masks.sites, self.method.criterion, seed=self.seed)]
