"""Cheap repairs of a layer after neurons were chosen (the least-squares refit lives in `obs`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sites.site import Site

#: the statistic that it needs, the inputs' mean
MEAN = frozenset({"sum_h"})


@torch.no_grad()
def bias_compensation(site: Site, kept: Tensor, mean_h: Tensor) -> tuple[Tensor, Tensor]:
    """FLAP's repair: what the removed units add on average becomes part of the reader's bias.

    kept: sorted indices (K,) of the units that stay.
    mean_h: (F,), the mean of each input of the seam over calibration tokens.
    Returns the reader (K · size, D) and the bias (D,), fp64 on the CPU: for `set_reader`, after `keep(kept)`.
    Where the reader had no bias it gets one, which a stock checkpoint can't hold: it then needs lmprune's shim.
    """
    reader_FD = site.reader().detach()
    removed = torch.ones(site.width, dtype=torch.bool)
    inputs = site.inputs_of(kept)
    removed[inputs.cpu()] = False
    bias_D = mean_h.cpu().double()[removed] @ reader_FD.cpu().double()[removed]
    if (bias := site.reader_bias()) is not None:
        bias_D += bias.cpu()
    return reader_FD[inputs.to(reader_FD.device)], bias_D
