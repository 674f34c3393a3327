"""The options that commands take, with what `--help` says of them; those of training are `jobs.training_options`.

The first screen of `--help` holds what most people need; the rest stands below it in named panels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    from .. import plugins

    for file in files or ():
        plugins.load_file(file)
    return files


#: the panels of `--help` below the first
TEXT, CHOICE, ANSWERS, FILES, MODELS = (
    "Text", "What is chosen", "Answers before and after", "What is written", "Unusual models"
)  # fmt: skip
#: tokens an answer, unless asked for otherwise
ANSWER_TOKENS = 48

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id (`@revision`), folder, `.gguf` file, or `smollm2-135m`.", show_default=False
    ),
]
SOURCES = (
    "`mix` (`:c4=0.4,…`), `wikitext` (`:raw`, `:tokens`), `wikisql`, `samsum`, `e2e`, `python-docs`, `python-code`, "
    "a `.txt`, `.raw`, `.tokens`, `.md` or `.jsonl` file, a hub data set id, or `self`: written by the model."
)
Checkpoint = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint.", show_default=False)]
MethodName = Annotated[str, typer.Option(metavar="NAME", help="One of those that `lmprune methods` lists.")]
Units = Annotated[
    str,
    typer.Option(
        metavar="KINDS",
        help="What goes: neurons, heads (key/value groups), experts, expert_neurons, layers, attentions, ffns; or a,b.",
    ),
]
Keep = Annotated[
    str, typer.Option(metavar="RATIO", help="Share of the units that stay, in (0, 1]; or neurons=0.5,heads=0.75.")
]
Ratio = Annotated[float, typer.Option(metavar="RATIO", help="Share of the feed-forward neurons that stay, in (0, 1].")]

ScopeName = Annotated[
    str | None,
    typer.Option(
        metavar="local|global",
        help="The same share of every layer, or of all layers together.",
        show_default="as the method",
    ),
]
CalibrationText = Annotated[
    str | None,
    typer.Option(
        metavar="SRC", help=f"Text to calibrate on (train): {SOURCES}", show_default="mix; while it trains, wikitext"
    ),
]
TrainingText = Annotated[str, typer.Option(metavar="SRC", help=f"Text to train on (train): {SOURCES}")]
StudentsText = Annotated[str, typer.Option(metavar="SRC", help=f"Text (train) that students train on: {SOURCES}")]
EvaluationText = Annotated[str, typer.Option(metavar="SRC", help=f"Text: {SOURCES}", show_default=False)]
EvaluatedText = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"Text, or pairs to decode: {SOURCES}", show_default=False)
]
ZeroShotTasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Zero-shot accuracy by lm-eval, of a,b,…: arc_easy, arc_challenge, hellaswag, piqa, winogrande, boolq, "
        "openbookqa, sciq, lambada.",
        show_default=False,
    ),
]
TextsByKind = Annotated[
    bool,
    typer.Option("--texts", metavar="", help="Perplexity by kind of text: of --data-dir, or as `mix` has them."),
]
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with the data set's own files; else from the hub.")
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="How much of the text neurons are scored on; with --steps, at each milestone.",
        show_default="65536, with --steps 16384",
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", metavar="", help="A first look: 4,096 tokens of calibration; a worse choice.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", metavar="", help="Tell what would be left, and the memory, disk and time it takes.")
]
Recover = Annotated[
    int,
    typer.Option(
        metavar="PASSES",
        min=0,
        help="After the cut, so many passes over the same text towards the dense model's predictions.",
        show_default="0",
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="As much calibration as fits into 90s, 10m, 1h.", show_default=False),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="train, validation or test.")]
Holdout = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Of a file of your own, also in a mix: eval reads this share of it, prune and finetune the rest.",
        rich_help_panel=TEXT,
    ),
]
SeqLen = Annotated[int, typer.Option(metavar="N", min=2, help="Tokens a sequence.", rich_help_panel=TEXT)]
ChatTemplate = Annotated[
    bool,
    typer.Option(
        "--chat-template", metavar="", help="Render records with the model's chat template.", rich_help_panel=TEXT
    ),
]
MultipleOf = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Every layer's width becomes a multiple of it.", rich_help_panel=CHOICE),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the neurons that this `prune_plan.json` names.", rich_help_panel=CHOICE),
]
ScoresOut = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Also write what neurons were chosen by: `.safetensors`.", rich_help_panel=CHOICE
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Tasks: folder for predictions and scores; resumes what it holds."),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="What is answered before and after: a prompt a line, or `.jsonl` with `prompt`.",
        show_default="four built in",
        rich_help_panel=ANSWERS,
    ),
]
AnswerTokens = Annotated[
    int,
    typer.Option(metavar="N", min=0, help="Tokens an answer, at most; 0: no answers.", rich_help_panel=ANSWERS),
]
Dtype = Annotated[
    str,
    typer.Option(metavar="TYPE", help="To compute with: float32, bfloat16, float16, float64; auto: as it was saved."),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu, …; auto: the accelerator there is, or as many as it takes."
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of the order of documents, of ties and random choices."),
]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Replace the checkpoint that is already at --out.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="One JSON object on stdout, and nothing else there.")]
SaveDtype = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE", help="Of the weights in the file.", show_default="the original's", rich_help_panel=FILES
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME", help="Push what was written to this repository of the hub.", rich_help_panel=FILES
    ),
]
SaveConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Only write this command as a file that `lmprune run` carries out.",
        rich_help_panel=FILES,
    ),
]
#: `lmprune run` tells its steps which file they are of, for the card
RunFile = Annotated[Path | None, typer.Option(metavar="FILE", hidden=True)]
Ffn = Annotated[
    str | None,
    typer.Option(
        metavar="PATHS",
        help="`up=…,down=…[,gate=…]`: the FFN of a model that lmprune does not know.",
        rich_help_panel=MODELS,
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        metavar="",
        help="Leave the model's blocks in their files and read them one by one; by itself where memory is short.",
        rich_help_panel=MODELS,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES",
        help="Read as with --stream, and hold no more than 4GB, 800MB, …: hidden states beyond it lie on the disk.",
        show_default=False,
        rich_help_panel=MODELS,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", metavar="", help="Run the code that comes with the model.", rich_help_panel=MODELS
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="Run this Python file first: it may add methods and families (docs/plugins.md).",
        show_default=False,
        callback=_load_plugins,
        rich_help_panel=MODELS,
    ),
]
