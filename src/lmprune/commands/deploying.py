"""The command that writes a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import talking
from .options import Ffn, Force, Json, Model, Plugin, PushToHub, Stream, Trust
from .parameters import given, pushed
from .running import savable


@savable
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
            help="gguf: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_0, q4_k_m, q4_0; onnx: f32; others: f32, f16, bf16.",
            show_default="gguf f16, onnx f32, the others as it is",
        ),
    ] = None,
    force: Force = False,
    modelfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="gguf: also write an Ollama Modelfile, with the chat template in its words."),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not run what was written in its engine, to compare it with MODEL.")
    ] = False,
    ffn: Ffn = None,
    stream: Stream = False,
    trust_remote_code: Trust = False,
    plugin: Plugin = None,
    push_to_hub: PushToHub = None,
    as_json: Json = False,
) -> None:
    """Write a model, pruned or not, for llama.cpp, ONNX Runtime, vLLM, or as a stock checkpoint of one width.

    JSON: `model`, `to`, `dtype`, `widths`, `params`, `megabytes`, `details`, `verification`, `notes`, `seconds`,
    `peak_memory_mb`, `out`, `modelfile`, `command`, `pushed`.
    """
    options = given(locals())
    with talking(as_json, out) as terminal:
        from ..jobs import deploy
        from . import views

        with pushed(terminal, push_to_hub) as push:
            record = push(deploy.export(terminal, **options))
        terminal.result(record, *views.exporting(record))
