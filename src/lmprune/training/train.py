"""Fine-tune a model, with or without pruning it on the way: one function around the Trainer."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from ..errors import Interrupted, UserError
from ..gradual import GradualPruner
from ..sites.limits import check_one_device
from .callbacks import HeldOut, Log, PoliteStop, Report, SavedStates
from .early_stop import EarlyStop
from .run_folder import RunFolder, step_of
from .settings import TrainSettings
from .spread import ARGUMENTS, AS_THEY_ARE
from .trainer import PruneTrainer, Teacher, collate


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
    stop: EarlyStop | None = None,
    folder: RunFolder | None = None,
    report: Report | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> TrainResult:
    """Train the model in place; with `settings.fsdp` it is spread over the processes then (`spread.filled`).

    examples, held_out: dicts of `input_ids` and, where not all tokens count, `labels`. folder: where states and log
    go, begun; a resumed one's newest state is gone on from. Without it nothing is saved.
    note: is told of saved states that were damaged.
    stop: ends the run before its last step, and gives the model its best weights in the end.
    Raises: UserError for too little data, for blocks on several devices or a loss that is not finite, Interrupted after
    Ctrl-C, the state saved.
    """
    start = time.perf_counter()
    check_one_device(model, "there is no training")
    with TemporaryDirectory() as nowhere, _its_own(model):
        arguments = _arguments(settings, str(folder.path) if folder else nowhere, next(model.parameters()).device)
        check_enough(settings, len(examples), arguments.world_size)
        trainer = PruneTrainer(
            model=model,
            args=arguments,
            train_dataset=[{**example, "row": row} for row, example in enumerate(examples)],  # type: ignore[arg-type]
            data_collator=collate,
            pruner=pruner,
            teacher=teacher,
            kl_weight=kl_weight,
            score_lr=settings.score_lr,
        )
        trainer.remove_callback(PrinterCallback)
        if held_out:  # before `Log`, which asks for the step's own line
            size = settings.batch_size
            batches = [collate(held_out[i : i + size]) for i in range(0, len(held_out), size)]
            trainer.add_callback(HeldOut(trainer.log, batches, settings.eval_every or settings.steps))
        if stop is not None:
            stop.log = trainer.log
            stop.lines = folder.read_log if folder is not None else stop.lines
            trainer.add_callback(stop)
        log = Log(folder, report)
        trainer.add_callback(log)
        if folder is None:
            trainer.train()
        else:
            _train_in(folder, trainer, SavedStates(pruner, settings.save_every), note)
        if stop is not None:
            stop.restore(model)
    return TrainResult(time.perf_counter() - start, folder.read_log() if folder else log.lines)


@contextmanager
def _its_own(model: Any) -> Iterator[None]:
    """Afterwards the model computes as before, and its config says so: the Trainer turns the cache off in there, which
    would be saved, and leaves mixed precision in the model's forward."""
    nothing: Any = object()
    cached, forward = getattr(model.config, "use_cache", nothing), model.__dict__.get("forward", nothing)
    try:
        yield
    finally:
        for where, name, value in ((model.config, "use_cache", cached), (model, "forward", forward)):
            if value is not nothing:
                setattr(where, name, value)
            elif name in where.__dict__:
                delattr(where, name)
        model.__dict__.pop("_original_forward", None)


def _train_in(folder: RunFolder, trainer: PruneTrainer, saved: SavedStates, note: Callable[[str], None]) -> None:
    """Train, on from the folder's newest state if it is resumed; whatever ends it leaves complete states only."""
    state = _taken_up(folder, note) if folder.resume else None
    if state is not None:
        saved.restore(state)
    stop = PoliteStop()
    trainer.add_callback(stop)
    trainer.add_callback(saved)
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    except UserError as error:
        raise UserError(f"{error}{_what_is_left(folder)}") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full or trainer.control.should_save):  # which stays until a state is saved
            raise
        folder.drop_incomplete()
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        left = _what_is_left(folder)
        cure = "make room and go on with --resume" if left else "make room and run it again"
        step = trainer.state.global_step
        raise UserError(f"can't save the run in {folder.path} after step {step}: {reason}{left}; {cure}") from error
    finally:
        stop.restore()
    if stop.stopped_at is not None:
        raise Interrupted(f"stopped after step {stop.stopped_at} of {trainer.state.max_steps}, which is saved")


def _taken_up(folder: RunFolder, note: Callable[[str], None]) -> Path | None:
    process = PartialState()
    if process.is_main_process:
        folder.rewind()
        for sentence in folder.notes:
            note(sentence)
    process.wait_for_everyone()
    return folder.newest_state()


def _what_is_left(folder: RunFolder) -> str:
    state = folder.newest_state()
    return f"; the state after step {step_of(state)} is kept in {state}" if state else ""


def check_trainable(model: Any) -> None:
    """Raises: UserError for weights that AdamW can't move."""
    if model.dtype == torch.float16:
        raise UserError(
            "weights in float16 can't be trained: the numbers that AdamW divides by are 0 there; take --dtype float32"
        )


def check_place(model: Any) -> None:
    """Raises: UserError where the Trainer would not be where the model is."""
    with TemporaryDirectory() as nowhere:
        _arguments(TrainSettings(steps=1), nowhere, next(model.parameters()).device)


def check_enough(settings: TrainSettings, num_examples: int, num_processes: int) -> None:
    """Raises: UserError where the examples don't fill one step."""
    a_step = settings.batch_size * settings.grad_accum * num_processes
    if num_examples < a_step:
        raise UserError(f"{num_examples} training examples are fewer than one step's {a_step}; give more text")


def check_tracker(report_to: str) -> None:
    """Raises: UserError for one that is not installed."""
    known = ["none", *get_available_reporting_integrations()]
    if report_to not in known:
        raise UserError(f"can't report to {report_to!r}; installed here: {', '.join(known[1:]) or 'nothing'}")


def _arguments(settings: TrainSettings, folder: str, device: torch.device) -> TrainingArguments:
    check_tracker(settings.report_to)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        learning_rate=settings.lr,
        lr_scheduler_type=settings.decay,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        gradient_checkpointing=settings.gradient_checkpointing or None,  # type: ignore[arg-type]  # False warns in 5.23
        bf16=settings.bf16,
        **(ARGUMENTS if settings.fsdp else {}),
        logging_strategy="no",  # `Log` and `SavedStates` say when
        save_strategy="no",
        save_total_limit=2,  # the one before stays until the new one is whole
        report_to=settings.report_to,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        seed=settings.seed,
    )
    place = arguments.device
    if arguments.fsdp_plugin_args is not None:
        _check_spread(arguments)
        arguments.fsdp_plugin_args |= AS_THEY_ARE
    if arguments.world_size == 1 and place.type not in (device.type, "cpu"):
        raise UserError(f"a training runs on {place}, and the model is on {device}; use --device {place.type}")
    if arguments.world_size == 1 and (device.index or 0) != (place.index or 0):
        raise UserError(
            f"a training runs on {place}, and the model is on {device}; "
            f"make that GPU the only one with CUDA_VISIBLE_DEVICES={device.index}, and use --device {device.type}"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be DataParallel, whose copies have no masks; see torchrun
    return arguments


def _check_spread(arguments: TrainingArguments) -> None:
    """Raises: UserError where FSDP has nothing to spread over, or would spread over something else."""
    if arguments.world_size == 1:
        raise UserError("fsdp spreads a training over processes, and this is one; start it with torchrun")
    if arguments.device.type == "cpu" and torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        raise UserError(f"FSDP spreads over the accelerators that are there; use --device {kind}, or leave --fsdp out")
