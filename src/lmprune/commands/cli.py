"""The command line: one command a verb, a row each. A command parses, calls, and shows its record as text or as JSON.

torch and transformers are imported inside the commands, so that `--help` is instant. docs/json.md lists the records.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from . import (
    comparing,
    deploying,
    interrupts,
    measuring,
    pruning,
    running,
    serving,
    streams,
    studies,
    sweeping,
    training,
)
from .console import Command, CommandGroup

#: in the order in which `--help` shows them
COMMANDS = {
    "inspect": pruning.inspect,
    "prune": pruning.prune,
    "finetune": training.finetune,
    "recover": training.recover,
    "teach": training.teach,
    "eval": measuring.evaluate,
    "analyze": measuring.analysis,
    "export": deploying.export,
    "bench": measuring.bench,
    "compare": comparing.compare,
    "sweep": sweeping.sweep,
    "chat": serving.chat,
    "serve": serving.serve,
    "latency": measuring.latency,
    "run": running.run,
    "study": studies.study,
    "report": studies.report,
    "methods": pruning.methods,
    "clean": running.clean,
    "demo": pruning.demo,
}

app = typer.Typer(
    cls=CommandGroup,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lmprune {version('lmprune')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_tell_version, metavar="", help="Show the version and exit."),
]


@app.callback()
def _without_command(ctx: typer.Context, tell_version: Version = False) -> None:
    """Prune the feed-forward neurons of generative language models: smaller, really faster, loads everywhere."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


#: commands that take another's options beside their own
_OTHERS_OPTIONS = {"sweep": {"allow_extra_args": True, "ignore_unknown_options": True}}

for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command, context_settings=_OTHERS_OPTIONS.get(_name))(_command)


def main() -> None:
    with interrupts.answered():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; ours tell what goes on
        streams.prepare()
        app(prog_name="lmprune")
