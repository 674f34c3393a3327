"""What a run goes down to, and what decides which neurons take part on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..budget.selection import Scope, select
from .optimizing import SCORE_LR
from .schedules import Schedule, cubic


@dataclass(frozen=True)
class Goal:
    """keep: the ratio of neurons in the end. num_steps: optimizer steps of the whole run. The rest as in `select`."""

    keep: float
    num_steps: int
    scope: Scope = "local"
    multiple_of: int = 1
    seed: int = 0

    @cached_property
    def schedule(self) -> Schedule:
        """The way there."""
        return cubic(self.keep, self.num_steps)

    def best(self, scores: Sequence[Tensor], keep: float, *, scope: Scope | None = None) -> list[Tensor]:
        """The neurons of each layer that stay by these scores at the ratio `keep`. scope: None = the goal's."""
        return select(scores, keep, scope=scope or self.scope, multiple_of=self.multiple_of, seed=self.seed)


class Chooser(ABC):
    """Decides which neurons take part, and what comes with it for scores that are learned."""

    def __init__(self, goal: Goal):
        self.goal = goal

    @abstractmethod
    def choose(self, step: int, keep: float) -> Sequence[Tensor] | None:
        """The kept neurons of each layer after `step` steps, where the schedule asks for `keep`; None = as they are."""

    @abstractmethod
    def scores(self) -> Sequence[Tensor]:
        """What was last chosen by, one (F_l,) a layer; NaN where a neuron was never scored."""

    @property
    def score_lr(self) -> float:
        """The learned scores' usual learning rate."""
        return SCORE_LR

    def penalty_weight(self, step: int, final: float) -> float:
        """λ(t), after `step` steps: falls to `final`, λ_f, with the keep ratio, λ_f · v(t) / v_f."""
        return final * self.goal.schedule(step) / self.goal.keep

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of it, as named tensors."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027  (nothing to go on from is fine)
        """Go on from what `state` gave."""
