"""What `lmprune eval` does; returns its record (docs/json.md)."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from .. import data as texts
from ..checkpoints import models, sources
from ..data import TextData, pairs
from ..data.beginning import Beginning
from ..data.overlap import read_before, warning
from ..data.records import PairData
from ..data.tokens import cover
from ..errors import UserError, unknown
from ..evaluation import predictions, tasks
from ..evaluation.decoding import DECODINGS
from ..evaluation.perplexity import perplexity
from ..progress import Teller
from .answers import answers, check_prompts, compared
from .inspection import find_plan
from .opening import check_tokenizer, open_model, streaming
from .reproduce import data_record


def evaluate(
    terminal: Teller, *, model: str, data: str, data_dir: Path | None, split: str, holdout: float | None,
    context: int | None, stride: int | None, max_tokens: int | None, baseline: str | None, dtype: str, device: str,
    chat_template: bool, stream: bool, trust_remote_code: bool, prompts: Path | None, answer_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune eval` on a text, whose options these are. Raises: UserError."""
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code, "stream": stream}
    questions = check_prompts(prompts, answer_tokens)
    check_length(data, max_tokens)
    if baseline is not None:
        sources.resolve(baseline)
    read = partial(
        texts.load, data, split, data_dir=data_dir, chat_template=chat_template, num_tokens=max_tokens, held_out=holdout
    )  # fmt: skip
    pruned, tokenizer, text = open_model(terminal, model, data, read, data_dir=data_dir, **how)
    assert text is not None
    terminal.note(f"evaluating on {text.name}")
    seen = told_if_read_before(terminal, model, text)
    dense = None
    if baseline is not None:
        with terminal.busy(f"loading {baseline}"):
            dense = models.load(baseline, note=terminal.note, **streaming(terminal, baseline, how))
    input_ids, covered = cover(tokenizer, text, max_tokens)
    if baseline is not None:
        check_tokenizer(terminal, tokenizer, baseline, text, "the baseline", trust_remote_code)

    start = time.perf_counter()
    with terminal.stages() as stages:
        result = perplexity(
            pruned, input_ids, begin=Beginning.of(tokenizer).ids, context=context, stride=stride,
            num_bytes=sum(len(document.encode()) for document in covered),
            num_words=sum(len(document.split()) for document in covered),  # none goes on in the next document
            baseline=dense, progress=stages("windows"),
        )  # fmt: skip
    seconds = time.perf_counter() - start
    before = answers(terminal, dense, tokenizer, questions, answer_tokens) if dense else None
    answered = compared(terminal, before, pruned)
    return {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        **result.to_dict(),
        "data": data_record(text, tokenizer),
        "read_before": seen,
        "dtype": str(pruned.dtype).removeprefix("torch."),
        "seconds": seconds,
        **({"answers": answered} if baseline else {}),
    }


def evaluate_task(
    terminal: Teller, *, model: str, data: str, data_dir: Path | None, split: str, holdout: float | None,
    limit: int | None, decode: str, max_new_tokens: int | None, batch_size: int, out: Path | None, dtype: str,
    device: str, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune eval` on pairs, whose options these are. Raises: UserError."""
    check_decoding(decode)
    if out is not None:
        predictions.check_predictions_folder(out)
    read = partial(_read_pairs, data, split, data_dir, holdout)
    pruned, tokenizer, found = open_model(
        terminal, model, data, read, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    assert isinstance(found, PairData)
    terminal.note(f"evaluating on {found.name}")
    seen = told_if_read_before(terminal, model, found)
    task = tasks.task_of(data)
    max_new_tokens = task.max_new_tokens if max_new_tokens is None else max_new_tokens

    start = time.perf_counter()
    with terminal.stages() as stages, models.quiet():
        result = tasks.evaluate(
            pruned, tokenizer, found, DECODINGS[decode], task=task, limit=limit, max_new_tokens=max_new_tokens,
            batch_size=batch_size, folder=out, stages=stages,
        )  # fmt: skip
    if result.contexts_cut:
        terminal.note(f"{result.contexts_cut} of {result.items} contexts are too long and lost their beginning")
    record = {
        "model": model,
        **result.to_dict(),
        "decode": {"name": decode, **vars(DECODINGS[decode])},
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "data": data_record(found, tokenizer),
        "read_before": seen,
        "out": out and str(out),
        "dtype": str(pruned.dtype).removeprefix("torch."),
        "seconds": time.perf_counter() - start,
    }
    if out is not None:
        (out / predictions.SCORES).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def check_length(data: str, max_tokens: int | None) -> None:
    """Raises: UserError where a text has no end, and nobody said how much of it to read."""
    if texts.as_long_as_you_like(data) and max_tokens is None:
        raise UserError(f"{data} is as long as you like; say how much to read with --max-tokens")


def check_decoding(name: str) -> None:
    """Raises: UserError for a way to decode that there is not."""
    if name not in DECODINGS:
        raise unknown("decoding", name, DECODINGS)


def told_if_read_before(terminal: Teller, model: str, text: TextData | PairData) -> str | None:
    """What fitted the model to this text, as its plan has it; that is said."""
    plan = find_plan(model)
    seen = read_before(text.provenance, plan.provenance) if plan else None
    if seen is not None:
        terminal.note(warning(seen, text.name))
    return seen


def _read_pairs(data: str, split: str, data_dir: Path | None, holdout: float | None, *, tokenizer: Any) -> PairData:
    pairs.eos_id(tokenizer)
    return pairs.load(data, split, data_dir=data_dir, held_out=holdout)
