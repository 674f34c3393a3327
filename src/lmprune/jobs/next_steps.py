"""What to try after a command: commands that work as they stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import models


def after_prune(record: Mapping[str, Any], options: Mapping[str, Any]) -> list[list[str]]:
    """Commands to try on the checkpoint, arguments only; text that was calibrated on is not evaluated on."""
    data = ["python-docs"]
    if record["data"] is not None and options["data"].startswith("wikitext"):
        data = [options["data"], *(["--data-dir", str(options["data_dir"])] if options["data_dir"] else [])]
    if options["holdout"] is not None:
        data = [options["data"], "--holdout", f"{options['holdout']:g}"]
    trust = ["--trust-remote-code"] if options["trust_remote_code"] else []
    compare = ["--max-tokens", "8192", "--baseline", options["model"]]
    evaluations = [["eval", str(options["out"]), "--data", *data, *compare, *trust]]
    return [
        *(evaluations if models.has_tokenizer(Path(record["out"])) else []),
        ["inspect", str(options["out"]), *trust],
    ]
