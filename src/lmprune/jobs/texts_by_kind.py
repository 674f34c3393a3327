"""What `lmprune eval --texts` does: the damage by kind of text; returns its record (docs/json.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import data
from ..checkpoints import devices, dtypes, models, sources
from ..data import TextData
from ..data.beginning import Beginning
from ..data.tokens import cover
from ..evaluation.intervals import normal
from ..evaluation.perplexity import PerplexityResult, default_context, perplexity
from ..progress import Teller
from .evaluate import told_if_read_before
from .opening import check_tokenizer
from .reproduce import data_record

#: of each kind, and a window: many windows, so that the intervals mean something
TOKENS, CONTEXT = 8192, 512


def evaluate_texts(
    terminal: Teller, *, model: str, data_dir: Path | None, split: str, context: int | None, max_tokens: int | None,
    baseline: str | None, dtype: str, device: str, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune eval --texts`, whose options these are. Raises: UserError."""
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    if baseline is not None:
        sources.resolve(baseline)
    devices.check_device(device)
    models.check_dtype(dtype)
    tokenizer = models.load_tokenizer(model, trust_remote_code=trust_remote_code, note=terminal.note)
    max_tokens = TOKENS if max_tokens is None else max_tokens
    with terminal.busy("reading texts"):
        texts = data.load_kinds(split, data_dir=data_dir, tokenizer=tokenizer, num_tokens=max_tokens)
    nets = []
    for source in filter(None, (model, baseline)):
        with terminal.busy(f"loading {source}"):
            nets.append(models.load(source, note=terminal.note, **how))
    if baseline is not None:
        check_tokenizer(terminal, tokenizer, baseline, next(iter(texts.values())), "the baseline", trust_remote_code)
    start = time.perf_counter()
    rows = {}
    with terminal.stages() as stages:
        for kind, text in texts.items():
            result = _measured(nets, tokenizer, text, context, max_tokens, stages(kind))
            seen = told_if_read_before(terminal, model, text)
            rows[kind] = _row(result) | {"read_before": seen, "data": data_record(text, tokenizer)}
            context = result.context
    return {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        "texts": rows,
        **(_over_all(rows) if baseline else {}),
        "context": context,
        "dtype": dtypes.name_of(nets[0].dtype),
        "seconds": time.perf_counter() - start,
    }


def _measured(
    nets: list[Any], tokenizer: Any, text: TextData, context: int | None, max_tokens: int, progress: Any
) -> PerplexityResult:
    pruned, dense = [*nets, None][:2]
    input_ids, _ = cover(tokenizer, text, max_tokens)
    if context is None:
        context = min(CONTEXT, default_context(pruned.config))
    begin = Beginning.of(tokenizer).ids
    return perplexity(pruned, input_ids, begin=begin, context=context, baseline=dense, progress=progress)


def _row(result: PerplexityResult) -> dict[str, Any]:
    """A kind's entry; each `…_ci` is a 95% interval over the windows."""
    values = result.to_dict()
    row = {name: values[name] for name in ("tokens", "perplexity", "perplexity_se")}
    if "perplexity_ratio" not in values:
        return row
    log, error = (values[name] for name in ("nll_difference", "nll_difference_se"))
    changed = None if result.top1_agreement is None else 1 - result.top1_agreement
    return row | {
        "baseline_perplexity": values["baseline_perplexity"],
        "perplexity_ratio": values["perplexity_ratio"],
        "perplexity_ratio_ci": [math.exp(end) for end in ends] if (ends := normal(log, error)) else None,
        "log_ratio": log,
        "log_ratio_se": error,
        "kl": values["kl"],
        "kl_ci": normal(values["kl"], values["kl_se"]),
        "first_choice_changed": changed,
        "first_choice_changed_ci": normal(changed, values["top1_agreement_se"]),
    }


def _over_all(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    errors = [row["log_ratio_se"] for row in rows.values()]
    return {
        "mean_log_ratio": fmean(row["log_ratio"] for row in rows.values()),
        "mean_log_ratio_se": None if None in errors else math.hypot(*errors) / len(errors),
        "worst": max(rows, key=lambda kind: rows[kind]["log_ratio"]),
    }
