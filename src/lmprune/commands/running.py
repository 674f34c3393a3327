"""The command that carries a run file out, and the option that writes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import talking
from .options import Json, SaveConfig
from .parameters import as_given, known_options


def run(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="What to do (docs/runs.md).", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only check the file, and show the commands.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Begin again, and replace what an earlier run wrote.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Only go on with one that was begun.")] = False,
    as_json: Json = False,
) -> None:
    """Carry out a whole run from one file, such as prune, finetune, eval, export; a stopped run goes on where it was.

    JSON: `file`, `out`, `steps` (a list of `name`, `command` and its `record`), `seconds`; with --dry-run `steps`
    (those that are done) and `todo` (commands).
    """
    with talking(as_json) as terminal:
        from ..jobs.run import run as carry_out
        from . import run_views as views
        from .checks import check_words

        def shown(name: str, record: Mapping[str, Any]) -> None:
            if not as_json:
                terminal.result({}, "", f"{name}:", *views.of_step(name, record))

        record = carry_out(
            terminal, file=file, dry_run=dry_run, force=force, resume=resume,
            check=functools.partial(check_words, ctx), shown=shown, commands=known_options(ctx),
        )  # fmt: skip
        terminal.result(record, *views.run(record))


def clean(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]…", help="Where to look.", show_default="here, and temporary files"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove what killed commands left half-written; the next command that writes to the same place does it, too.

    What a command is at work on is left alone. JSON: `removed` (a list of paths).
    """
    with talking(as_json) as terminal:
        from ..jobs.clean import clean as carry_out

        removed = carry_out(folders)["removed"]
        terminal.result({"removed": removed}, *(f"removed {path}" for path in removed), f"{len(removed)} removed")


def savable(command: Callable[..., None]) -> Callable[..., None]:
    """The command takes --save-config: it then only writes the file that `run` would carry out as this command."""
    signature = inspect.signature(command, eval_str=True)
    wants_ctx = "ctx" in signature.parameters

    @functools.wraps(command)
    def either(*, ctx: typer.Context, save_config: Path | None, **parameters: Any) -> None:
        if save_config is None:
            command(**parameters, **({"ctx": ctx} if wants_ctx else {}))
            return
        with talking(parameters["as_json"]) as terminal:
            from ..jobs.run_file import save

            save(save_config, str(ctx.info_name), as_given(ctx))
            terminal.result({"config": str(save_config)}, f"written to {save_config}: lmprune run {save_config}")

    by_name = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter("save_config", by_name, default=None, annotation=SaveConfig)]
    if not wants_ctx:
        added += [inspect.Parameter("ctx", by_name, annotation=typer.Context)]
    parameters = [p.replace(kind=by_name) for p in (*signature.parameters.values(), *added)]
    either.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    either.__annotations__ = {p.name: p.annotation for p in parameters}
    return either
