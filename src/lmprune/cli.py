"""The command line: one command a verb. A command parses, calls, and shows its record as text or as JSON.

torch and transformers are imported inside the commands, so that `--help` is instant. docs/json.md lists the records.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Commands, Terminal, next_commands, talking
from .errors import UserError
from .options import (
    SOURCES,
    BatchSize,
    Bf16,
    ChatTemplate,
    ComputeOption,
    DataDir,
    Device,
    Dtype,
    Epochs,
    EvalEvery,
    Ffn,
    Force,
    GradAccum,
    GradientCheckpointing,
    Json,
    Keep,
    KlWeight,
    LoraRank,
    Lr,
    Model,
    PenaltyWeight,
    PushToHub,
    ReportTo,
    Resume,
    SaveEvery,
    ScheduleOption,
    ScoreLr,
    SeqLen,
    SimilarityWeight,
    Steps,
    Teacher,
    Temperature,
    TrainTokens,
    Trust,
    WarmStart,
    Warmup,
    WeightDecay,
)  # fmt: skip

app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _without_command(ctx: typer.Context) -> None:
    """Prune the feed-forward neurons of generative language models: smaller, really faster, loads everywhere."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def inspect(
    model: Model,
    ffn: Ffn = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="What megabytes are told in.")] = "float32",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """What a model is made of, how it was pruned, and what each keep ratio would save; weights are not read.

    JSON: `model`, `family`, `layers`, `hidden_size`, `widths`, `gated`, `params`, `megabytes`, `dtype`, `parts`,
    `tied_embedding`, `multiple_of`, `keep` (a list), `plan` (how it was pruned, or null).
    """
    with talking(as_json) as terminal:
        from . import inspection, models, views
        from .families import parse_spec
        from .ffn import find_ffns

        kind = models.check_dtype(dtype)
        spec = parse_spec(ffn) if ffn else None
        with terminal.busy(f"reading {model}"):
            skeleton = models.skeleton(model, trust_remote_code=trust_remote_code)
        kind = skeleton.dtype if isinstance(kind, str) else kind
        record = {"model": model, "dtype": str(kind).removeprefix("torch.")}
        plan = inspection.find_plan(model)
        record |= inspection.inspect(
            skeleton, find_ffns(skeleton, spec), bytes_per_param=kind.itemsize, plan=plan
        )  # fmt: skip
        terminal.result(record, *views.inspection(record))


@app.command()
def prune(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.", show_default=False)],
    method: Annotated[str, typer.Option(metavar="NAME", help="One of those that `lmprune methods` lists.")] = "obs",
    keep: Keep = 0.75,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="local|global",
            help="The same share of every layer, or of all layers together.",
            show_default="as the method",
        ),
    ] = None,
    data: Annotated[str, typer.Option(metavar="SRC", help=f"Text to calibrate on (train): {SOURCES}")] = "wikitext",
    data_dir: DataDir = None,
    calibration_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="How much of the text is read.")] = 65536,
    seq_len: SeqLen = 512,
    multiple_of: Annotated[
        int, typer.Option(metavar="N", min=1, help="Every layer's width becomes a multiple of it.")
    ] = 32,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the neurons that this `prune_plan.json` names.")
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of documents, of ties and random choices.")] = 0,
    force: Force = False,
    ffn: Ffn = None,
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushToHub = None,
    steps: Steps = None,
    epochs: Epochs = None,
    schedule: ScheduleOption = None,
    lr: Lr = None,
    score_lr: ScoreLr = None,
    batch_size: BatchSize = None,
    grad_accum: GradAccum = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    train_tokens: TrainTokens = None,
    eval_every: EvalEvery = None,
    save_every: SaveEvery = None,
    resume: Resume = False,
    teacher: Teacher = None,
    kl_weight: KlWeight = None,
    temperature: Temperature = None,
    compute: ComputeOption = None,
    penalty_weight: PenaltyWeight = None,
    similarity_weight: SimilarityWeight = None,
    warm_start: WarmStart = False,
    lora_rank: LoraRank = None,
    bf16: Bf16 = False,
    gradient_checkpointing: GradientCheckpointing = False,
    report_to: ReportTo = None,
    as_json: Json = False,
) -> None:
    """Prune a model and write a checkpoint, with its tokenizer, `prune_plan.json` and a model card.

    At once by default; with --steps or --epochs while it is fine-tuned on the same text (docs/training.md).

    JSON: `model`, `method`, `keep` (asked), `kept`, `scope`, `widths`, `params_before`, `params_after`,
    `ffn_params_before`, `ffn_params_after`, `dtype`, `stock`, `data`, `seconds`, `peak_memory_mb`, `out`, `command`,
    `pushed`;
    with training also `training` (its settings, `schedule`, `seconds`, `first_loss`, `last_loss`, `perplexity`).
    """
    options = _given(locals())
    if plan is not None:
        _refuse_options(ctx, ", or --plan: the plan says which neurons stay", "method", "keep", "scope", "multiple_of")
    with talking(as_json) as terminal:
        from . import jobs, views

        with _pushed(terminal, push_to_hub) as push:
            record = push(jobs.prune(terminal, **options))
        terminal.result(record, *views.pruning(record), next_commands(jobs.after_prune(options)))


@app.command()
def finetune(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="SRC", help=f"Text to train on (train): {SOURCES}")] = "wikitext",
    data_dir: DataDir = None,
    seq_len: SeqLen = 512,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the examples.")] = 0,
    force: Force = False,
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    grad_accum: GradAccum = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    train_tokens: TrainTokens = None,
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

    JSON: `model`, `params`, `data`, `training`, `seconds`, `peak_memory_mb`, `out`, `command`.
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import training_jobs, views

        record = training_jobs.finetune(terminal, **options)
        terminal.result(record, *views.finetuning(record))


@app.command()
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
    as_json: Json = False,
) -> None:
    """Write down what a teacher predicts for a training text, for `--teacher FILE`: distillation without it in memory.

    JSON: `model`, `data`, `examples`, `tokens`, `top_k`, `temperature`, `fingerprint`, `bytes`, `seconds`, `out`.
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import training_jobs, views

        record = training_jobs.teach(terminal, **options)
        terminal.result(record, *views.teaching(record))


_ONLY_TEXTS = ("context", "stride", "max_tokens", "baseline", "chat_template")
_ONLY_TASKS = ("limit", "decode", "max_new_tokens", "batch_size", "out")


@app.command("eval")
def evaluate(
    ctx: typer.Context,
    model: Model,
    data: Annotated[str, typer.Option(metavar="SRC", help=f"Text: {SOURCES}", show_default=False)],
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, validation or test.")] = "validation",
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
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Tasks: folder for predictions and scores; resumes what it holds."),
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Perplexity on a text, with its standard error; with a baseline, the paired difference. Or the scores of a task.

    JSON: `model`, `perplexity`, `perplexity_se`, `nll`, `nll_se`, `bits_per_byte`, `word_perplexity`, `tokens`,
    `context`, `stride`, `data`, `dtype`, `seconds`; with a baseline also `baseline`, `baseline_perplexity`,
    `perplexity_ratio`, `nll_difference`, `nll_difference_se`, `kl`, `top1_agreement`.

    JSON of a task (`wikisql`, `samsum`, `e2e`, pairs): its metrics, each with `…_ci`, its 95% interval; `items`,
    `decoded`, `contexts_cut`, `unfinished`, `sequences_per_second`, `decode`, `max_new_tokens`, `batch_size`, `out`.
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import jobs, views
        from .data.pairs import is_source

        if is_source(data):
            _refuse_options(ctx, f": it goes with texts, and {data} is a task", *_ONLY_TEXTS)
            record = jobs.evaluate_task(terminal, **{k: v for k, v in options.items() if k not in _ONLY_TEXTS})
            terminal.result(record, *views.task(record))
        else:
            _refuse_options(ctx, f": it goes with tasks, and {data} is a text", *_ONLY_TASKS)
            record = jobs.evaluate(terminal, **{k: v for k, v in options.items() if k not in _ONLY_TASKS})
            terminal.result(record, *views.evaluation(record))


@app.command("analyze")
def analysis(
    model: Model,
    data: Annotated[str, typer.Option(metavar="SRC", help=f"Text: {SOURCES}", show_default=False)],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for `analysis.json` and the figures.", show_default=False)
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="DENSE", help="The model before pruning: ratios to it, on the same tokens.")
    ] = None,
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, validation or test.")] = "validation",
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
    as_json: Json = False,
) -> None:
    """Why a model can be pruned: sensitivity and uniqueness of its neurons, look-alikes, dead ones, and advice.

    JSON: `model`, `uniqueness`, `sensitivity`, `layers` (a list), `clusters`, `advice`, `dead`, `uniqueness_ratio`,
    `sensitivity_ratio`, `tokens`, `seq_len`, `data`, `dtype`, `seconds`, `peak_memory_mb`, `out`.
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import views
        from .analyze import analyze

        record = analyze(terminal, **options)
        terminal.result(record, *views.analysis(record))


@app.command()
def export(
    model: Model,
    to: Annotated[str, typer.Option(metavar="TARGET", help="gguf, onnx, vllm, or hf-uniform.", show_default=False)],
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="A file for gguf, a folder for the others.", show_default=False)
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="gguf: f32, f16, bf16, q8_0, q5_0, q4_0; onnx: f32; vllm, hf-uniform: f32, f16, bf16.",
            show_default="gguf f16, onnx f32, the others as it is",
        ),
    ] = None,
    force: Force = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushToHub = None,
    as_json: Json = False,
) -> None:
    """Write a model, pruned or not, for llama.cpp, ONNX Runtime, vLLM, or as a stock checkpoint of one width.

    JSON: `model`, `to`, `dtype`, `widths`, `params`, `megabytes`, `details`, `notes`, `seconds`, `peak_memory_mb`,
    `out`, `command`, `pushed`.
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import deploy, views

        with _pushed(terminal, push_to_hub) as push:
            record = push(deploy.export(terminal, **options))
        terminal.result(record, *views.exporting(record))


@app.command()
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
    as_json: Json = False,
) -> None:
    """Tokens per second of models in one engine, measured in turn, beside the speed-up that their sizes allow.

    A checkpoint is first exported for the engine (onnxruntime: f32; llamacpp: f16), into a folder that vanishes.

    JSON: `engine`, `threads`, `batch`, `prompt_tokens`, `new_tokens`, `repeats`, `results` (a list).
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import views
        from .bench import bench as measure

        record = measure(terminal, **options)
        terminal.result(record, *views.benchmark(record))


@app.command()
def study(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The grid (docs/studies.md).", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for `results.jsonl`.", show_default=False)],
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Runs at a time.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Spread the runs over this Ray cluster; `local` starts one.")
    ] = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", metavar="", help="Keep pruned models when they are measured.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only show the runs, and an estimate of their time.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare methods: run a whole grid, add each run's record to `results.jsonl`; a killed study goes on.

    JSON: `study`, `runs`, `finished`, `failed` (a list of `id` and `error`), `results`, `seconds`; with --dry-run
    `study`, `runs`, `finished`, `todo` (a list of ids), `estimated_seconds`.
    """
    parent = ctx.find_root().command
    with talking(as_json) as terminal:
        from . import views
        from .study.job import study as carry_out

        known = {
            name: {p.name: getattr(p, "is_flag", False) for p in command.params if p.name}
            for name, command in getattr(parent, "commands", {}).items()
        }
        record = carry_out(
            terminal, file=file, out=out, jobs=jobs, ray=ray, keep_checkpoints=keep_checkpoints, dry_run=dry_run,
            commands=known,
        )  # fmt: skip
        terminal.result(record, *views.study(record))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `lmprune study` wrote to.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the pages.", show_default="DIR/report")
    ] = None,
    as_json: Json = False,
) -> None:
    """From a study's records: a page of tables and figures (`index.html`, `report.md`), each figure as SVG and PNG.

    JSON: `records`, `failed`, `broken`, `notes`, `figures`, `claims`, `out`, `seconds`.
    """
    with talking(as_json) as terminal:
        from . import views
        from .report.job import report as write

        record = write(folder, out)
        terminal.result(record, *views.report(record))


@app.command()
def methods(as_json: Json = False) -> None:
    """The methods that `prune --method` takes.

    JSON: `methods`, a list of `name`, `criterion`, `scope` (the default), `refit`, `summary`, `source`, `penalty`.
    """
    with talking(as_json) as terminal:
        from dataclasses import asdict

        from . import views
        from .methods import METHODS

        record = {"methods": [asdict(method) for method in METHODS.values()]}
        terminal.result(record, *views.methods(record))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.")] = Path("lmprune-demo"),
    keep: Keep = 0.75,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Prune a real model, SmolLM2-135M-Instruct, in a few minutes and without a network, and compare before and after.

    JSON: `model`, `dequantised_from`, `method`, `keep`, `calibration`, `evaluation`, `prompt`, `before` and `after`
    (each: `params`, `megabytes`, `perplexity`, `perplexity_se`, `prefill_tokens_per_second`,
    `decode_tokens_per_second`, `continuation`), `seconds`, `out`, `commands`.
    """
    with talking(as_json) as terminal:
        from . import views
        from .demo import run_demo

        record = run_demo(terminal, out=out, keep=keep, force=force)
        terminal.result(record, *views.demo(record), next_commands(record["commands"]))


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A command's parameters, without what concerns only the command line."""
    return {name: value for name, value in parameters.items() if name not in ("ctx", "as_json", "push_to_hub")}


@contextmanager
def _pushed(terminal: Terminal, repo_id: str | None) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that pushes what a record says was written; who may not push hears it before the work."""
    if repo_id is None:
        yield lambda record: record | {"pushed": None}
        return
    from . import hub
    from .deploy import papers

    hub.check_login(repo_id)

    def push(record: dict[str, Any]) -> dict[str, Any]:
        with terminal.busy(f"pushing to {repo_id}"):
            beside = papers(record["model"])
            return record | {"pushed": hub.push(Path(record["out"]), repo_id, papers=beside)}

    yield push


def _refuse_options(ctx: typer.Context, why: str, *names: str) -> None:
    """Complain of those that were given."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"drop --{name.replace('_', '-')}{why}")


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; ours tell what goes on
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up like Ctrl-C
    app(prog_name="lmprune")
