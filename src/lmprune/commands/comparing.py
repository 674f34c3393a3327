"""The command that shows several models at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Views, table, talking
from .options import (
    ANSWER_TOKENS,
    AnswerTokens,
    ChatTemplate,
    DataDir,
    Device,
    Dtype,
    EvaluationText,
    Holdout,
    Json,
    Plugin,
    PromptsFile,
    Split,
    Trust,
)
from .parameters import given

#: what models are compared on, here and in `sweep`
MaxTokens = Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of the text that are read.")]
Window = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens a window.", show_default="1024, or the model's maximum if less")
]
ComparedTasks = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Tasks as well: wikisql, samsum, e2e, a .jsonl of pairs; lm-eval's as in `eval`."),
]
TasksDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with the tasks' files.", show_default="--data-dir")
]
Items = Annotated[int, typer.Option(metavar="N", min=1, help="Items of each task.")]
SpeedEngine = Annotated[str, typer.Option(metavar="NAME", help="For the speed: torch, onnxruntime, llamacpp.")]
EngineThreads = Annotated[int, typer.Option(metavar="N", min=1, help="Of the engine.")]
SpeedTurns = Annotated[int, typer.Option(metavar="N", min=1, help="Turns that are measured.")]


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Two or more; the first is compared with.", show_default=False),
    ],
    data: EvaluationText,
    data_dir: DataDir = None,
    split: Split = "validation",
    holdout: Holdout = None,
    chat_template: ChatTemplate = False,
    max_tokens: MaxTokens = 16384,
    context: Window = None,
    tasks: ComparedTasks = None,
    tasks_dir: TasksDir = None,
    limit: Items = 100,
    engine: SpeedEngine = "torch",
    threads: EngineThreads = 2,
    repeats: SpeedTurns = 5,
    prompts: PromptsFile = None,
    answer_tokens: AnswerTokens = ANSWER_TOKENS,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also a page, one `.html` file.")] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace the page already at --out.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Models side by side: size, perplexity, tasks, answers, speed, in one table and on one page.

    JSON: `models` (a list), `data`, `max_tokens`, `limit`, `engine`, `threads`, `out`, `seconds`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs.compare import compare as work

        record = work(terminal, **options)
        terminal.result(record, *shown(record))


def shown(record: Mapping[str, Any]) -> Views:
    from ..report import comparison
    from .answer_views import side_by_side

    names = comparison.names(record["models"])
    return [
        table(["", *names], comparison.glance(record)),
        *side_by_side(names, comparison.answers(record)),
        "",
        comparison.note(record),
        f"{record['seconds']:.0f} s" + (f"; the page is {record['out']}" if record["out"] else ""),
    ]
