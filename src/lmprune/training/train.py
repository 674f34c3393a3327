"""Fine-tune a model, with or without pruning it on the way: one function around the Trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..errors import Interrupted, UserError
from ..gradual import GradualPruner
from .callbacks import HeldOut, Log, PoliteStop, Report, SavedStates
from .run_folder import RunFolder
from .trainer import PruneTrainer, Teacher, collate


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer steps. lr, score_lr: peak learning rates of the weights and of learned scores (None = 1e-2;
    for `soft` at least 10 / steps, or it would prune nothing). batch_size: examples of one process at once; times
    grad_accum, times the processes, a step. warmup: share of the steps. eval_every, save_every: in steps, None = only
    at the end, never. max_grad_norm: the gradient is clipped to it. Sources: METHODS 4, settings of [GUM-code].
    """

    steps: int
    lr: float = 5e-4
    score_lr: float | None = None
    batch_size: int = 4
    grad_accum: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    eval_every: int | None = None
    save_every: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    report_to: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "grad_accum", "eval_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("lr", "score_lr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name.replace('_', '-')} must be above 0, got {value:g}: nothing would be learned")

    def score_lr_of(self, soft: bool) -> float:
        """The scores' learning rate. `soft`'s must be able to sink to logit(0.1) = -2.2 within the run."""
        return self.score_lr or (max(1e-2, 10 / self.steps) if soft else 1e-2)


@dataclass(frozen=True)
class TrainResult:
    """log: one dict a logged step: `step`, and `loss`, `lr`, `keep`, `similarity`, or `perplexity`."""

    seconds: float
    log: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: Any,
    examples: Sequence[dict[str, Any]],
    settings: TrainSettings,
    *,
    pruner: GradualPruner | None = None,
    teacher: Teacher | None = None,
    kl_weight: float = 0.5,
    held_out: Sequence[dict[str, Any]] = (),
    pad_token_id: int = 0,
    folder: RunFolder | None = None,
    report: Report | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train the model in place.

    examples, held_out: dicts of `input_ids` and, where not all tokens count, `labels`. folder: where states and log
    go; it was begun. resume: go on from its newest complete state, if there is one.
    Raises: UserError for too little data or a loss that is not finite, Interrupted after Ctrl-C, the state saved.
    """
    world = int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 1
    if len(examples) < (needed := settings.batch_size * settings.grad_accum * world):
        raise UserError(f"{len(examples)} training examples are fewer than one step's {needed}; give more text")
    rows = [{**example, "row": row} for row, example in enumerate(examples)]
    stop, saved, log = PoliteStop(), SavedStates(pruner), Log(pruner, folder, report)
    callbacks: list[Any] = [stop, log, saved]
    padded = partial(collate, pad_token_id=pad_token_id)
    if held_out:
        batches = [padded(held_out[i : i + settings.batch_size]) for i in range(0, len(held_out), settings.batch_size)]
        callbacks.insert(1, HeldOut(log, batches, settings.eval_every or settings.steps))
    state = folder.newest_state() if folder is not None and resume else None
    start = time.perf_counter()
    with TemporaryDirectory() as nowhere:
        trainer = PruneTrainer(
            model=model,
            args=_arguments(settings, str(folder.path) if folder else nowhere, next(model.parameters()).device),
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=padded,
            callbacks=callbacks,
            pruner=pruner,
            teacher=teacher,
            kl_weight=kl_weight,
            score_lr=settings.score_lr_of(pruner is not None and pruner.soft is not None),
        )
        trainer.remove_callback(PrinterCallback)
        if folder is not None and resume:
            folder.rewind_log(int(state.name.split("-")[1]) if state else 0)
        if state is not None:
            saved.restore(state)
        try:
            trainer.train(resume_from_checkpoint=str(state) if state else None)
        finally:
            stop.restore()
    if stop.stopped_at is not None:
        raise Interrupted(f"stopped after step {stop.stopped_at} of {settings.steps}, which is saved")
    return TrainResult(time.perf_counter() - start, folder.read_log() if folder else log.lines)


def _arguments(settings: TrainSettings, folder: str, device: torch.device) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        gradient_checkpointing=settings.gradient_checkpointing or None,  # type: ignore[arg-type]  # False warns in 5.23
        bf16=settings.bf16,
        logging_steps=max(settings.steps // 100, 1),
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or 1,
        save_total_limit=2,  # the one before stays until the new one is whole
        report_to=settings.report_to,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        seed=settings.seed,
    )
