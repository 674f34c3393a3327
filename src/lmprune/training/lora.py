"""LoRA for those who can't train all weights: small factors are trained, and merged before the cut."""

from __future__ import annotations

from typing import Any

from ..errors import UserError


def add_lora(model: Any, rank: int) -> Any:
    """The model with trainable factors of `rank` on all its linear layers but the output embedding; all else frozen.

    Raises: UserError where peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora-rank needs peft; install it with: pip install 'lmprune[lora]'") from None
    if rank < 1:
        raise UserError(f"lora-rank must be at least 1, got {rank}")
    # alpha = 2·rank, peft's own advice; B starts at 0, so that nothing changes before the first step
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def merged(model: Any) -> Any:
    """The plain model, with what the factors learned in its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
