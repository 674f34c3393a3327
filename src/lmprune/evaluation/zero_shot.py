"""Accuracy on zero-shot tasks: lm-eval's definitions, prompts and scoring, its items from the hub or from a folder.

Nothing is scored here: lm-eval says of each item whether the model's choice was right. What is added is the floor that
guessing reaches, and the difference to another model, item by item.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any, cast

from ..data import zero_shot
from ..data.beginning import Beginning
from ..data.zero_shot import ZERO_SHOT
from ..errors import UserError
from ..progress import Progress
from ..sites.limits import check_vocabulary


@dataclass(frozen=True)
class Answers:
    """What a model made of the items of a task, one entry an item, in their order.

    right: 1.0 where the likeliest answer is right. right_norm: the same with likelihoods a byte of the answer; None
    where the task has no such score. chance: how often guessing is right (see `floor`).
    """

    right: list[float]
    right_norm: list[float] | None
    chance: float


def check_installed() -> None:
    """Raises: UserError where lm-eval is not there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("zero-shot tasks are lm-eval's, which is not installed; pip install 'lmprune[tasks]'")


def answers(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Answers]:
    """Of each task, what the model answers.

    data_dir: a folder with NAME.jsonl of each task; None = the hub, on the split that lm-eval takes there.
    limit: only the first so many items of each. Raises: UserError, where something is missing before anything is run.
    """
    check_installed()
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    found = {}
    with TemporaryDirectory() as folder, _quiet():
        tasks = _tasks(names, data_dir, Path(folder))
        begins = bool(Beginning.of(tokenizer).ids)
        asked: Any = cast(Any, HFLM)(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device), add_bos_token=begins
        )  # fmt: skip
        asked.loglikelihood = partial(asked.loglikelihood, disable_tqdm=True)  # `progress` tells what goes on
        asked._loglikelihood_tokens = partial(_checked, asked._loglikelihood_tokens, model)
        for number, (name, task) in enumerate(tasks.items(), 1):
            result: Any = evaluator.evaluate(asked, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
            found[name] = _answers(result["samples"][name])
            if progress is not None:
                progress(number, len(tasks))
    return found


def _checked(
    score: Callable[..., Any], model: Any, requests: Sequence[tuple[Any, list[int], list[int]]], **how: Any
) -> Any:
    """lm-eval's own scores of what it is about to ask. Raises: UserError for tokens that the model does not have."""
    read = chain.from_iterable(ids for _, context, answer in requests for ids in (context, answer))
    check_vocabulary(max(read, default=0), model)
    return score(requests, **how)


def _tasks(names: Sequence[str], data_dir: Path | None, folder: Path) -> dict[str, Any]:
    """lm-eval's tasks, by our names. folder: for what is written on the way."""
    import lm_eval.tasks

    zero_shot.check(names, data_dir)
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    tasks = {}
    for name in names:
        path = Path(lm_eval.tasks.__file__).parent / ZERO_SHOT[name].definition
        if data_dir is not None:
            path = _offline(name, path, zero_shot.read(name, data_dir), folder)
        ((_, task),) = manager.load([str(path)])["tasks"].items()
        task.set_config(key="num_fewshot", value=0)
        task.config.task = name
        tasks[name] = task
    return tasks


def _offline(name: str, definition: Path, items: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """A task file as lm-eval's documentation has it: the definition, with its items from a file of JSON lines."""
    rows = folder / f"{name}.jsonl"
    rows.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    told = {
        "include": str(definition),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(rows)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(told), encoding="utf-8")  # JSON is YAML
    return file


def _answers(samples: Sequence[Mapping[str, Any]]) -> Answers:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    normed = [float(sample["acc_norm"]) for sample in samples if "acc_norm" in sample]
    return Answers([float(sample["acc"]) for sample in samples], normed or None, floor(samples))


def floor(samples: Sequence[Mapping[str, Any]]) -> float:
    """What is right without reading: one of the choices at random; where all items have the same choices (yes, no),
    the one that is right most often; of a word to be written, nothing.

    samples: lm-eval's; `arguments` has (prompt, answer) of each choice, `target` the number of the right one.
    """
    choices = [[answer for _, answer in sample["arguments"]] for sample in samples]
    if all(len(answers) == 1 for answers in choices):
        return 0.0
    if len(choices) > 1 and all(answers == choices[0] for answers in choices):
        targets = [sample["target"] for sample in samples]
        return max(targets.count(target) for target in targets) / len(targets)
    return fmean(1 / len(answers) for answers in choices)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """A mean, and its standard error (None from a single value)."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def record(found: Mapping[str, Answers], dense: Mapping[str, Answers] | None = None) -> dict[str, Any]:
    """For JSON: `tasks`, and the means over them. dense: of the baseline, on the same items."""
    rows = {name: _row(mine, None if dense is None else dense[name]) for name, mine in found.items()}
    told = {"tasks": rows, "mean_accuracy": fmean(row["accuracy"] for row in rows.values())}
    told |= {"mean_accuracy_se": _error_of_mean(rows, "se"), "mean_chance": fmean(r["chance"] for r in rows.values())}
    if dense is None:
        return told
    base = fmean(row["baseline_accuracy"] for row in rows.values())
    above = base - told["mean_chance"]
    return told | {
        "baseline_mean_accuracy": base,
        "mean_difference": told["mean_accuracy"] - base,
        "mean_difference_se": _error_of_mean(rows, "difference_se"),
        "kept_above_chance": (told["mean_accuracy"] - told["mean_chance"]) / above if above > 0 else None,
    }


def _row(mine: Answers, dense: Answers | None) -> dict[str, Any]:
    accuracy, error = mean_and_error(mine.right)
    row: dict[str, Any] = {"accuracy": accuracy, "se": error, "accuracy_norm": None, "accuracy_norm_se": None}
    if mine.right_norm is not None:
        row["accuracy_norm"], row["accuracy_norm_se"] = mean_and_error(mine.right_norm)
    row |= {"chance": mine.chance, "items": len(mine.right)}
    if dense is not None:
        row["baseline_accuracy"] = fmean(dense.right)
        pairs = zip(mine.right, dense.right, strict=True)
        row["difference"], row["difference_se"] = mean_and_error([ours - theirs for ours, theirs in pairs])
    return row


def _error_of_mean(rows: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    """Of a mean over tasks, whose items have nothing to do with each other's."""
    errors = [row[key] for row in rows.values()]
    return None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(errors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what lm-eval and datasets print on the way."""
    from datasets.utils import logging as datasets_logging

    logger, was = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    bars = datasets_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(was)
        if bars:
            datasets_logging.enable_progress_bar()
