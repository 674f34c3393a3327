"""What can't be done with a model: sequences that are too long, tokens it does not know, weights that are elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UserError
from .pages import pages_of


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


def check_whole(model: Any, what: str) -> None:
    """Raises: UserError where the model's blocks stay in their files (`pages`). what: can't be done then."""
    if pages_of(model) is not None:
        raise UserError(f"{what} on a model that is read block by block; load it as a whole, without stream")


def check_one_device(model: Any, what: str) -> None:
    """Raises: UserError where the model's weights are on several devices. what: can't be done then."""
    if len({parameter.device for parameter in model.parameters() if not parameter.is_meta}) > 1:
        raise UserError(f"{what} on a model whose blocks are on several devices; load it on one, as device='cuda:0'")


def check_in_memory(model: Any) -> None:
    """Raises: UserError where accelerate has offloaded weights: what is written to them is lost."""
    absent = next((name for name, module in model.named_modules() if is_offloaded(module)), None)
    if absent is not None:
        raise UserError(
            f"the weights of {absent} are offloaded, and can't be changed there; "
            "load the whole model, without a device_map that offloads"
        )


def check_seq_len(model: Any, seq_len: int, whose: str = "the model") -> int:
    """`seq_len` as given, if the model has so many positions. whose: what a message calls the model."""
    limit = max_context(model.config)
    if limit is not None and seq_len > limit:
        raise UserError(f"seq_len {seq_len} is more than {whose}'s {limit} positions; use {limit} or less")
    return seq_len


def check_room(limit: int | None, prompt_tokens: int, new_tokens: int, name: str | None, *, spare: int = 0) -> None:
    """Raises: UserError where a prompt and what is written after it take more than `limit` positions of the model.

    name: of the model among several; None = the only one. spare: positions that an engine asks for beyond them.
    """
    if limit is not None and prompt_tokens + new_tokens + spare > limit:
        positions = f"the {limit} positions of {name}" if name else f"the model's {limit} positions"
        raise UserError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed {positions}; measure with fewer"
        )


def check_vocabulary(largest: int, model: Any) -> None:
    """Raises: UserError where the largest token id of what is read is none of the model's."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if largest >= vocabulary:
        raise UserError(
            f"token {largest} is outside the model's vocabulary of {vocabulary}; "
            "does the tokenizer belong to this model?"
        )


def check_tokens(input_ids: Tensor, model: Any) -> Tensor:
    """The calibration tokens (sequences, T), if the model can read them, and has something to predict."""
    if input_ids.ndim != 2:
        raise UserError(f"calibration tokens must be of shape (sequences, T), got {tuple(input_ids.shape)}")
    if input_ids.shape[1] < 2:
        raise UserError("in a sequence of one token nothing is predicted; make sequences of 2 tokens or more")
    check_seq_len(model, input_ids.shape[1])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if input_ids.min() < 0 or input_ids.max() >= vocabulary:
        raise UserError(
            f"the text has token id {int(input_ids.max())}, but the model knows {vocabulary} tokens; "
            "is this the model's own tokenizer?"
        )
    return input_ids
