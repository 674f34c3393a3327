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
from .options import SOURCES, ChatTemplate, DataDir, Device, Dtype, Ffn, Force, Json, Keep, Model, PushToHub, Trust

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
    push_to_hub: PushToHub = None,
    as_json: Json = False,
) -> None:
    """Prune a model and write a checkpoint, with its tokenizer, `prune_plan.json` and a model card.

    JSON: `model`, `method`, `keep` (asked), `kept`, `scope`, `widths`, `params_before`, `params_after`,
    `ffn_params_before`, `ffn_params_after`, `dtype`, `stock`, `data`, `seconds`, `peak_memory_mb`, `out`, `command`,
    `pushed`.
    """
    options = _given(locals())
    if plan is not None:
        _refuse_beside_plan(ctx, "method", "keep", "scope", "multiple_of")
    with talking(as_json) as terminal:
        from . import jobs, views

        with _pushed(terminal, push_to_hub) as push:
            record = push(jobs.prune(terminal, **options))
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
