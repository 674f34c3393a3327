"""In which precision sums are taken and systems solved, and where, whatever device a model is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


def precise(values: Tensor) -> torch.dtype:
    """fp32, or fp64 where the values already are."""
    return torch.promote_types(values.dtype, torch.float32)


def in_float64(values: Tensor) -> Tensor:
    """Where they are; on the processor, where their device has no float64 (Apple's, some of Intel's)."""
    return values.to(place_of_float64(values.device), torch.float64)


@cache
def place_of_float64(device: torch.device) -> torch.device:
    """Where what belongs to a device is solved in float64."""
    try:
        (torch.eye(2, dtype=torch.float64, device=device) @ torch.eye(2, dtype=torch.float64, device=device)).sum()
    except (RuntimeError, TypeError):  # Intel's say the one, Apple's the other
        return torch.device("cpu")
    return device


@contextmanager
def full_products() -> Iterator[None]:
    """Products of float32 matrices are of float32 for the length of a `with` block, though the program lets a GPU round
    them to TF32's ten bits: second moments of that are no longer positive definite."""
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)
