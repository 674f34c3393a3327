"""What is added to the loss so that learned scores sink: pure functions of scores (docs/methods.md, "GUM")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalty:
    """What presses on learned scores, the R of docs/methods.md.

    by_similarity: (u of a layer, λ_u) -> w, how much harder each neuron is pressed, from how alike it is to the others;
    None = all alike, which is `soft`'s penalty, and nobody needs to know u.
    """

    name: str
    by_similarity: Callable[[Tensor, float], Tensor] | None = None

    def weights(self, similarities: Sequence[Tensor], weight: float) -> list[Tensor] | None:
        """The w of `sparsity_penalty`.

        similarities: u, one (F_l,) a layer, 0 for masked neurons (`similarity.similarities`). weight: λ_u.
        """
        return None if self.by_similarity is None else [self.by_similarity(u_F, weight) for u_F in similarities]


def _alike(u_F: Tensor, weight: float) -> Tensor:
    return weight * u_F


def _unlike(u_F: Tensor, weight: float) -> Tensor:
    """The preference turned round, in each layer."""
    return weight * (u_F.max() - u_F)


#: what a method's `penalty` may be
PENALTIES: Mapping[str, Penalty | None] = {
    "none": None,
    "l1": Penalty("l1"),
    "uniqueness": Penalty("uniqueness", _alike),
    "anti_uniqueness": Penalty("anti_uniqueness", _unlike),
}


def sparsity_penalty(scores: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """mean over layers of mean_j sigmoid(S_j) · (1 + w_j), a scalar.

    scores: one (F_l,) a layer. weights: w, the same shapes; None = 0. Every neuron counts, masked or not.
    """
    layers = []
    for layer, scores_F in enumerate(scores):
        pressed = scores_F.sigmoid()
        layers.append((pressed if weights is None else pressed * (1 + weights[layer])).mean())
    return torch.stack(layers).mean()
