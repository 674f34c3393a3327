"""What commands do with their parameters before and after the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..errors import UserError
from .console import Terminal


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A command's parameters, without what concerns only the command line."""
    ours = ("ctx", "as_json", "push_to_hub", "plugin")
    return {name: value for name, value in parameters.items() if name not in ours}


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


def refuse_options(ctx: typer.Context, why: str, *names: str) -> None:
    """Complain of those that were given."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"drop --{name.replace('_', '-')}{why}")
