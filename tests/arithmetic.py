"""How far two ways to compute one thing may be apart: what follows from the arithmetic, not from one processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: of operations that add up; in which order, and so to which last bits, is the processor's and the shapes' business
_SUMS = ("mm", "dot", "softmax", "mean", "sum", "norm", "var", "attention", "conv")
#: roundings that can pile up on the way through a tiny model and back, beside the largest of its values
_ROUNDINGS = 1000


class _Sums(TorchDispatchMode):
    """Notes in which dtypes sums are made."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple | list) and out else out
        name = str(func).split(".")[1]
        adds_up = any(part in name for part in _SUMS) and "cumsum" not in name  # which counts positions
        if adds_up and isinstance(first, Tensor) and first.is_floating_point():
            self.dtypes.add(first.dtype)
        return out


@torch.no_grad()
def tolerance(model: Any, input_ids: Tensor) -> float:
    """Relative to the largest value: a thousand roundings of the coarsest dtype in which the model adds up.

    A model in float64 may still have attention, norms or a softmax in float32.
    """
    with _Sums() as sums:
        model(input_ids)
    return _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in sums.dtypes)
