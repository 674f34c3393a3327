"""The control: scores that know nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sites.address import SCORED_BY_SEAMS
from ...sites.place import Place
from ..statistics import SeamStatistics
from . import criterion


@criterion("random", kinds=(*SCORED_BY_SEAMS, "experts"))
def random(site: Place, _stats: SeamStatistics, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), drawn from the seed alone: the same on every device and dtype."""
    return torch.rand(site.count, generator=generator)
