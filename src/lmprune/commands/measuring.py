"""Commands that measure a model: how good, why, how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import talking
from .options import (
    ANSWER_TOKENS,
    AnswerTokens,
    ChatTemplate,
    DataDir,
    Device,
    Dtype,
    EvaluationText,
    Ffn,
    Holdout,
    Json,
    Model,
    Plugin,
    Predictions,
    PromptsFile,
    Split,
    Trust,
)
from .parameters import given, refuse_options
from .running import savable

_ONLY_TEXTS = ("context", "stride", "max_tokens", "baseline", "chat_template", "prompts", "answer_tokens")
_ONLY_TASKS = ("limit", "decode", "max_new_tokens", "batch_size", "out")


@savable
def evaluate(
    ctx: typer.Context,
    model: Model,
    data: EvaluationText,
    data_dir: DataDir = None,
    split: Split = "validation",
    holdout: Holdout = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens a window.", show_default="1024, or the model's maximum if less"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens from one window to the next.", show_default="disjoint windows"),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", min=2, help="Read only the first so many.")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="DENSE", help="The model before pruning, to compare on the same tokens.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Tasks: only the first N items.")] = None,
    decode: Annotated[
        str, typer.Option(metavar="greedy|beam", help="Tasks: beam is the paper's search with 10 beams.")
    ] = "greedy",
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tasks: where to stop.", show_default="as the task")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Tasks: how many are decoded at once.")] = 16,
    out: Predictions = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    chat_template: ChatTemplate = False,
    prompts: PromptsFile = None,
    answer_tokens: AnswerTokens = ANSWER_TOKENS,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Perplexity on a text, with its standard error; with a baseline, the paired difference. Or the scores of a task.

    JSON: `model`, `perplexity`, `perplexity_se`, `nll`, `nll_se`, `bits_per_byte`, `word_perplexity`, `tokens`,
    `context`, `stride`, `data`, `read_before`, `dtype`, `seconds`; with a baseline also `baseline`,
    `baseline_perplexity`, `perplexity_ratio`, `nll_difference`, `nll_difference_se`, `kl`, `top1_agreement`,
    `answers`.

    JSON of a task (`wikisql`, `samsum`, `e2e`, pairs): its metrics, each with `…_ci`, its 95% interval; `items`,
    `decoded`, `contexts_cut`, `unfinished`, `sequences_per_second`, `decode`, `max_new_tokens`, `batch_size`, `out`.
    """
    options = given(locals())
    with talking(as_json) as terminal:
        from ..data.pairs import is_source
        from ..jobs import evaluate as jobs
        from . import measured_views as views

        check_usage(ctx)
        if is_source(data):
            record = jobs.evaluate_task(terminal, **{k: v for k, v in options.items() if k not in _ONLY_TEXTS})
            terminal.result(record, *views.task(record))
        else:
            record = jobs.evaluate(terminal, **{k: v for k, v in options.items() if k not in _ONLY_TASKS})
            terminal.result(record, *views.evaluation(record))


def check_usage(ctx: typer.Context) -> None:
    """Raises: UserError for options of `eval` that its text does not have."""
    from ..data.pairs import is_source

    data = ctx.params["data"]
    if is_source(data):
        refuse_options(ctx, f": it goes with texts, and {data} is a task", *_ONLY_TEXTS)
    else:
        refuse_options(ctx, f": it goes with tasks, and {data} is a text", *_ONLY_TASKS)
        if ctx.params["baseline"] is None:
            refuse_options(ctx, ", or name a --baseline: answers are compared with its", "prompts", "answer_tokens")


@savable
def analysis(
    model: Model,
    data: EvaluationText,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for `analysis.json` and the figures.", show_default=False)
    ],
    units: Annotated[
        str,
        typer.Option(
            metavar="KINDS", help="What is read: neurons, heads, experts, layers, attentions, ffns; or several: a,b."
        ),
    ] = "neurons",
    baseline: Annotated[
        str | None, typer.Option(metavar="DENSE", help="The model before pruning: ratios to it, on the same tokens.")
    ] = None,
    data_dir: DataDir = None,
    split: Split = "validation",
    seq_len: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Tokens a sequence.", show_default="512, or the model's maximum if less"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Read only the first so many.")] = 16384,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace the analysis already at --out.")] = False,
    ffn: Ffn = None,
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Why a model can be pruned: sensitivity and uniqueness of its neurons, look-alikes, dead ones, and advice.

    Of other units: how much each matters (sensitivity, influence, how often it is chosen), and how far others could
    stand in for it.

    JSON: `model`, `uniqueness`, `sensitivity`, `layers` (a list), `clusters`, `advice`, `dead`, `uniqueness_ratio`,
    `sensitivity_ratio`, `units`, `tokens`, `seq_len`, `data`, `dtype`, `seconds`, `peak_memory_mb`, `out`.
    """
    options = given(locals())
    with talking(as_json) as terminal:
        from ..jobs.analyze import analyze
        from . import measured_views as views

        record = analyze(terminal, **options)
        terminal.result(record, *views.analysis(record))


@savable
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Compared with the first: hub ids, folders, `.gguf` files.", show_default=False
        ),
    ],
    engine: Annotated[str, typer.Option(metavar="NAME", help="torch, onnxruntime, or llamacpp.")] = "torch",
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of each engine.")] = 2,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at once; llamacpp takes one.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of the prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens written after the first.")] = 32,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Turns that are measured, after one more.")] = 7,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of models in one engine, measured in turn, beside the speed-up that their sizes allow.

    A checkpoint is first exported for the engine (onnxruntime: f32; llamacpp: f16), into a folder that vanishes.

    JSON: `engine`, `threads`, `batch`, `prompt_tokens`, `new_tokens`, `repeats`, `results` (a list).
    """
    options = given(locals())
    with talking(as_json) as terminal:
        from ..jobs.bench import bench as measure
        from . import measured_views as views

        record = measure(terminal, **options)
        terminal.result(record, *views.benchmark(record))
