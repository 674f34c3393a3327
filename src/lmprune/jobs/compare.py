"""What `lmprune compare` does: several models at a glance, on the same text, in one engine; its record is in
docs/json.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import data as texts
from ..checkpoints import models as checkpoints
from ..checkpoints import sources
from ..checkpoints.writing import Destination, begins, check_file, written_aside
from ..data import pairs
from ..data.zero_shot import ZERO_SHOT
from ..errors import UserError
from ..progress import Teller
from ..report import comparison, page
from .bench import bench, check_engine, check_sides
from .evaluate import evaluate, evaluate_task
from .inspection import find_plan
from .zero_shot import ZeroShotAnswers, answered, check_can_be_asked, told

#: of a record of `eval`, and of `bench`
_QUALITY = ("perplexity", "perplexity_se", "perplexity_ratio", "bits_per_byte", "kl", "top1_agreement", "answers")
_SPEED = ("prefill", "decode", "first_token_ms", "peak_memory_mb", "cache_bytes_per_token", "weight_megabytes")
#: tokens of the prompt, and after it, that a model's speed is measured with
_MEASURED = (256, 24)


def compare(
    terminal: Teller, *, models: Sequence[str], data: str, data_dir: Path | None, split: str, holdout: float | None,
    chat_template: bool, max_tokens: int, context: int | None, tasks: str | None, tasks_dir: Path | None, limit: int,
    engine: str, threads: int, repeats: int, prompts: Path | None, answer_tokens: int, out: Path | None, force: bool,
    dtype: str, device: str, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune compare`, whose options these are; the first model is what the others are compared with.

    Raises: UserError; nothing is written then.
    """
    start = time.perf_counter()
    tasks_dir = tasks_dir or data_dir
    wanted, place = check(models, tasks, tasks_dir, engine, out, force=force)
    check_text(data, data_dir)
    check_sides(terminal, models, engine, *_MEASURED, trust_remote_code=trust_remote_code)
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    text = {
        "data": data, "data_dir": data_dir, "split": split, "holdout": holdout, "context": context, "stride": None,
        "max_tokens": max_tokens, "chat_template": chat_template, "prompts": prompts, "answer_tokens": answer_tokens,
        "stream": False, **how,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    first: ZeroShotAnswers | None = None
    for number, model in enumerate(models):
        terminal.note(f"{model}, {number + 1} of {len(models)}")
        quality = evaluate(terminal, model=model, baseline=models[0] if number else None, **text)
        shares = {task: holdout if task == data else None for task in wanted.pairs}
        scores = {
            task: _task(terminal, model, task, _folder(task, tasks_dir), share, limit, how)
            for task, share in shares.items()
        }
        answers = None
        if wanted.zero_shot:
            asked = {"data_dir": tasks_dir, "limit": limit, "batch_size": 16, **how}
            answers = answered(terminal, model, wanted.zero_shot, **asked)
        skeleton = checkpoints.skeleton(model, trust_remote_code=trust_remote_code)
        params = sum(parameter.numel() for parameter in skeleton.parameters())
        measured = {name: quality.get(name) for name in _QUALITY}
        plan = find_plan(model)
        known = {"zero_shot": told(answers, first) if answers else None, "data": quality["data"]}
        known["search"] = plan.provenance.get("search") if plan else None
        found.append({"model": model, "params": params, **measured, "tasks": scores, **known})
        first = first or answers
    prompt_tokens, new_tokens = _MEASURED
    speeds = bench(
        terminal, models=models, engine=engine, threads=threads, batch=1, prompt_tokens=prompt_tokens,
        new_tokens=new_tokens, repeats=repeats, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    for each, speed in zip(found, speeds["results"], strict=True):
        each |= {name: speed[name] for name in _SPEED}
    record = {
        "models": [{name: value for name, value in each.items() if name != "data"} for each in found],
        "data": found[0]["data"], "max_tokens": max_tokens, "limit": limit if tasks else None, "engine": engine,
        "engine_dtype": speeds["dtype"],
        "threads": threads, "out": place and str(place.path), "seconds": time.perf_counter() - start,
    }  # fmt: skip
    if place is not None:
        with written_aside(place, folder=False) as aside:
            aside.write_text(page.html(comparison.of_record(record)), encoding="utf-8")
    return record


@dataclass(frozen=True)
class Tasks:
    """pairs: sources of pairs, which are decoded. zero_shot: lm-eval's, which are chosen from."""

    pairs: Sequence[str]
    zero_shot: Sequence[str]


def check(
    models: Sequence[str], tasks: str | None, tasks_dir: Path | None, engine: str, out: Path | None, *, force: bool
) -> tuple[Tasks, Destination | None]:
    """The tasks, and where the page goes. Raises: UserError for what can be seen to be wrong before a model is read."""
    if len(models) < 2:
        raise UserError("compare takes two models or more, the first of them what the others are compared with")
    for model in models:
        sources.resolve(model)
    check_engine(engine)
    wanted = _parsed(tasks) if tasks else Tasks((), ())
    if wanted.zero_shot:
        check_can_be_asked(wanted.zero_shot, tasks_dir)
    for task in wanted.pairs:
        if pairs.is_file(task) or tasks_dir is not None:  # the hub is asked once
            pairs.load(task, "validation", data_dir=_folder(task, tasks_dir))
    if out is None:
        return wanted, None
    return wanted, check_file(out, force=force, amiss=begins(page.BEGINS, "a page that lmprune wrote"))


def _parsed(tasks: str) -> Tasks:
    """Raises: UserError."""
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if not (pairs.is_source(name) or name in ZERO_SHOT):
            raise UserError(
                f"{name!r} is no task; expected wikisql, samsum, e2e or a .jsonl of pairs, or lm-eval's "
                f"{', '.join(ZERO_SHOT)}"
            )
        if names.count(name) > 1:
            raise UserError(f"--tasks names {name} twice; name each task once")
    return Tasks([n for n in names if n not in ZERO_SHOT], [n for n in names if n in ZERO_SHOT])


def _folder(task: str, tasks_dir: Path | None) -> Path | None:
    """Where a task has its files: of a file of one's own, its path says it."""
    return None if pairs.is_file(task) else tasks_dir


def check_text(data: str, data_dir: Path | None) -> None:
    """Raises: UserError for a text that is another for each model."""
    if texts.needs_model(data, data_dir):
        raise UserError(
            f"{data} is written by each model itself, all or some of it, so that they would be compared on different "
            "texts; name another --data"
        )


def _task(
    terminal: Teller,
    model: str,
    task: str,
    data_dir: Path | None,
    holdout: float | None,
    limit: int,
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Its metrics, each with its interval."""
    record = evaluate_task(
        terminal, model=model, data=task, data_dir=data_dir, split="validation", holdout=holdout, limit=limit,
        decode="greedy", max_new_tokens=None, batch_size=16, out=None, **how,
    )  # fmt: skip
    names = [name.removesuffix("_ci") for name in record if name.endswith("_ci")]
    return {name: {"value": record[name], "interval": record[f"{name}_ci"]} for name in names}
