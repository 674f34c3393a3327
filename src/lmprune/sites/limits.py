"""What can't be done with a model: sequences that are too long, weights that are elsewhere."""

from __future__ import annotations

from typing import Any

from ..errors import UserError


def max_context(config: Any) -> int | None:
    """The longest sequence a model of this config takes; None where it names no limit (bloom)."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    return None


def is_offloaded(module: Any) -> bool:
    """Whether accelerate fetches the module's own weights only when it computes."""
    return hasattr(module, "_hf_hook") and any(weight.is_meta for weight in module.parameters(recurse=False))


def check_in_memory(model: Any) -> None:
    """Raises: UserError where accelerate has offloaded weights: what is written to them is lost."""
    absent = next((name for name, module in model.named_modules() if is_offloaded(module)), None)
    if absent is not None:
        raise UserError(
            f"the weights of {absent} are offloaded, and can't be changed there; "
            "load the whole model, without a device_map that offloads"
        )
