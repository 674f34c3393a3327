"""A Hugging Face folder: weights, configs, tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.checkpoint import write_model
from . import Order

#: as `--dtype` calls them
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def save_model(order: Order, folder: Path) -> None:
    """Write the order's model, in its dtype (else as its files were), and its tokenizer."""
    write_model(order.model, folder, order.tokenizer, FLOATS.get(order.dtype or ""))
