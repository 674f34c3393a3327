"""Commands that compare methods over a grid of runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from .console import talking
from .options import Json
from .parameters import known_options


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
        bool, typer.Option("--dry-run", metavar="", help="Only check and show the runs, and estimate their time.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", metavar="", help="Exit with 0 though runs failed.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where all commands work, instead of what the file says: cpu, cuda, auto."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Only go on with one that was begun.")] = False,
    as_json: Json = False,
) -> None:
    """Compare methods: run a whole grid, add each run's record to `results.jsonl`; a killed study goes on.

    Exit code 1 where runs failed (the others are done all the same), unless --keep-going.

    JSON: `study`, `runs`, `finished`, `failed` (a list of `id` and `error`), `results`, `seconds`; with --dry-run
    `study`, `runs`, `finished`, `todo` (a list of ids), `estimated_seconds`.
    """
    with talking(as_json) as terminal:
        from ..jobs.study import study as carry_out
        from . import measured_views as views
        from .checks import check_words

        record = carry_out(
            terminal, file=file, out=out, jobs=jobs, ray=ray, keep_checkpoints=keep_checkpoints, dry_run=dry_run,
            resume=resume, device=device, commands=known_options(ctx), check=functools.partial(check_words, ctx),
        )  # fmt: skip
        terminal.result(record, *views.study(record))
    if record.get("failed") and not keep_going:
        raise typer.Exit(1)


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
    with talking(as_json, out or folder / "report") as terminal:
        from ..jobs.report import report as write
        from . import measured_views as views

        record = write(folder, out)
        terminal.result(record, *views.report(record))
