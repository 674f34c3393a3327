"""The learning rate and GUM's weights on SmolLM2-135M, chosen on a held-out part of the training text.

    OMP_NUM_THREADS=1 python benchmarks/paper_settings.py [--shared ../shared] [--only NAME …] [--device cuda --jobs 8]
    python benchmarks/paper_settings.py --lr 1e-3 --only gum          # once top_v has told the rate
    python benchmarks/paper_settings.py --table

Each run is `lmprune prune` on WikiText-2's train file with 200 steps of 4 × 256 tokens, all parameters trained, and
`lmprune eval` on the 3% of that file that no step reads. The studies of the paper on this model take what is best here.
Resumable: a run that was stopped goes on from its last saved state; records are written as they come.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

from lmprune.checkpoints.begun import unfinished
from lmprune.study.run import accelerator

RECORDS = Path(__file__).parent / "records" / "paper_settings.jsonl"
KEEP, STEPS, HOLDOUT = 0.25, 200, 0.03
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
#: λ_f, λ_u
WEIGHTS = ((0.67, 5), (0.67, 1), (0.2, 5), (0.67, 20), (0.2, 1), (2, 5))


def settings(rate: float) -> dict[str, dict[str, Any]]:
    """Name -> options of `lmprune prune`: top_v at every learning rate, which tells the best; GUM's weights at one."""
    return {
        **{f"top_v, lr {lr:g}": {"method": "top_v", "lr": lr} for lr in RATES},
        **{
            f"gum, λ_f {f:g}, λ_u {u:g}, lr {rate:g}": {
                "method": "gum", "penalty-weight": f, "similarity-weight": u, "lr": rate
            }
            for f, u in WEIGHTS
        },
    }  # fmt: skip


def lmprune(*words: object) -> dict[str, Any]:
    line = [sys.executable, "-m", "lmprune", *map(str, words), "--json"]
    return json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)


def measured(name: str, asked: argparse.Namespace, text: Path) -> dict[str, Any]:
    options, steps, out, device = settings(asked.lr)[name], asked.steps, asked.out, ("--device", asked.device)
    place = out / name.replace(", ", "_").replace(" ", "")
    spelt = [word for option, value in options.items() for word in (f"--{option}", value)]
    data = ("--data", text, "--holdout", HOLDOUT)
    training = ("--steps", steps, "--batch-size", 4, "--seq-len", 256, "--save-every", steps)
    again = ("--resume",) if unfinished(place) else ("--force",)
    pruned = lmprune(
        "prune",
        "smollm2-135m",
        "--out",
        place,
        "--keep",
        KEEP,
        "--multiple-of",
        1,
        "--answer-tokens",
        0,
        *data,
        *training,
        *spelt,
        *again,
        *(["--bf16"] if asked.bf16 else []),
        *device,
    )
    found = lmprune("eval", place, *data, "--max-tokens", 32768, "--context", 256, *device)
    return {
        "name": name, "steps": steps, "keep": KEEP, "date": date.today().isoformat(), "options": options,
        "accelerator": accelerator(asked.device), "bf16": asked.bf16,
        **{key: found[key] for key in ("perplexity", "perplexity_se", "tokens")},
        **{key: pruned[key] for key in ("widths", "seconds", "peak_memory_mb", "training", "command")},
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    rows = [f"| {r['name']} | {r['perplexity']:.2f} ± {r['perplexity_se']:.2f} | {r['seconds']:.0f} |" for r in records]
    return "\n".join(["| settings | perplexity, held-out training text | seconds |", "| --- | --- | --- |", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("out/paper_settings"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=5e-4, help="at which GUM's weights are compared")
    parser.add_argument("--only", nargs="*", default=[""], help="what the names begin with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.is_file() else []
    records = [json.loads(line) for line in lines]
    if not asked.table:
        text = next((asked.shared / "data" / "wikitext").glob("wiki.train*"))
        known = {(r["name"], r["steps"]) for r in records}
        names = [name for name in settings(asked.lr) if name.startswith(tuple(asked.only))]
        todo = [name for name in names if (name, asked.steps) not in known]
        with ThreadPoolExecutor(asked.jobs) as pool:
            for ended in as_completed([pool.submit(measured, name, asked, text.resolve()) for name in todo]):
                records.append(ended.result())
                with RECORDS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
