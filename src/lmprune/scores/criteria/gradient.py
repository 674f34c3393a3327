"""Scores from how much the loss cares: first-order estimates of what removing a neuron does to it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.site import Site
from ..statistics import SeamStatistics
from . import criterion


@criterion("taylor", needs={"taylor"})
def taylor(_site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """Mean over sequences of |Σ_n h_nj ∂L/∂h_nj|: the change of a sequence's loss, to first order, if the neuron goes.

    The absolute value is taken per sequence: summed over the text, signs would cancel.
    """
    return stats.per_sequence("taylor")


@criterion("sensitivity", needs={"sensitivity"})
def sensitivity(_site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """Mean over sequences of |Σ_θ θ ∂L/∂θ| over the neuron's writer rows, biases and reader column (GUM)."""
    return stats.per_sequence("sensitivity")


@criterion("llm_pruner", needs={"weight_taylor"})
def llm_pruner(_site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """Σ_θ |θ ∂L/∂θ| over the neuron's weights, gradient of the whole text: Taylor of LLM-Pruner, Torch-Pruning."""
    return stats.total("weight_taylor")
