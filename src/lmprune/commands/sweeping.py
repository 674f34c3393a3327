"""The command that prunes one model to several targets and shows what each costs and is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .comparing import ComparedTasks, EngineThreads, Items, MaxTokens, SpeedEngine, SpeedTurns, TasksDir, Window, shown
from .console import talking
from .options import Json, Model
from .parameters import given


def sweep(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder for all of it.", show_default=False)],
    targets: Annotated[
        str,
        typer.Option(metavar="A,B", help="0.9,0.75 (keep), 100M (parameters), 80MB, 1.5x, 20ms.", show_default=False),
    ],
    family: Annotated[
        bool,
        typer.Option("--family", metavar="", help="Reach each target from the one before, trained between."),
    ] = False,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Text to compare on.",
            show_default="validation split of --data; for a mix or self python-docs",
        ),
    ] = None,
    max_tokens: MaxTokens = 16384,
    context: Window = None,
    tasks: ComparedTasks = None,
    tasks_dir: TasksDir = None,
    limit: Items = 100,
    engine: SpeedEngine = "torch",
    threads: EngineThreads = 2,
    repeats: SpeedTurns = 5,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Begin again.")] = False,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Only go on with one that was begun.")] = False,
    as_json: Json = False,
) -> None:
    """Prune a model to several targets, and compare them with it: quality, size, speed, as a table and a page.

    With --family each is pruned from the one before, and what is trained on the way (--steps, --teacher) is kept.
    Every other option is one of `prune`, and is the same for all targets: --method, --units, --budget, --data, …
    A sweep that was stopped goes on where it was.

    JSON: `model`, `targets` (a list of `name`, `command`, `record`), `comparison` (as of `compare`), `page`, `out`,
    `seconds`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs.sweep import sweep as work
        from .checks import check_words

        def check(words: Sequence[str]) -> Mapping[str, Any]:
            return check_words(ctx, words)

        record = work(terminal, **options, words=ctx.args, check=check)
        terminal.result(record, *shown(record["comparison"]))
