"""The dials of a gradual pruning."""

from __future__ import annotations

from dataclasses import dataclass

from ..sites.masks import Compute


@dataclass(frozen=True)
class GradualSettings:
    """compute: see `masks.Compute`.

    penalty_weight: λ_f, the penalty's weight at the end. similarity_weight: λ_u, how much more a neuron is pressed
    that is like all others (u = 1). similarity_rows, similarity_every: token rows that u is estimated from, and the
    steps between two estimates, at most the schedule's wait: the first is made before the first neuron goes.
    num_milestones: how often a criterion that reads text is asked during the descent.
    warm_start: learned scores begin at the ranks of `obs`, whose refit is made at each milestone (`warm_start`).
    """

    compute: Compute = "gathered"
    penalty_weight: float = 0.67
    similarity_weight: float = 5.0
    similarity_rows: int = 1024
    similarity_every: int = 16
    num_milestones: int = 5
    warm_start: bool = False
