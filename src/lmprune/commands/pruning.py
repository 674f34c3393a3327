"""Commands that look at a model and prune it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..jobs.training_options import DISTILLATION, ON_THE_WAY, TRAINING
from .budgets import AIMS, TARGETS, spends
from .console import next_commands, talking
from .options import (
    ANSWER_TOKENS,
    AnswerTokens,
    CalibrationText,
    CalibrationTokens,
    ChatTemplate,
    Checkpoint,
    DataDir,
    Device,
    DryRun,
    Dtype,
    Ffn,
    Force,
    Holdout,
    Json,
    Keep,
    MaxMemory,
    MethodName,
    Model,
    MultipleOf,
    PlanFile,
    Plugin,
    PromptsFile,
    PushToHub,
    Quick,
    Ratio,
    Recover,
    RunFile,
    SaveDtype,
    ScopeName,
    ScoresOut,
    Seed,
    SeqLen,
    Stream,
    TimeBudget,
    Trust,
    Units,
)
from .parameters import given, pushed, refuse_options, trains
from .running import savable


def inspect(
    model: Model,
    ffn: Ffn = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="What megabytes are told in.")] = "float32",
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """What a model is made of, how it was pruned, and what each keep ratio would save; weights are not read.

    JSON: `model`, `family`, `layers`, `hidden_size`, `widths`, `gated`, `params`, `megabytes`, `dtype`, `parts`,
    `tied_embedding`, `units` (a list), `cache_bytes_per_token`, `multiple_of`, `keep` (a list),
    `plan` (how it was pruned, or null).
    """
    with talking(as_json) as terminal:
        from ..checkpoints import models
        from ..jobs import inspection
        from ..sites.families import parse_spec
        from . import views

        kind = models.check_dtype(dtype)
        spec = parse_spec(ffn) if ffn else None
        with terminal.busy(f"reading {model}"):
            skeleton = models.skeleton(model, trust_remote_code=trust_remote_code, note=terminal.note)
        kind = skeleton.dtype if isinstance(kind, str) else kind
        record = {"model": model, "dtype": str(kind).removeprefix("torch.")}
        plan = inspection.find_plan(model)
        for sentence in plan.remarks() if plan else ():
            terminal.note(sentence)
        record |= inspection.inspect(
            skeleton, inspection.feed_forward(skeleton, spec), bytes_per_param=kind.itemsize, plan=plan
        )  # fmt: skip
        terminal.result(record, *views.inspection(record))


@savable
@spends
@trains(TRAINING, DISTILLATION, ON_THE_WAY)
def prune(
    ctx: typer.Context,
    model: Model,
    out: Checkpoint,
    method: MethodName = "obs",
    units: Units = "neurons",
    keep: Keep = "0.75",
    scope: ScopeName = None,
    data: CalibrationText = None,
    data_dir: DataDir = None,
    calibration_tokens: CalibrationTokens = None,
    quick: Quick = False,
    time_budget: TimeBudget = None,
    recover: Recover = 0,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    holdout: Holdout = None,
    seq_len: SeqLen = 512,
    chat_template: ChatTemplate = False,
    multiple_of: MultipleOf = 32,
    plan: PlanFile = None,
    prompts: PromptsFile = None,
    answer_tokens: AnswerTokens = ANSWER_TOKENS,
    scores_out: ScoresOut = None,
    save_dtype: SaveDtype = None,
    push_to_hub: PushToHub = None,
    ffn: Ffn = None,
    stream: Stream = False,
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    run_file: RunFile = None,
    **training: Any,
) -> None:
    """Prune a model and write a checkpoint, with its tokenizer, `prune_plan.json` and a model card.

    At once by default; with --steps or --epochs while it is fine-tuned on the same text (docs/training.md).

    JSON: `model`, `method`, `units`, `keep` (asked), `kept`, `scope`, `plan`, `widths`, `params_before`,
    `params_after`, `ffn_params_before`, `ffn_params_after`, `dtype`, `stock`, `data`, `seconds`,
    `estimated_seconds`, `peak_memory_mb`, `answers`, `quality`, `out`, `scores_out`, `command`, `pushed`;
    with training also `training` (its settings, `schedule`, `seconds`, `first_loss`, `last_loss`, `first_perplexity`,
    `perplexity`). With --dry-run another: what would be left, and `ways`, what it takes as a whole and block by block.
    """
    options = given(locals())
    check_usage(ctx)
    if dry_run:
        return _tell(as_json, options)
    with talking(as_json, out) as terminal:
        from ..jobs.next_steps import after_prune
        from ..jobs.prune import prune as work
        from . import views

        with pushed(terminal, push_to_hub) as push:
            record = push(work(terminal, **options))
        terminal.result(record, *views.pruning(record), next_commands(after_prune(record, options)))


def _tell(as_json: bool, options: dict[str, Any]) -> None:
    """What the work would leave and take."""
    with talking(as_json) as terminal:
        from ..jobs.forecast import forecast
        from . import views

        record = forecast(terminal, **options)
        terminal.result(record, *views.forecast(record))


def check_usage(ctx: typer.Context) -> None:
    """Raises: UserError for options of `prune` that say the same twice."""
    if ctx.params["plan"] is not None:
        why = ", or --plan: the plan says which neurons stay"
        refuse_options(ctx, why, "method", "units", "keep", "scope", "multiple_of", "budget", *AIMS)
    targets = [name for name in AIMS if ctx.params[name] is not None]
    if targets:
        first = "--" + targets[0].replace("_", "-")
        refuse_options(ctx, f", or {first}: one says how much is left", *targets[1:], "keep")
    if ctx.params["budget"] is not None or any(name in TARGETS for name in targets):
        refuse_options(ctx, ": --budget says how a budget is spread over the layers", "scope")


def methods(plugin: Plugin = None, as_json: Json = False) -> None:
    """The methods that `prune --method` takes.

    JSON: `methods`, a list of `name`, `criterion`, `scope` (the default), `refit`, `summary`, `source`, `penalty`.
    """
    with talking(as_json) as terminal:
        from ..methods import all_methods
        from . import views

        record = {"methods": [method.record() for method in all_methods().values()]}
        terminal.result(record, *views.methods(record))


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.")] = Path("lmprune-demo"),
    keep: Ratio = 0.95,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Prune a real model, SmolLM2-135M-Instruct, in a few minutes and without a network, and compare before and after.

    JSON: `model`, `dequantised_from`, `method`, `keep`, `calibration`, `evaluation`, `answers`, `before` and `after`
    (each: `params`, `megabytes`, `perplexity`, `perplexity_se`, `prefill_tokens_per_second`,
    `decode_tokens_per_second`), `seconds`, `out`, `commands`.
    """
    with talking(as_json, out) as terminal:
        from ..jobs.demo import run_demo
        from . import views

        record = run_demo(terminal, out=out, keep=keep, force=force)
        terminal.result(record, *views.demo(record), next_commands(record["commands"]))
