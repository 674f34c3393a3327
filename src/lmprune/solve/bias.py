"""Cheap repairs of a layer after neurons were chosen (the least-squares refit lives in `obs`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sites.ffn import FFN


@torch.no_grad()
def bias_compensation(ffn: FFN, kept: Tensor, mean_h: Tensor) -> tuple[Tensor, Tensor]:
    """FLAP's repair: what the removed neurons add on average becomes part of `down`'s bias.

    kept: sorted indices (K,) of the neurons that stay. mean_h: (F,), each neuron's mean output over calibration tokens.
    Returns the reader (K, D) and the bias (D,), fp64 on the CPU: for `ffn.set_reader`, after `ffn.keep(kept)`.
    Where `down` had no bias it gets one, which a stock checkpoint can't hold: it then needs lmprune's shim.
    """
    reader_FD = ffn.reader().detach()
    removed = torch.ones(ffn.width, dtype=torch.bool)
    removed[kept.cpu()] = False
    bias_D = mean_h.cpu().double()[removed] @ reader_FD.cpu().double()[removed]
    if (bias := ffn.reader_bias()) is not None:
        bias_D += bias.cpu()
    return reader_FD[kept.to(reader_FD.device)], bias_D
