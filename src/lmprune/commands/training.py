"""Commands that train without pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import talking
from .options import (
    SOURCES,
    AdamEpsilon,
    BatchSize,
    Bf16,
    ChatTemplate,
    DataDir,
    Device,
    Dtype,
    Epochs,
    EvalEvery,
    Force,
    GradAccum,
    GradientCheckpointing,
    Json,
    KlWeight,
    LoraRank,
    LossOn,
    Lr,
    Model,
    Plugin,
    PushToHub,
    ReportTo,
    Resume,
    SaveDtype,
    SaveEvery,
    SeqLen,
    Steps,
    Teacher,
    Temperature,
    TrainTokens,
    Trust,
    Warmup,
    WeightDecay,
)
from .parameters import given, pushed


def finetune(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="SRC", help=f"Text to train on (train): {SOURCES}")] = "wikitext",
    data_dir: DataDir = None,
    seq_len: SeqLen = 512,
    dtype: Dtype = "float32",
    save_dtype: SaveDtype = None,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the examples.")] = 0,
    force: Force = False,
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushToHub = None,
    plugin: Plugin = None,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    grad_accum: GradAccum = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    adam_epsilon: AdamEpsilon = None,
    train_tokens: TrainTokens = None,
    loss_on: LossOn = None,
    eval_every: EvalEvery = None,
    save_every: SaveEvery = None,
    resume: Resume = False,
    teacher: Teacher = None,
    kl_weight: KlWeight = None,
    temperature: Temperature = None,
    lora_rank: LoraRank = None,
    bf16: Bf16 = False,
    gradient_checkpointing: GradientCheckpointing = False,
    report_to: ReportTo = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model, dense or pruned, without pruning it: a teacher, a reference, or recovery of a pruned one.

    JSON: `model`, `params`, `dtype`, `stock`, `data`, `training`, `seconds`, `peak_memory_mb`, `out`, `command`,
    `pushed`.
    """
    options = given(locals())
    with talking(as_json) as terminal:
        from ..jobs import training as training_jobs
        from . import views

        with pushed(terminal, push_to_hub) as push:
            record = push(training_jobs.finetune(terminal, **options))
        terminal.result(record, *views.finetuning(record))


def teach(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The `.safetensors` file to write.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="SRC", help=f"Text (train) that students train on: {SOURCES}")] = (
        "wikitext"
    ),
    data_dir: DataDir = None,
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
    with talking(as_json) as terminal:
        from ..jobs import training as training_jobs
        from . import views

        record = training_jobs.teach(terminal, **options)
        terminal.result(record, *views.teaching(record))
