"""Text that the model writes itself: calibration without any data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..checkpoints.generation import generate
from ..errors import UserError
from ..sites.limits import max_context
from .beginning import Beginning
from .records import Records
from .tokens import encode

_BATCH = 32
_LENGTH = 512


def load(model: Any, tokenizer: Any, num_tokens: int | None, seed: int) -> Records:
    """Samples from what the tokenizer puts before a text (else its bos, or eos) at temperature 1, each to its end or
    512 tokens, until there are `num_tokens`.

    The same seed gives the same text, on the same machine and versions; torch's global random state is left alone.
    Raises: UserError without a model, a tokenizer or a number of tokens, or where the model has no start token.
    """
    if model is None or tokenizer is None or num_tokens is None:
        raise UserError("the source self needs a model and its tokenizer to write the text, and num_tokens")
    begin = Beginning.of(tokenizer)
    start = begin.ids or [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    if not start:
        raise UserError("the source self needs a start token, and this tokenizer has neither bos nor eos")
    device = model.device
    documents: list[str] = []
    written = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        while written < num_tokens:
            batch = _sample(model, tokenizer, start)
            lengths = [len(encode(tokenizer, text).input_ids) for text in batch]  # as they will be read again
            if not sum(lengths):
                raise UserError("the model ends every text before its first word, so it can't write calibration text")
            for text, length in zip(batch, lengths, strict=True):
                if written < num_tokens:
                    documents.append(text)
                    written += length
    provenance = {
        "split": "written by the model",
        "model": str(model.config._name_or_path),
        "seed": seed,
        "tokens": written,
    }
    return Records(f"self ({len(documents)} texts the model wrote, seed {seed})", documents, provenance)


def _sample(model: Any, tokenizer: Any, start: Sequence[int]) -> list[str]:
    length = min(_LENGTH, max_context(model.config) or _LENGTH)
    input_ids = torch.tensor([list(start)] * _BATCH, device=model.device)
    eos = tokenizer.eos_token_id
    # top_k 0: the model's plain distribution
    output = generate(
        model, input_ids, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length - len(start),
        eos_token_id=eos, pad_token_id=next((i for i in (tokenizer.pad_token_id, eos) if i is not None), 0),
    )  # fmt: skip
    return tokenizer.batch_decode(output, skip_special_tokens=True)
