"""What commands do with their parameters before and after the work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import UserError
from ..jobs.training_options import Training, shown_default
from .console import Terminal


def trains(*panels: str, defaults: Mapping[str, Any] = {}) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of a command that ends in `**training`: it takes the options of `Training` that stand in these panels.

    defaults: where the command has others.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        signature, kinds = inspect.signature(command, eval_str=True), get_type_hints(Training)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                annotation=Annotated[kinds[field.name], _option(field.name, field.metadata, defaults)],
            )
            for field in fields(Training)
            if field.metadata["panel"] in panels
        ]  # fmt: skip
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        return command

    return with_options


def _option(name: str, about: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    names = [] if about["metavar"] else [f"--{name.replace('_', '-')}"]  # a switch without its opposite
    return typer.Option(
        *names, metavar=about["metavar"], help=about["help"], rich_help_panel=about["panel"],
        show_default=shown_default(name, about, defaults) or False,
    )  # fmt: skip


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A command's parameters, without what concerns only the command line."""
    ours = ("ctx", "as_json", "push_to_hub", "plugin", "training", "save_config", "dry_run")
    own = {name: value for name, value in parameters.items() if name not in ours}
    return own | parameters.get("training", {})


@contextmanager
def pushed(terminal: Terminal, repo_id: str | None) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that pushes what a record says was written; who may not push hears it before the work."""
    if repo_id is None:
        yield lambda record: record | {"pushed": None}
        return
    from ..checkpoints import hub
    from ..jobs.deploy import papers_of_copy

    hub.check_login(repo_id)

    def push(record: dict[str, Any]) -> dict[str, Any]:
        with terminal.busy(f"pushing to {repo_id}"):
            copied = papers_of_copy(record["model"], record["to"], record["notes"]) if "to" in record else {}
            return record | {"pushed": hub.push(Path(record["out"]), repo_id, papers=copied)}

    yield push


def known_options(ctx: Any) -> dict[str, dict[str, bool]]:
    """What every command takes, for files that name commands: command -> its options -> whether it is a flag."""
    commands = getattr(ctx.find_root().command, "commands", {})
    return {
        name: {p.name: getattr(p, "is_flag", False) for p in command.params if p.name}
        for name, command in commands.items()
    }


def as_given(ctx: Any) -> dict[str, Any]:
    """The parameters that were given, by name, without what only concerns how the command talks and overwrites."""
    ours = {"save_config", "as_json", "force", "resume", "dry_run"}
    return {name: value for name, value in ctx.params.items() if name not in ours and _was_given(ctx, name)}


def _was_given(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_options(ctx: typer.Context, why: str, *names: str) -> None:
    """Complain of those that were given."""
    for name in names:
        if _was_given(ctx, name):
            raise UserError(f"drop --{name.replace('_', '-')}{why}")
