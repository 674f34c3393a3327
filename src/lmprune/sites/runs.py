"""Units as runs of rows, in what has no model: the one place that says where a unit's rows are."""

from __future__ import annotations

import torch
from torch import Tensor


def runs_of(units: Tensor, size: int) -> Tensor:
    """Every index of the runs of length `size` that `units` (K,) are: (K · size,)."""
    return units if size == 1 else (units[:, None] * size + torch.arange(size, device=units.device)).flatten()
