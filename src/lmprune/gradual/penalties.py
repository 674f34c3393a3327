"""What is added to the loss so that learned scores sink: pure functions of scores (docs/methods.md, "GUM")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Penalty = Literal["none", "l1", "uniqueness", "anti_uniqueness"]
PENALTIES: tuple[Penalty, ...] = get_args(Penalty)


def sparsity_penalty(scores: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """mean over layers of mean_j sigmoid(S_j) · (1 + w_j), a scalar.

    scores: one (F_l,) a layer. weights: w, the same shapes, how much harder each neuron is pressed; None = 0, which is
    `soft`'s penalty. Every neuron counts, masked or not.
    """
    layers = []
    for layer, scores_F in enumerate(scores):
        pressed = scores_F.sigmoid()
        layers.append((pressed if weights is None else pressed * (1 + weights[layer])).mean())
    return torch.stack(layers).mean()


def pressure(penalty: Penalty, similarities: Sequence[Tensor], weight: float) -> list[Tensor] | None:
    """The w of `sparsity_penalty`: `weight` (λ_u) times how alike each neuron is to the others of its layer.

    similarities: u, one (F_l,) a layer, 0 for masked neurons (`similarity.similarities`).
    `anti_uniqueness` turns the preference round: max(u) - u, in each layer.
    """
    if penalty == "uniqueness":
        return [weight * u_F for u_F in similarities]
    if penalty == "anti_uniqueness":
        return [weight * (u_F.max() - u_F) for u_F in similarities]
    return None
