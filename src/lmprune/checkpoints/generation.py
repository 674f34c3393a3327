"""Let a model write as we say, whatever its checkpoint's generation_config says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: those of the tokenizer, and of the model's settings (chat models have more)."""
    named = (tokenizer.eos_token_id, *(getattr(of, "eos_token_id", None) for of in _settings(model)))
    found = (each if isinstance(each, list | tuple) else [each] for each in named)
    return sorted({token for tokens in found for token in tokens if token is not None})


def _settings(model: Any) -> Iterable[Any]:
    return (model.config, getattr(model, "generation_config", None))


def continued(
    model: Any, contexts: Sequence[Sequence[int]], *, ends: Sequence[int], **settings: Any
) -> list[tuple[int, ...]]:
    """What the model writes after each context (token ids), the token of `ends` that ended it included.

    settings: see `generate`; contexts are padded on the left.
    """
    padding, longest = ends[0] if ends else 0, max(map(len, contexts))
    # any token serves as padding, for it is masked
    ids_BT = torch.tensor([[padding] * (longest - len(context)) + [*context] for context in contexts])
    mask_BT = torch.tensor([[0] * (longest - len(context)) + [1] * len(context) for context in contexts])
    output_BT = generate(
        model, ids_BT.to(model.device), mask_BT.to(model.device), eos_token_id=[*ends] or None, pad_token_id=padding,
        **settings,
    )  # fmt: skip
    return [_to_its_end(row, ends) for row in output_BT[:, longest:].tolist()]


def _to_its_end(row: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    return tuple(row[: next((place + 1 for place, token in enumerate(row) if token in ends), None)])


def without_end(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """What `continued` gave, without the token that ended it, if one did."""
    return ids[:-1] if ids and ids[-1] in ends else ids


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
