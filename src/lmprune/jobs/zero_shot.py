"""What `lmprune eval --tasks` does; returns its record (docs/json.md)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checkpoints import devices, dtypes, models, sources
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
    start = time.perf_counter()
    settings = {
        "data_dir": data_dir, "limit": limit, "batch_size": batch_size, "dtype": dtype, "device": device,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    mine = answered(terminal, model, names, **settings)
    dense = None if baseline is None else answered(terminal, baseline, names, **settings)
    return {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        **told(mine, dense),
        "data_dir": data_dir and str(data_dir),
        "limit": limit,
        "lm_eval": version("lm_eval"),
        "dtype": mine.dtype,
        "seconds": time.perf_counter() - start,
    }


def check_zero_shot(tasks: str, data_dir: Path | None) -> list[str]:
    """The tasks that are asked for. Raises: UserError for what can be found wrong before a weight is read."""
    names = items.parse(tasks)
    check_can_be_asked(names, data_dir)
    return names


def check_can_be_asked(names: Sequence[str], data_dir: Path | None) -> None:
    """Raises: UserError where lm-eval, or a task's items, are not there."""
    zero_shot.check_installed()
    items.check(names, data_dir)


@dataclass(frozen=True)
class ZeroShotAnswers:
    """What a model made of some tasks, by their names, and the dtype that it computed in."""

    tokenizer: Any
    dtype: str
    answers: Mapping[str, zero_shot.Answers]


def answered(
    terminal: Teller, source: str, names: Sequence[str], *, data_dir: Path | None, limit: int | None, batch_size: int,
    dtype: str, device: str, trust_remote_code: bool,
) -> ZeroShotAnswers:  # fmt: skip
    """One model, which alone is in memory, on all of the tasks."""
    devices.check_device(device)
    models.check_dtype(dtype)
    tokenizer = models.load_tokenizer(source, trust_remote_code=trust_remote_code, note=terminal.note)
    with terminal.busy(f"loading {source}"):
        model = models.load(source, note=terminal.note, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with terminal.stages() as stages, models.quiet():
        found = zero_shot.answers(
            model, tokenizer, names, data_dir=data_dir, limit=limit, batch_size=batch_size,
            progress=stages(f"tasks, {source}"),
        )  # fmt: skip
    return ZeroShotAnswers(tokenizer, dtypes.name_of(model.dtype), found)


def told(mine: ZeroShotAnswers, dense: ZeroShotAnswers | None) -> dict[str, Any]:
    """For JSON. Raises: UserError where the two models cut text into different tokens."""
    if dense is not None:
        check_same(mine.tokenizer, dense.tokenizer, _SAMPLE, "the baseline")
    return zero_shot.record(mine.answers, None if dense is None else dense.answers)
