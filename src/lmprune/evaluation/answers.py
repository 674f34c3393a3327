"""What a model answers, whether another would have written the same, and whether it goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..checkpoints.generation import ends_of
from .decoding import DECODINGS, Output, decode
from .perplexity import inference

#: an answer whose `repetition` is this or more repeats itself: from here on it is loops, below it lists
REPETITIVE = 0.3
_NGRAM = 4
_BATCH = 8


def answer(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[Output]:
    """What the model writes after each prompt (token ids), always its first choice."""
    found: dict[int, Output] = {}
    for batch in decode(
        model, tokenizer, prompts, DECODINGS["greedy"], max_new_tokens=max_new_tokens, batch_size=_BATCH,
        ends=ends_of(model, tokenizer),
    ):  # fmt: skip
        found |= batch
    return [found[i] for i in range(len(prompts))]


def same_choices(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Output]) -> list[int]:
    """Of each answer, at how many of its tokens (that which ends it included) it is the model's own first choice, too,
    after the prompt and the answer's tokens before it."""
    found = []
    with inference(model):
        for prompt, said in zip(prompts, answers, strict=True):
            ids_1T = torch.tensor([[*prompt, *said.ids]], device=model.device)
            logits_TV = model(input_ids=ids_1T[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
            found.append(int((logits_TV.argmax(-1) == ids_1T[0, len(prompt) :]).sum()))
    return found


def repetition(ids: Sequence[int]) -> float:
    """The share of runs of four tokens that have been there before in the same text (rep-4 of Welleck et al. 2020).

    >>> repetition([1, 2, 3, 4, 5, 6]), repetition([1, 2] * 6), repetition([1, 2, 3])
    (0.0, 0.7777777777777778, 0.0)
    """
    runs = [tuple(ids[i : i + _NGRAM]) for i in range(len(ids) - _NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
