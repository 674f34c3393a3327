"""Commands that measure a model: how good, why, how fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import talking
from .options import (
    ANSWER_TOKENS,
    AnswerTokens,
    ChatTemplate,
    DataDir,
    Device,
    Dtype,
    EvaluatedText,
    EvaluationText,
    Ffn,
    Holdout,
    Json,
    Model,
    Plugin,
    Predictions,
    PromptsFile,
    Split,
    Stream,
    TextsByKind,
    Trust,
    ZeroShotTasks,
)
from .parameters import given, refuse_options
from .running import savable


@dataclass(frozen=True)
class Way:
    """One of what `eval` can measure. name: for messages. options: those that not all of them have."""

    name: str
    options: tuple[str, ...]


_WAYS = {
    "text": Way(
        "texts", ("data", "split", "holdout", "context", "stride", "max_tokens", "baseline", "chat_template",
         "prompts", "answer_tokens", "stream"),
    ),
    "task": Way(
        "tasks", ("data", "split", "holdout", "limit", "decode", "max_new_tokens", "batch_size", "out")
    ),
    "zero_shot": Way("--tasks", ("tasks", "limit", "batch_size", "baseline", "to_card")),
    "texts": Way("--texts", ("texts", "split", "context", "max_tokens", "baseline", "to_card")),
}  # fmt: skip


Engine = Annotated[str, typer.Option(metavar="NAME", help="torch, onnxruntime, or llamacpp.")]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at once; llamacpp takes one.")]
PromptTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of the prompt.")]
NewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens written after the first.")]
Turns = Annotated[int, typer.Option(metavar="N", min=1, help="Turns that are measured, after one more.")]
Context = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens a window.", show_default="1024, or the model's maximum if less"),
]
Stride = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens from one window to the next.", show_default="disjoint windows"),
]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Tasks: only the first N items of each.")]
Decode = Annotated[str, typer.Option(metavar="greedy|beam", help="Tasks: beam is the paper's search with 10 beams.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Tasks: where to stop.", show_default="as the task")
]


@savable
def evaluate(
    ctx: typer.Context,
    model: Model,
    data: EvaluatedText = None,
    tasks: ZeroShotTasks = None,
    texts: TextsByKind = False,
    data_dir: DataDir = None,
    split: Split = "validation",
    holdout: Holdout = None,
    context: Context = None,
    stride: Stride = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", min=2, help="Read only the first so many.")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="DENSE", help="The model before pruning, to compare on the same tokens.")
    ] = None,
    limit: Limit = None,
    decode: Decode = "greedy",
    max_new_tokens: MaxNewTokens = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Tasks: how many sequences at once.")] = 16,
    out: Predictions = None,
    to_card: Annotated[
        bool, typer.Option("--to-card", metavar="", help="--tasks, --texts: add it to the checkpoint's model card.")
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    chat_template: ChatTemplate = False,
    prompts: PromptsFile = None,
    answer_tokens: AnswerTokens = ANSWER_TOKENS,
    stream: Stream = False,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Perplexity on a text, with its standard error; the scores of a task; accuracy of zero-shot tasks; perplexity by
    kind of text. With a baseline, the paired difference.

    JSON: `model`, `perplexity`, `perplexity_se`, `nll`, `nll_se`, `bits_per_byte`, `word_perplexity`, `tokens`,
    `context`, `stride`, `data`, `read_before`, `dtype`, `seconds`; with a baseline also `baseline`,
    `baseline_perplexity`, `perplexity_ratio`, `nll_difference`, `nll_difference_se`, `kl`, `top1_agreement`,
    `answers`.

    JSON of a task (`wikisql`, `samsum`, `e2e`, pairs): its metrics, each with `…_ci`, its 95% interval; `items`,
    `decoded`, `contexts_cut`, `unfinished`, `sequences_per_second`, `decode`, `max_new_tokens`, `batch_size`, `out`.

    JSON of --tasks: `tasks` (an object), `mean_accuracy`; of --texts: `texts` (an object), `mean_log_ratio`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs import measured_card
        from .quality_views import EVALUATED

        way = check_usage(ctx)
        card = measured_card.card_of(model) if to_card else None
        wanted = {name: value for name, value in options.items() if name not in _others(way) | {"texts", "to_card"}}
        record = _job(way)(terminal, **wanted)
        if card is not None:
            measured_card.add(card, record)
            terminal.note(f"added to {card}")
        terminal.result(record, *EVALUATED[way](record))


def check_usage(ctx: typer.Context) -> str:
    """What is measured, a key of `_WAYS`. Raises: UserError where nothing is, or for options that it does not have."""
    from ..data.pairs import is_source
    from ..errors import UserError

    data, tasks, texts = (ctx.params[name] for name in ("data", "tasks", "texts"))
    if [data is not None, tasks is not None, texts].count(True) != 1:
        raise UserError(
            "say what to evaluate on, one of --data SRC (perplexity, or the scores of pairs), --tasks NAMES (zero-shot "
            "accuracy) and --texts (perplexity by kind of text)"
        )
    way = "zero_shot" if tasks is not None else "texts" if texts else "task" if is_source(data) else "text"
    what = {"text": f"{data} is a text", "task": f"{data} is a task"}.get(way, f"this is {_WAYS[way].name}")
    for option in sorted(_others(way) - {"data", "tasks", "texts"}):
        takers = " and ".join(row.name for row in _WAYS.values() if option in row.options)
        refuse_options(ctx, f": it goes with {takers}, and {what}", option)
    if ctx.params["baseline"] is None:
        refuse_options(ctx, ", or name a --baseline: answers are compared with its", "prompts", "answer_tokens")
    return way


def _others(way: str) -> set[str]:
    """The options that only others of `_WAYS` have."""
    return {option for row in _WAYS.values() for option in row.options} - set(_WAYS[way].options)


def _job(way: str) -> Callable[..., dict[str, Any]]:
    from ..jobs import evaluate, texts_by_kind, zero_shot

    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "text": evaluate.evaluate, "task": evaluate.evaluate_task, "zero_shot": zero_shot.evaluate_zero_shot,
        "texts": texts_by_kind.evaluate_texts,
    }  # fmt: skip
    return jobs[way]


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
    stream: Stream = False,
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
    with talking(as_json, out) as terminal:
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
    engine: Engine = "torch",
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of each engine.")] = 2,
    batch: Batch = 1,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 32,
    repeats: Turns = 7,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of models in one engine, measured in turn, beside the speed-up that their sizes allow.

    A checkpoint is first exported for the engine (onnxruntime: f32; llamacpp: f16), into a folder that vanishes; torch
    computes in one dtype for all, the one that the last model is stored in.

    JSON: `engine`, `dtype`, `threads`, `batch`, `prompt_tokens`, `new_tokens`, `repeats`, `results` (a list).
    """
    options = given(locals())
    with talking(as_json) as terminal:
        from ..jobs.bench import bench as measure
        from . import measured_views as views

        record = measure(terminal, **options)
        terminal.result(record, *views.benchmark(record))


@savable
def latency(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table, as JSON.", show_default=False)],
    units: Annotated[
        str, typer.Option(metavar="KINDS", help="What is to go: the kinds of units to measure.")
    ] = "neurons,heads",
    engine: Engine = "torch",
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of the engine.")] = 2,
    batch: Batch = 1,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 32,
    repeats: Turns = 5,
    multiple_of: Annotated[int, typer.Option(metavar="N", min=1, help="Neurons are measured at multiples of it.")] = 32,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace the table already at --out.")] = False,
    ffn: Ffn = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """How the time of a model falls as its layers shrink, here: the table that `prune --latency-table` reads.

    JSON: `model`, `shapes`, `setting`, `machine`, `kinds` (a kind of unit: `counts`, `prefill`, `decode`), `out`,
    `seconds`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs.latency import latency as measure
        from . import measured_views as views

        record = measure(terminal, **options)
        terminal.result(record, *views.latency(record))
