"""How near the times are that lmprune tells before long work: what it told, and what that took, in one run.

    python benchmarks/estimates.py [--only NAME …] [--record FILE]

Each job is a command as a user gives it, in a process of its own, on SmolLM2-135M (a package) and Python's manual. A
job's record is written when it ends. What works beside it on this machine makes the ratios worse: leave it alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

MODEL, TEXT = "smollm2-135m", ("--data", "python-docs")
STUDY = """\
name: estimates
models: [smollm2-135m]
tasks: {manual: {data: python-docs}}
methods:
  - {name: magnitude, label: trained, prune: {steps: 12, batch_size: 1, seq_len: 512}}
  - {name: taylor, prune: {calibration_tokens: 8192}}
keep: [0.75]
eval: {max_tokens: 8192, context: 512}
analyze: {max_tokens: 2048, seq_len: 256}
"""


def lmprune(*words: object) -> tuple[dict[str, Any], float]:
    """The record of a command, and the seconds of its process."""
    start = time.perf_counter()
    line = [sys.executable, "-m", "lmprune", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - start


def pruned(*options: object) -> Callable[[Path], dict[str, Any]]:
    def job(folder: Path) -> dict[str, Any]:
        record, wall = lmprune("prune", MODEL, *TEXT, *options, "--answer-tokens", 0, "--out", folder / "out")
        return {"told": record["estimated_seconds"], "took": record["seconds"], "wall": wall}

    return job


def in_time(seconds: int) -> Callable[[Path], dict[str, Any]]:
    def job(folder: Path) -> dict[str, Any]:
        words = ("prune", MODEL, *TEXT, "--keep", 0.9, "--time-budget", f"{seconds}s", "--out", folder / "out")
        record, wall = lmprune(*words)
        return {"told": seconds, "took": record["seconds"], "wall": wall}

    return job


def study(folder: Path) -> dict[str, Any]:
    file = folder / "study.yaml"
    file.write_text(STUDY)
    told, _ = lmprune("study", file, "--out", folder / "out", "--dry-run")
    _, wall = lmprune("study", file, "--out", folder / "out")
    return {"told": told["estimated_seconds"], "took": wall, "wall": wall}


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "prune --quick": pruned("--keep", 0.75, "--quick"),
    "prune, obs, 16,384 tokens": pruned("--keep", 0.75, "--calibration-tokens", 16384),
    "prune, activation, 32,768 tokens": pruned("--keep", 0.75, "--method", "activation", "--calibration-tokens", 32768),
    "prune, taylor, 8,192 tokens": pruned("--keep", 0.75, "--method", "taylor", "--calibration-tokens", 8192),
    "prune, --time-budget 3m": in_time(180),
    "study of three runs": study,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*JOBS], choices=[*JOBS])
    parser.add_argument("--record", type=Path, default=Path(__file__).parent / "records" / "estimates.jsonl")
    asked = parser.parse_args()
    for name in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            found = JOBS[name](Path(folder))
        row = {"job": name, **found, "ratio": found["took"] / found["told"], "threads": torch.get_num_threads()}
        with asked.record.open("a") as record:
            record.write(json.dumps({**row, "date": date.today().isoformat()}) + "\n")
        print(f"{name}: told {row['told']:.0f} s, took {row['took']:.0f} s ({row['ratio']:.2f}×)", flush=True)


if __name__ == "__main__":
    main()
