"""Commands that run a model in llama.cpp, to talk to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .console import talking
from .options import Json, Model, Trust
from .parameters import given

GGUFType = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Of the GGUF file that a checkpoint is served as: f16, q8_0, …",
        show_default="f16; a .gguf file as it is",
    ),
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="Of llama.cpp.", show_default="all processors")]
Context = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Tokens a conversation may have.", show_default="4096, or the model's maximum if less"
    ),
]


def serve(
    model: Model,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Where it listens; 0: any.")] = 8080,
    host: Annotated[str, typer.Option(metavar="NAME", help="0.0.0.0: for other machines, too.")] = "127.0.0.1",
    dtype: GGUFType = None,
    threads: Threads = None,
    context: Context = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Serve a model with llama.cpp: OpenAI's protocol at /v1, and llama.cpp's chat page for a browser.

    JSON, when it answers: `model`, `name`, `file`, `address`, `context`, `threads`, `chat_template`.
    """
    options: dict[str, Any] = {**given(locals()), "threads": threads or os.cpu_count() or 1}
    with talking(as_json) as terminal:
        from ..jobs.serve import serve as work
        from . import views

        work(terminal, ready=lambda record: terminal.result(record, *views.serving(record)), **options)


def chat(
    model: Model,
    baseline: Annotated[
        str | None, typer.Option(metavar="DENSE", help="Another model, which answers first, for comparison.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens an answer, at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(metavar="T", min=0, help="0: always the likeliest token, so that models compare.")
    ] = 0.0,
    dtype: GGUFType = None,
    threads: Threads = None,
    context: Context = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Talk to a model in llama.cpp, a line a question; with a baseline, both answer, each behind its name.

    JSON, at the end: `models`, `turns` (a list of `prompt` and `answers`, each `model`, `text`, `tokens`,
    `tokens_per_second`), `seconds`.
    """
    options: dict[str, Any] = {**given(locals()), "threads": threads or os.cpu_count() or 1}
    with talking(as_json) as terminal:
        from ..jobs.serve import chat as work

        record = work(terminal, questions=_lines(), **options)
        if as_json:
            terminal.result(record)


def _lines() -> Iterator[str]:
    """What the user types, a line at a time, until they end it."""
    asks = sys.stdin.isatty()
    while True:
        try:
            line: Any = input("> ") if asks else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not asks and not line:
            return
        yield line.strip()
