"""What `lmprune eval --tasks` does; returns its record (docs/json.md)."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checkpoints import dtypes, models, sources
from ..data import zero_shot as items
from ..data.tokens import check_same
from ..evaluation import zero_shot
from ..progress import Teller

#: two tokenizers that read this alike are taken to be one
_SAMPLE = "Question: How many of the 12 apples did she keep, and why?\nAnswer: ten; two were gone by Monday morning."


def evaluate_zero_shot(
    terminal: Teller, *, model: str, tasks: str, data_dir: Path | None, limit: int | None, batch_size: int,
    baseline: str | None, dtype: str, device: str, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune eval --tasks`, whose options these are. Raises: UserError."""
    names = check_zero_shot(tasks, data_dir)
    if baseline is not None:
        sources.resolve(baseline)
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    start = time.perf_counter()
    settings = {"data_dir": data_dir, "limit": limit, "batch_size": batch_size}
    tokenizer, computed, found = _answers(terminal, model, names, how, **settings)
    dense = None
    if baseline is not None:
        other, _, dense = _answers(terminal, baseline, names, how, **settings)
        check_same(tokenizer, other, _SAMPLE, "the baseline")
    return {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        **zero_shot.record(found, dense),
        "data_dir": data_dir and str(data_dir),
        "limit": limit,
        "lm_eval": version("lm_eval"),
        "dtype": computed,
        "seconds": time.perf_counter() - start,
    }


def check_zero_shot(tasks: str, data_dir: Path | None) -> list[str]:
    """The tasks that are asked for. Raises: UserError for what can be found wrong before a weight is read."""
    names = items.parse(tasks)
    zero_shot.check_installed()
    items.check(names, data_dir)
    return names


def _answers(
    terminal: Teller, source: str, names: list[str], how: dict[str, Any], **settings: Any
) -> tuple[Any, str, dict[str, zero_shot.Answers]]:
    """Tokenizer, dtype and answers of one model, which alone is in memory."""
    models.check_device(how["device"])
    models.check_dtype(how["dtype"])
    tokenizer = models.load_tokenizer(source, trust_remote_code=how["trust_remote_code"], note=terminal.note)
    with terminal.busy(f"loading {source}"):
        model = models.load(source, note=terminal.note, **how)
    with terminal.stages() as stages, models.quiet():
        found = zero_shot.answers(model, tokenizer, names, **settings, progress=stages(f"tasks, {source}"))
    return tokenizer, dtypes.name_of(model.dtype), found
