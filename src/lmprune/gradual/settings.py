"""The dials of a gradual pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UserError, unknown
from ..sites.masks import COMPUTES, Compute


@dataclass(frozen=True)
class GradualSettings:
    """compute: see `masks.Compute`.

    penalty_weight: λ_f, the penalty's weight at the end. similarity_weight: λ_u, how much more a neuron is pressed
    that is like all others (u = 1). similarity_rows, similarity_every: token rows that u is estimated from, and the
    steps between two estimates, at most the schedule's wait: the first is made before the first neuron goes.
    num_milestones: how often a criterion that reads text is asked during the descent.
    warm_start: learned scores begin at the ranks of `obs`, whose refit is made at each milestone (`warm_start`).
    Raises: UserError for what would prune nothing, or something else.
    """

    compute: Compute = "gathered"
    penalty_weight: float = 0.67
    similarity_weight: float = 5.0
    similarity_rows: int = 1024
    similarity_every: int = 16
    num_milestones: int = 5
    warm_start: bool = False

    def __post_init__(self) -> None:
        if self.compute not in COMPUTES:
            raise unknown("compute", self.compute, COMPUTES)
        for name in ("similarity_rows", "similarity_every", "num_milestones"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        for name in ("penalty_weight", "similarity_weight"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name} must be 0 or more, got {value:g}")
