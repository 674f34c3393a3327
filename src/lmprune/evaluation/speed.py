"""Tokens per second, measured side by side: prefill (a prompt at once) and decode (one token after the other)."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checkpoints.generation import generate
from ..data import load
from ..data.beginning import Beginning
from ..data.tokens import stream
from ..errors import UserError
from ..sites.limits import check_room, max_context
from .perplexity import inference

T = TypeVar("T")


@dataclass(frozen=True)
class Rate:
    """Tokens per second over the repeats: median, least, most."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class SpeedResult:
    """Batch 1. prefill: a forward of `prompt_tokens` that fills the KV cache; decode: greedy, from that cache."""

    prefill: Rate
    decode: Rate
    prompt_tokens: int
    new_tokens: int
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_speed(
    models: Mapping[str, Any],
    tokenizer: Any | None,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 32,
    repeats: int = 5,
) -> dict[str, SpeedResult]:
    """Measure the models in turn, `repeats` times after one warm-up, so that a busy moment hits all alike.

    tokenizer: to take the prompt from python-docs; None = random ids, which take the same time.
    Raises: UserError where prompt and new tokens exceed a model's positions, or the prompt text is too short.
    """
    if min(prompt_tokens, new_tokens, repeats) < 1:
        raise UserError("prompt tokens, new tokens and repeats must each be at least 1")
    for name, model in models.items():
        check_room(max_context(model.config), prompt_tokens, new_tokens, name)
    prompt_T = _prompt(models, tokenizer, prompt_tokens)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with inference(*models.values()):
        for _ in range(repeats + 1):
            for name, model in models.items():
                seconds[name].append(time_once(model, prompt_T, new_tokens))
    results = {}
    for name, times in seconds.items():
        prefill, decode = zip(*times[1:], strict=True)  # the first is the warm-up
        results[name] = SpeedResult(
            rate(prompt_tokens, prefill), rate(new_tokens, decode), prompt_tokens, new_tokens, repeats
        )
    return results


def _prompt(models: Mapping[str, Any], tokenizer: Any | None, prompt_tokens: int) -> Tensor:
    """(T,) token ids."""
    if tokenizer is None:
        vocabulary = min(model.get_input_embeddings().weight.shape[0] for model in models.values())
        return torch.randint(vocabulary, (prompt_tokens,), generator=torch.Generator().manual_seed(0))
    ids, _ = stream(tokenizer, load("python-docs"), max(prompt_tokens, 2))
    if len(ids) < prompt_tokens:
        raise UserError(f"the prompt text, python-docs, has only {len(ids)} tokens; ask for a shorter prompt")
    return torch.cat([torch.tensor(Beginning.of(tokenizer).ids, dtype=ids.dtype), ids])[:prompt_tokens]


def time_once(model: Any, prompt_T: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill and of one decode. prompt_T: ids, (T,) or (B, T)."""
    ids_BT = torch.atleast_2d(prompt_T).to(model.device)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    prefill, output = _timed(model, lambda: model(input_ids=ids_BT, use_cache=True, **last_only))
    ids_BT = torch.cat([ids_BT, output.logits[:, -1:].argmax(-1)], dim=1)
    # the cache holds all but the last token, so every step of `generate` is one token's forward
    decode, written = _timed(
        model,
        lambda: generate(
            model, ids_BT, inputs={"past_key_values": output.past_key_values}, do_sample=False,
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0,
        ),
    )  # fmt: skip
    assert written.shape[1] == ids_BT.shape[1] + new_tokens
    return prefill, decode


def _timed(model: Any, run: Callable[[], T]) -> tuple[float, T]:
    _wait(model)
    start = time.perf_counter()
    result = run()
    _wait(model)
    return time.perf_counter() - start, result


def _wait(model: Any) -> None:
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)


def rate(num_tokens: int, seconds: Sequence[float]) -> Rate:
    """Of runs of `num_tokens` each."""
    rates = [num_tokens / s for s in seconds]
    return Rate(statistics.median(rates), min(rates), max(rates))
