"""What a run goes down to, and what decides which neurons take part on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..budget.choosing import check_counts, check_widths, choose
from ..budget.keeps import Keep
from ..budget.selection import Scope
from ..sites.site import Site
from .optimizing import SCORE_LR
from .schedules import Schedule, cubic


@dataclass(frozen=True)
class Goal:
    """keep: the ratio of units in the end, or one for each kind. num_steps: optimizer steps of the whole run.

    named: somebody did name this ratio, so each site is to come near it. The rest as in `choosing.choose`.
    """

    keep: Keep
    num_steps: int
    scope: Scope = "local"
    multiple_of: int = 1
    seed: int = 0
    named: bool = True

    @property
    def lowest(self) -> float:
        """The ratio of the kind that loses most, which the schedule goes down to."""
        return min(self.keep.values()) if isinstance(self.keep, Mapping) else self.keep

    @cached_property
    def schedule(self) -> Schedule:
        """The way there."""
        return cubic(self.lowest, self.num_steps)

    def check(self, sites: Sequence[Site]) -> None:
        """Raises: UserError where these sites can't come down to it."""
        if self.named:
            check_counts(sites, self.keep, self.scope)
        check_widths(sites, self.keep, self.multiple_of)

    def at(self, keep: float) -> Keep:
        """What stays where the schedule asks for `keep`: each kind has come as far down its own way."""
        if not isinstance(self.keep, Mapping):
            return keep
        if keep == self.lowest:
            return self.keep
        done = (1 - keep) / (1 - self.lowest)
        return {kind: 1 - (1 - ratio) * done for kind, ratio in self.keep.items()}

    def best(
        self, sites: Sequence[Site], scores: Sequence[Tensor], keep: Keep, *, scope: Scope | None = None
    ) -> list[Tensor]:
        """The units of each site that stay by these scores at this ratio. scope: None = the goal's."""
        return choose(sites, scores, keep, scope=scope or self.scope, multiple_of=self.multiple_of, seed=self.seed)


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
        return final * self.goal.schedule(step) / self.goal.lowest

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of it, as named tensors."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027  (nothing to go on from is fine)
        """Go on from what `state` gave."""
