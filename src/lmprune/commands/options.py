"""The options that several commands share, with what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    from .. import plugins

    for file in files or ():
        plugins.load_file(file)
    return files


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id (`@revision`), folder, `.gguf` file, or `smollm2-135m`.", show_default=False
    ),
]
SOURCES = (
    "`wikitext` (`:raw`, `:tokens`), `wikisql`, `samsum`, `e2e`, `python-docs`, a `.txt`, `.raw`, `.tokens`, `.md` or "
    "`.jsonl` file, a hub data set id, or `self`: written by the model."
)
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with the data set's own files; else from the hub.")
]
Keep = Annotated[float, typer.Option(metavar="RATIO", help="Share of the feed-forward neurons that stay, in (0, 1].")]
SeqLen = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens a sequence.")]
Ffn = Annotated[
    str | None,
    typer.Option(metavar="PATHS", help="`up=…,down=…[,gate=…]`: the FFN of a model that lmprune does not know."),
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", metavar="", help="Render records with the model's chat template.")
]
Dtype = Annotated[
    str,
    typer.Option(metavar="TYPE", help="To compute with: float32, bfloat16, float16, float64; auto: as it was saved."),
]
SaveDtype = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Of the weights in the file.", show_default="the original's"),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="As torch names it: cpu, cuda, cuda:1, mps.")]
Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="Run this Python file first: it may add methods and families (docs/plugins.md).",
        show_default=False,
        callback=_load_plugins,
    ),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", metavar="", help="Run the code that comes with the model.")]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Replace the checkpoint that is already at --out.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="One JSON object on stdout, and nothing else there.")]
PushToHub = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Push what was written to this repository of the hub.")
]


def _training(metavar: str, text: str, default: str | None = None) -> Any:
    """An option of training, None where it is not given; `default` is what `--help` then promises."""
    return typer.Option(metavar=metavar, help=text, show_default=default or False, rich_help_panel="Training")


def _switch(name: str, text: str) -> Any:
    return typer.Option(name, metavar="", help=text, rich_help_panel="Training")


Steps = Annotated[int | None, _training("N", "Train for so many optimizer steps, pruning on the way.")]
Epochs = Annotated[float | None, _training("N", "The same, as passes over the training text.")]
ScheduleOption = Annotated[str | None, _training("cubic|oneshot", "Prune little by little, or at once.", "cubic")]
Lr = Annotated[float | None, _training("RATE", "Peak learning rate of the weights.", "5e-4")]
ScoreLr = Annotated[float | None, _training("RATE", "Peak learning rate of learned scores.", "1e-2, soft more")]
BatchSize = Annotated[int | None, _training("N", "Sequences at once, of each process.", "4")]
GradAccum = Annotated[int | None, _training("N", "Batches a step.", "1")]
Warmup = Annotated[float | None, _training("SHARE", "Share of the steps in which rates rise.", "0.1")]
WeightDecay = Annotated[float | None, _training("RATE", "Of the weights; scores have none.", "0.1")]
AdamEpsilon = Annotated[float | None, _training("ε", "AdamW's, of the weights; the paper's code has 1e-4.", "1e-8")]
TrainTokens = Annotated[int | None, _training("N", "Train on the first so many tokens of the text.", "all")]
EvalEvery = Annotated[int | None, _training("N", "Validation perplexity at the start, every N steps and at the end.")]
SaveEvery = Annotated[int | None, _training("N", "Save the run every N steps, so that it can be resumed.")]
Resume = Annotated[bool, _switch("--resume", "Go on with the run that was killed or stopped.")]
Teacher = Annotated[str | None, _training("MODEL", "Distil from this model, or from a file of `lmprune teach`.")]
KlWeight = Annotated[float | None, _training("SHARE", "The teacher's share of the loss.", "0.5")]
Temperature = Annotated[float | None, _training("T", "Of the distillation.", "2")]
ComputeOption = Annotated[str | None, _training("full|gathered", "All neurons, or only the kept.", "gathered")]
PenaltyWeight = Annotated[float | None, _training("λ_f", "How hard scores are pressed (soft, gum).")]
SimilarityWeight = Annotated[float | None, _training("λ_u", "How much harder neurons that are like others (gum).")]
WarmStart = Annotated[bool, _switch("--warm-start", "Begin learned scores at the ranks of obs, and refit as it does.")]
LoraRank = Annotated[int | None, _training("N", "Train LoRA factors of this rank instead of all weights.")]
Bf16 = Annotated[bool, _switch("--bf16", "Mixed precision.")]
GradientCheckpointing = Annotated[bool, _switch("--gradient-checkpointing", "Less memory, more time.")]
LossOn = Annotated[str | None, _training("completion|sequence", "Pairs: which tokens count in the loss.", "completion")]
ReportTo = Annotated[str | None, _training("NAME", "Log to tensorboard, wandb, trackio, …", "nowhere")]
