"""Commands that train without pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..jobs.training_options import DISTILLATION, LONG_LR, LORA_LR, RECOVERY, SHORT, SHORT_LR, TRAINING
from .console import talking
from .options import (
    ChatTemplate,
    Checkpoint,
    DataDir,
    Device,
    Dtype,
    Ffn,
    Force,
    Holdout,
    Json,
    Model,
    Plugin,
    PushToHub,
    RunFile,
    SaveDtype,
    Seed,
    SeqLen,
    StudentsText,
    TrainingText,
    Trust,
)
from .parameters import given, pushed, trains
from .running import savable


@savable
@trains(TRAINING, DISTILLATION)
def finetune(
    model: Model,
    out: Checkpoint,
    data: TrainingText = "wikitext",
    data_dir: DataDir = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
    holdout: Holdout = None,
    seq_len: SeqLen = 512,
    chat_template: ChatTemplate = False,
    save_dtype: SaveDtype = None,
    push_to_hub: PushToHub = None,
    ffn: Ffn = None,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    run_file: RunFile = None,
    **training: Any,
) -> None:
    """Fine-tune a model, dense or pruned, without pruning it: a teacher, a reference, or recovery of a pruned one.

    JSON: `model`, `params`, `dtype`, `stock`, `data`, `training`, `seconds`, `peak_memory_mb`, `out`, `command`,
    `pushed`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs import training as training_jobs
        from . import views

        with pushed(terminal, push_to_hub) as push:
            record = push(training_jobs.finetune(terminal, **options))
        terminal.result(record, *views.finetuning(record))


@savable
@trains(
    TRAINING,
    DISTILLATION,
    defaults={**RECOVERY, "lr": f"{LONG_LR:g}; under {SHORT} steps {SHORT_LR:g}; LoRA {LORA_LR:g}"},
)
def recover(
    model: Model,
    out: Checkpoint,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="As many steps as go into so many minutes, and no longer.")
    ] = None,
    patience: Annotated[
        int, typer.Option(metavar="N", min=1, help="Stop where held-out text got worse so many times in a row.")
    ] = 3,
    data: TrainingText = "mix",
    data_dir: DataDir = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
    holdout: Holdout = None,
    seq_len: SeqLen = 512,
    chat_template: ChatTemplate = False,
    save_dtype: SaveDtype = None,
    push_to_hub: PushToHub = None,
    ffn: Ffn = None,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    run_file: RunFile = None,
    **training: Any,
) -> None:
    """Distil a pruned model from the dense one (--teacher), on text of several kinds, until held-out text says stop.

    The result has the weights that were nearest to the teacher on the way.

    JSON: `model`, `params`, `dtype`, `stock`, `data`, `training` (with `first_kl`, `kl`, `best_step`, `steps_done`,
    `ended_by`), `seconds`, `peak_memory_mb`, `out`, `command`, `pushed`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs import recovery
        from . import views

        with pushed(terminal, push_to_hub) as push:
            record = push(recovery.recover(terminal, **options))
        terminal.result(record, *views.recovering(record))


def teach(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The `.safetensors` file to write.", show_default=False)],
    data: StudentsText = "wikitext",
    data_dir: DataDir = None,
    holdout: Holdout = None,
    seq_len: SeqLen = 512,
    train_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Its first so many tokens.", show_default="all")
    ] = None,
    top_k: Annotated[int, typer.Option(metavar="K", min=1, help="Largest logits kept of each token.")] = 64,
    temperature: Annotated[float, typer.Option(metavar="T", help="At which they are taken and used.")] = 2.0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Write down what a teacher predicts for a training text, for `--teacher FILE`: distillation without it in memory.

    JSON: `model`, `data`, `examples`, `tokens`, `top_k`, `temperature`, `fingerprint`, `bytes`, `seconds`, `out`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs import training as training_jobs
        from . import views

        record = training_jobs.teach(terminal, **options)
        terminal.result(record, *views.teaching(record))
