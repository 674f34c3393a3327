"""What tells a model from another, whatever its path: the path of a checkpoint may come to hold another model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def weights_fingerprint(model: Any) -> str:
    """SHA-256 of the model's weights, by their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors, by their names, with their types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    """Its numbers as bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
