"""Recovery after one-shot pruning: SmolLM2-135M cut to half of its neurons by `obs`, distilled from the dense model.

    OMP_NUM_THREADS=1 python benchmarks/recovery.py --out out/recovery     # an hour and a half of one core; resumable

Carries out `lmprune prune` and `lmprune eval` as a user would. Trained on WikiText-2 train (`.tokens`), 120 steps of
4,096 tokens, KL to the dense model alone, the cut neurons gone. Perplexity along the way on the first 16,384 tokens of
validation (raw), context 512; the dense and the recovered model also on the first 32,768, context 1,024: there
benchmarks/oneshot.py has `obs` alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m"
STEPS = 120
#: name -> how perplexity is read
READINGS = {"along": ("--max-tokens", 16384, "--context", 512), "eval": ("--max-tokens", 32768, "--context", 1024)}


def lmprune(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "lmprune", *map(str, words), "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def kept(file: Path, *words: object) -> dict[str, Any]:
    """What the command printed, now or when the file was written."""
    if not file.exists():
        file.write_text(json.dumps(lmprune(*words)))
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wikitext = ["--data", "wikitext", "--data-dir", args.shared / "data" / "wikitext"]
    recovered = args.out / "recovered"
    training = ["--schedule", "oneshot", "--steps", STEPS, "--teacher", MODEL, "--kl-weight", 1, "--lr", 1e-4]
    training += ["--batch-size", 2, "--grad-accum", 4, "--seq-len", 512, "--eval-every", 20, "--save-every", 20]
    resume = ["--resume"] if recovered.with_name("recovered.training").exists() else []
    how = ["--method", "obs", "--keep", 0.5, *training, *resume, "--out", recovered]
    record = kept(args.out / "recovered.json", "prune", MODEL, *wikitext, *how)
    found = {
        f"{name}_{which}": kept(args.out / f"{name}_{which}.json", "eval", model, *wikitext, *reading)["perplexity"]
        for name, model in (("dense", MODEL), ("recovered", recovered))
        for which, reading in READINGS.items()
    }
    log = map(json.loads, (recovered / "training_log.jsonl").read_text().splitlines())
    along = {line["step"]: line["perplexity"] for line in log if "perplexity" in line}
    print(
        json.dumps(
            {"along": along, **found, "seconds": record["training"]["seconds"], "params": record["params_after"]}
        )
    )


if __name__ == "__main__":
    main()
