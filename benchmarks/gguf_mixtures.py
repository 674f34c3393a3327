"""Mixtures of experts in llama.cpp: tiny random models of every row, whole and with half of their experts gone, beside
transformers.

    OMP_NUM_THREADS=1 python benchmarks/gguf_mixtures.py

Writes benchmarks/records/gguf_mixtures.json: for each model type, dtype and number of experts how far log probabilities
are apart by the export's own guard, and what its arithmetic explains; a refusal where the guard refuses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_gguf_mixtures import NAMES, mixture_of_words, written  # noqa: E402

import lmprune  # noqa: E402
from lmprune.errors import UserError  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "gguf_mixtures.json"
SEEDS, DTYPES = (0, 1, 2), ("f32", "f16")


def cell(name: str, seed: int, dtype: str, *, half: bool) -> dict[str, Any]:
    model = mixture_of_words(name, seed=seed)
    if half:
        lmprune.prune(model, units=("experts",), method="router", keep=0.5)
    what = {"model_type": name, "seed": seed, "dtype": dtype, "half": half}
    with tempfile.TemporaryDirectory() as room:
        try:
            told = written(model, Path(room) / "m.gguf", dtype=dtype)["verification"]
        except UserError as error:
            return what | {"refused": str(error)}
    return what | {key: told[key] for key in ("difference", "allowed")}


def main() -> None:
    cells = [
        cell(name, seed, dtype, half=half)
        for name in NAMES for seed in SEEDS for dtype in DTYPES for half in (False, True)
    ]  # fmt: skip
    RECORD.write_text(json.dumps({"date": date.today().isoformat(), "cells": cells}, indent=1) + "\n", encoding="utf-8")
    refused = [each for each in cells if "refused" in each]
    print(f"{len(cells)} cells, {len(refused)} refused")
    for dtype in DTYPES:
        found = [each["difference"] for each in cells if each["dtype"] == dtype and "difference" in each]
        print(f"{dtype}: at most {max(found):.2g} nats apart")
    for each in refused:
        print(each)


if __name__ == "__main__":
    main()
