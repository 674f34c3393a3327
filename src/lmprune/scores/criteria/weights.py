"""Scores from the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.ffn import FFN
from ..statistics import SeamStatistics
from . import criterion


@criterion("magnitude")
def magnitude(ffn: FFN, _stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """L2 norm of all that belongs to the neuron: its rows of the writers with their biases, and its reader column.

    One joint norm, so that the count is the one asked for (METHODS 2; GUM's code ranks writers and reader apart).
    """
    squares = [w.float().square().sum(1) for w in (*ffn.writers(), ffn.reader())]
    squares += [b.float().square() for b in ffn.writer_biases()]
    return torch.stack(squares).sum(0).sqrt()


def reader_norms(ffn: FFN, order: int = 2) -> Tensor:
    """‖down_j‖ of each neuron's reader column, (F,) fp32 on the CPU like the statistics it is multiplied with."""
    return ffn.reader().detach().float().norm(p=order, dim=1).cpu()
