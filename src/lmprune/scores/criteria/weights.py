"""Scores from the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.site import Site
from ..statistics import SeamStatistics
from . import criterion

#: rows or columns
_AT_ONCE = 64


@criterion("magnitude")
def magnitude(site: Site, _stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """L2 norm of all that belongs to the unit: its rows of the writers with their biases, and its reader columns.

    One joint norm, so that the count is the one asked for (GUM's code ranks writers and reader apart).
    """
    squares = [_squares(w) for w in (*site.writers(), site.reader())]
    squares += [b.float().square() for b in site.writer_biases()]
    return torch.stack([site.per_unit(s) for s in squares]).sum(0).sqrt()


def _squares(weight_UD: Tensor) -> Tensor:
    """The sum of squares of each row, fp32: a part of the matrix at a time, which the processor's cache holds."""
    if weight_UD.stride(0) < weight_UD.stride(1):  # its columns lie together
        parts = weight_UD.split(_AT_ONCE, dim=1)
        return torch.stack([part.float().square().sum(1) for part in parts]).sum(0)
    return torch.cat([part.float().square().sum(1) for part in weight_UD.split(_AT_ONCE)])


def reader_norms(site: Site, order: int = 2) -> Tensor:
    """‖W_j‖ of the reader's column of each input of the seam, (F,) fp32 on the CPU like the statistics."""
    return site.reader().detach().float().norm(p=order, dim=1).cpu()
