"""What to try after a command: commands that work as they stand, by what was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import models
from ..runtimes.architectures import GGUF
from .asked import usual_text


def after_prune(record: Mapping[str, Any], options: Mapping[str, Any]) -> list[list[str]]:
    """Commands to try on the checkpoint, arguments only: what it cost, what it says, what it is for."""
    out, trust = str(options["out"]), ["--trust-remote-code"] if options["trust_remote_code"] else []
    if not models.has_tokenizer(Path(record["out"])):
        return [["inspect", out, *trust]]
    compare = ["--max-tokens", "8192", "--baseline", options["model"]]
    measured = ["eval", out, "--data", *_held_out(record, options), *compare, *trust]
    if not _runs_in_llama_cpp(Path(record["out"])):
        return [measured, ["bench", options["model"], out], ["inspect", out, *trust]]
    return [
        measured,
        ["chat", out, "--baseline", options["model"], *trust],
        ["export", out, "--to", "gguf", "--out", f"{out}.gguf", *trust],
        ["serve", out, *trust],
    ]


def _held_out(record: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Text that was not calibrated on: the own one's validation split, if it has one."""
    data, where = options["data"], ["--data-dir", str(options["data_dir"])] if options["data_dir"] else []
    if options["holdout"] is not None and data is not None:
        return [data, "--holdout", f"{options['holdout']:g}", *where]
    data = data or usual_text(trains="training" in record)
    if record["data"] is not None and data.startswith("wikitext"):
        return [data, *where]
    return ["python-docs"]


def _runs_in_llama_cpp(folder: Path) -> bool:
    """Whether llama.cpp has its architecture; a width for each layer may still be too much for it, and is refused."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") in GGUF
