"""Scores from what neurons put out on calibration text."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.site import Site
from ..statistics import SeamStatistics
from . import criterion
from .weights import reader_norms


@criterion("activation", needs={"sum_h2"})
def activation(site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """rms(h_j) · ‖down_j‖₂: the size of what the neuron adds to the residual stream."""
    return stats.per_token("sum_h2").sqrt() * reader_norms(site)


@criterion("fluctuation", needs={"sum_h", "sum_h2"})
def fluctuation(site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """var(h_j) · ‖down_j‖₂², standardised over the layer (FLAP's WIFV): what a bias can't stand in for.

    Standardised, so that layers of different scales can be ranked together; within a layer the order is the same.
    """
    raw = site.per_unit(stats.variance() * reader_norms(site).square())
    spread = raw.std(correction=0)
    return (raw - raw.mean()) / spread if spread > 0 else torch.zeros_like(raw)


@criterion("wanda_sp", needs={"sum_h2"})
def wanda_sp(site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """‖h_j‖₂ · Σ_d |down_jd|: Wanda's score of each weight, summed over the reader column (FLAP's Wanda-sp)."""
    return stats.total("sum_h2").sqrt() * reader_norms(site, order=1)


@criterion("two_ssp", needs={"norm_per_sequence"})
def two_ssp(_site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """Mean over sequences of ‖h_j‖₂, without the weights: stage 1 of 2SSP."""
    return stats.per_sequence("norm_per_sequence")


@criterion("minitron", needs={"mean_abs_sq"})
def minitron(_site: Site, stats: SeamStatistics, _generator: torch.Generator) -> Tensor:
    """sqrt(Σ_sequences (mean_n |h_nj|)²), without the weights: the L2 hook of NVIDIA modelopt's Minitron."""
    return stats.total("mean_abs_sq").sqrt()
