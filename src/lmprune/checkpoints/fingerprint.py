"""What tells a model from another, whatever its path: the path of a checkpoint may come to hold another model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .tensor_file import raw


def weights_fingerprint(model: Any) -> str:
    """SHA-256 of the model's weights, by their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(raw(tensor))
    return digest.hexdigest()


def tensors_fingerprint(
    tensors: Mapping[str, Tensor], seen: Callable[[str, Tensor], object] = lambda _name, _tensor: None
) -> str:
    """SHA-256 of tensors, by their names, with their types and shapes; each is asked for once, and shown to `seen`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw(tensor))
        seen(name, tensor)
    return digest.hexdigest()
