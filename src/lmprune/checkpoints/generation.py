"""Let a model write as we say, whatever its checkpoint's generation_config says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def generate(
    model: Any, ids_BT: Tensor, mask_BT: Tensor | None = None, *, inputs: dict[str, Any] | None = None, **settings: Any
) -> Tensor:
    """(B, T + new): the ids, and what the model writes after them. mask_BT: None = nothing is padding.

    inputs: what else goes into the model. settings: of a GenerationConfig that has nothing else in it: transformers
    fills what one leaves open from the checkpoint's (suppressed tokens, penalties, stop strings, beams, …), so that is
    put away meanwhile.
    """
    from transformers import GenerationConfig

    theirs, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT) if mask_BT is None else mask_BT,
            generation_config=GenerationConfig(use_cache=True, **settings),
            **(inputs or {}),
        )
    finally:
        model.generation_config = theirs
