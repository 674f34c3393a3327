"""What presses on learned scores in a step: the penalty R, how alike neurons are, and whether R was in the loss at all.

The formulas are in `scores.penalties`; docs/methods.md, "GUM", has them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..scores.penalties import Penalty, sparsity_penalty
from ..sites.masks import UnitMasks
from .goal import Chooser
from .schedules import WAIT
from .settings import GradualSettings
from .similarity import SimilarityEstimate


class Pressing:
    """A method's penalty at work. estimate: of u, for a penalty that asks for it.

    every: the steps between two estimates; the first is made before the first neuron goes.
    """

    def __init__(self, penalty: Penalty, masks: UnitMasks, chooser: Chooser, settings: GradualSettings):
        self._penalty, self._masks, self._chooser, self._settings = penalty, masks, chooser, settings
        self._reached = False
        self.every = min(settings.similarity_every, max(1, int(WAIT * chooser.goal.num_steps)))
        self.estimate: SimilarityEstimate | None = None
        if penalty.by_similarity is not None:
            self.estimate = SimilarityEstimate(masks, max_rows=settings.similarity_rows)
            self.estimate.observe()

    def begin_step(self, step: int) -> None:
        """The neurons that take part are chosen."""
        self._reached = False
        if self.estimate is not None and step > 0 and step % self.every == 0:
            self.estimate.refresh()

    def weight(self, step: int) -> float:
        """λ(t)."""
        return self._chooser.penalty_weight(step, self._settings.penalty_weight)

    def penalty(self, step: int) -> Tensor:
        """R of this step, a scalar, that knows whether a gradient goes through it."""
        similarities = self.estimate.similarities if self.estimate else []
        weights = self._penalty.weights(similarities, self._settings.similarity_weight)
        penalty = self.weight(step) * sparsity_penalty(self._masks.scores, weights)
        if penalty.requires_grad:
            penalty.register_hook(self._reach)
        return penalty

    def _reach(self, _grad: Any) -> None:
        self._reached = True

    @property
    def reached(self) -> bool:
        """Whether a gradient of this step went through the penalty."""
        return self._reached
