"""The options that several commands share, with what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id (`@revision`), folder, `.gguf` file, or `smollm2-135m`.", show_default=False
    ),
]
SOURCES = (
    "`wikitext` (`:raw`, `:tokens`), `python-docs`, a `.txt`, `.raw`, `.tokens`, `.md` or `.jsonl` file, "
    "a hub data set id, or `self`: written by the model."
)
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with `wiki.train.raw` and so on, for `wikitext`.")
]
Keep = Annotated[float, typer.Option(metavar="RATIO", help="Share of the feed-forward neurons that stay, in (0, 1].")]
Ffn = Annotated[
    str | None,
    typer.Option(metavar="PATHS", help="`up=…,down=…[,gate=…]`: the FFN of a model that lmprune does not know."),
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", metavar="", help="Render records with the model's chat template.")
]
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help="float32, bfloat16, float16, float64, or auto: as it was saved.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="As torch names it: cpu, cuda, cuda:1, mps.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", metavar="", help="Run the code that comes with the model.")]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Replace the checkpoint that is already at --out.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="One JSON object on stdout, and nothing else there.")]
PushToHub = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Push what was written to this repository of the hub.")
]
