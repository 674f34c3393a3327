"""Scores of experts: how often they are chosen, and how much they then add."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.experts import Experts
from ..routing import RoutingStatistics
from . import criterion


@criterion("reap", needs={"routed", "gated_norm"}, kinds=("experts",))
def reap(_site: Experts, stats: RoutingStatistics, _generator: torch.Generator) -> Tensor:
    """Mean over the tokens that go to the expert of gate · ‖output‖₂ (arXiv 2510.13999); 0 where none does."""
    return stats.total("gated_norm") / stats.total("routed").clamp_min(1)


@criterion("frequency", needs={"routed"}, kinds=("experts",))
def frequency(_site: Experts, stats: RoutingStatistics, _generator: torch.Generator) -> Tensor:
    """The share of tokens that go to the expert."""
    return stats.total("routed") / stats.num_tokens


@criterion("router", kinds=("experts",))
def router(site: Experts, _stats: RoutingStatistics, _generator: torch.Generator) -> Tensor:
    """L2 norm of the expert's row of the router."""
    return site.rows().detach().float().norm(dim=1)
