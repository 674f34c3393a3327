"""What tells a model from another, whatever its path: the path of a checkpoint may come to hold another model."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def weights_fingerprint(model: Any) -> str:
    """SHA-256 of the model's weights, by their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
