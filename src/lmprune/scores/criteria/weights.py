"""Scores from the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.site import Site
from ..statistics import SeamStatistics
from . import criterion


@criterion("magnitude")
def magnitude(site: Site, _stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """L2 norm of all that belongs to the unit: its rows of the writers with their biases, and its reader columns.

    One joint norm, so that the count is the one asked for (GUM's code ranks writers and reader apart).
    """
    squares = [w.float().square().sum(1) for w in (*site.writers(), site.reader())]
    squares += [b.float().square() for b in site.writer_biases()]
    return torch.stack([site.per_unit(s) for s in squares]).sum(0).sqrt()


def reader_norms(site: Site, order: int = 2) -> Tensor:
    """‖W_j‖ of the reader's column of each input of the seam, (F,) fp32 on the CPU like the statistics."""
    return site.reader().detach().float().norm(p=order, dim=1).cpu()
