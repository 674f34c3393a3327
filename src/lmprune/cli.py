"""The command line: one command a verb. A command parses, calls, and shows its record as text or as JSON.

torch and transformers are imported inside the commands, so that `--help` is instant. docs/json.md lists the records.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Commands, next_commands, talking
from .errors import UserError
from .options import SOURCES, ChatTemplate, DataDir, Device, Dtype, Ffn, Force, Json, Keep, Model, Trust

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
    seq_len: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens a sequence.")] = 512,
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
    as_json: Json = False,
) -> None:
    """Prune a model and write a checkpoint, with its tokenizer, `prune_plan.json` and a model card.

    JSON: `model`, `method`, `keep` (asked), `kept`, `scope`, `widths`, `params_before`, `params_after`,
    `ffn_params_before`, `ffn_params_after`, `dtype`, `stock`, `data`, `seconds`, `peak_memory_mb`, `out`, `command`.
    """
    options = _given(locals())
    if plan is not None:
        _refuse_beside_plan(ctx, "method", "keep", "scope", "multiple_of")
    with talking(as_json) as terminal:
        from . import jobs, views

        record = jobs.prune(terminal, **options)
        terminal.result(record, *views.pruning(record), next_commands(jobs.after_prune(options)))


@app.command("eval")
def evaluate(
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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    chat_template: ChatTemplate = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Perplexity with its standard error, and bits per byte; with a baseline, the paired difference.

    JSON: `model`, `perplexity`, `perplexity_se`, `nll`, `nll_se`, `bits_per_byte`, `tokens`, `context`, `stride`,
    `data`, `dtype`, `seconds`; with a baseline also `baseline`, `baseline_perplexity`, `perplexity_ratio`,
    `nll_difference`, `nll_difference_se`, `kl`, `top1_agreement`.
    """
    options = _given(locals())
    with talking(as_json) as terminal:
        from . import jobs, views

        record = jobs.evaluate(terminal, **options)
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

    JSON: `methods`, a list of `name`, `criterion`, `scope` (the default), `refit`, `summary`, `source`.
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
    return {name: value for name, value in parameters.items() if name not in ("ctx", "as_json")}


def _refuse_beside_plan(ctx: typer.Context, *names: str) -> None:
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise UserError(f"drop {option}, or --plan: the plan says which neurons stay")


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; ours tell what goes on
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up like Ctrl-C
    app(prog_name="lmprune")
