"""What is known of a reader's inputs, and of what it should put out: weighted second moments over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..precision import full_products, in_float64, place_of_float64
from ..processes import Share
from ..sites.site import Site
from .elimination import LeastSquares

#: rows of a matrix below which half of a product takes as long as the whole
_PANEL = 256


class Moments:
    """Weighted second moments over tokens of one layer's neuron outputs, with a row of ones for the reader's bias.

    own: the share of what the dense reader gives on these inputs that the reader is asked for.
    """

    def __init__(self, site: Site, own: float = 1.0):
        self.address, self.own = site.address, own
        self.pinned = int(site.reader_bias() is not None)
        size, width = site.width + self.pinned, site.reader().shape[1]
        self.weight = 0.0
        self.place = place_of_float64(site.reader().device)
        self.sum_FF = torch.zeros(size, size, dtype=torch.float64, device=self.place)
        self.drift_FD = torch.zeros(size, width, dtype=torch.float64, device=self.place)

    def add(self, h_NF: Tensor, weights_N: Tensor | None = None, drift_BTD: Tensor | None = None) -> None:
        """weights_N: of the tokens, 1 if None.

        drift_BTD: what the reader should put out beyond its `own`.
        """
        x_NF = h_NF.float()
        weights_N = x_NF.new_ones(len(x_NF)) if weights_N is None else weights_N
        if self.pinned:
            x_NF = torch.cat([x_NF, x_NF.new_ones(len(x_NF), 1)], dim=1)
        weighted_FN = (x_NF * weights_N[:, None]).T
        self.weight += float(weights_N.sum())
        with full_products():
            for rows in _panels(len(self.sum_FF)):
                self.sum_FF[rows, rows.start :] += (weighted_FN[rows] @ x_NF[:, rows.start :]).to(self.place)
            if drift_BTD is not None:
                self.drift_FD += (weighted_FN @ drift_BTD.flatten(0, -2).float()).to(self.place)

    def add_up(self, share: Share) -> None:
        """What the other processes have seen comes in."""
        self.weight = share.number(self.weight)
        share.total(self.sum_FF)
        share.total(self.drift_FD)

    def problem(self, site: Site, *, rel_damp: float, per_neuron: bool) -> LeastSquares:
        """The sums are used up by it: they are as large as all that the solver has."""
        moment_FF = self.sum_FF.div_(self.weight)
        for rows in _panels(len(moment_FF)):
            moment_FF[rows.stop :, rows] = moment_FF[rows, rows.stop :].T
        reader_FD = in_float64(site.reader().detach())
        if (bias_D := site.reader_bias()) is not None:
            reader_FD = torch.cat([reader_FD, in_float64(bias_D.detach())[None]])
        drifted = bool(self.drift_FD.any())
        cross_FD = self.drift_FD.div_(self.weight).addmm_(moment_FF, reader_FD, alpha=self.own)
        problem = LeastSquares.of(
            moment_FF,
            cross_FD,
            reader_FD,
            rel_damp=rel_damp,
            per_neuron=per_neuron,
            pinned=self.pinned,
            size=site.size,
        )
        return replace(problem, drifted=drifted)


def _panels(size: int) -> Iterator[slice]:
    """Rows of a symmetric matrix, of which what lies left of the panel is known from the panels before it."""
    step = max(-(-size // 4), _PANEL)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
