"""LoRA for those who can't train all weights: small factors are trained, and merged before the cut."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

from ..errors import UserError


def check_peft() -> None:
    """Raises: UserError where peft is missing."""
    if find_spec("peft") is None:
        raise UserError("--lora-rank needs peft; install it with: pip install 'lmprune[lora]'")


def add_lora(model: Any, rank: int) -> Any:
    """The model with trainable factors of `rank` on all its linear layers but the output embedding; all else frozen."""
    from peft import LoraConfig, get_peft_model

    # alpha = 2·rank, peft's own advice; B starts at 0, so that nothing changes before the first step
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has understood Conv1D, and what transformers calls things in v6
        return get_peft_model(model, config)


def merged(model: Any) -> Any:
    """The plain model, with what the factors learned in its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
