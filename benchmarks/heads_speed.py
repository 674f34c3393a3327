"""What attention heads cost in time where the context is long: dense against a part of the key/value groups.

    python benchmarks/heads_speed.py [--model smollm2-135m] [--engines llamacpp torch] [--keep 0.334]
        [--prompts 512 4096] [--new-tokens 32] [--repeats 5] [--threads 2] [--out benchmarks/records/heads_speed.jsonl]
    python benchmarks/heads_speed.py --table

Which groups go does not matter to the time: the first ones stay. The two models take turns in `lmprune bench`, each in
a process of its own; the ideal of decode is the ratio of the bytes read for a token, weights and cache. One record an
engine and a length goes to --out as a line of JSON; what is there already is not measured again. Leave the machine
alone meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lmprune
from lmprune.checkpoints import checkpoint
from lmprune.checkpoints.shrinking import shrink
from lmprune.evaluation.engines import ENGINES
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites

PHASES = ("prefill", "decode")


def with_heads(name: str, keep: float, out: Path) -> str:
    """The model with a share of each layer's groups, at least one, as a checkpoint."""
    model, tokenizer = lmprune.load(name), lmprune.load_tokenizer(name)
    sites = find_sites(model, ("heads",))
    kept = [torch.arange(max(1, round(keep * site.count))) for site in sites]
    plan = PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites])
    checkpoint.save(shrink(model, plan), out, tokenizer=tokenizer, plan=plan)
    return str(out)


def measure(args: argparse.Namespace, engine: str, prompt_tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="heads-speed-") as room:
        models = [with_heads(args.model, keep, Path(room) / str(keep)) for keep in (1.0, args.keep)]
        numbers = {"prompt-tokens": prompt_tokens} | {
            name: getattr(args, name.replace("-", "_")) for name in ("threads", "new-tokens", "repeats")
        }
        options = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "lmprune", "bench", *models, "--engine", engine, *options, "--json"]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    package = {"torch": "torch", "onnxruntime": "onnxruntime", "llamacpp": "xllamacpp"}[engine]
    about = {"date": datetime.date.today().isoformat(), "load": os.getloadavg()[0], "cpus": os.cpu_count()}
    versions = {name: version(name) for name in {"torch", "transformers", package}}
    return {**setting(args, engine, prompt_tokens), **about, "versions": versions, "results": found["results"]}


def setting(args: argparse.Namespace, engine: str, prompt_tokens: int) -> dict[str, Any]:
    """What makes two runs the same."""
    names = ("model", "keep", "new_tokens", "repeats", "threads")
    return {"engine": engine, "prompt_tokens": prompt_tokens, **{name: getattr(args, name) for name in names}}


def table(records: list[dict[str, Any]]) -> str:
    """Cache bytes, tokens a second, how many times as fast, and the share of the ideal that is."""
    columns = ["engine", "prompt", "cache a token", *(f"{phase} {what}" for phase in PHASES for what in ("×", "ideal"))]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for record in records:
        dense, pruned = record["results"]
        cells = [record["engine"], f"{record['prompt_tokens']:,}"]
        cells += [" → ".join(f"{each['cache_bytes_per_token']:,}" for each in (dense, pruned))]
        cells += [f"{pruned[f'{what}_{phase}']:.2f}" for phase in PHASES for what in ("speedup", "ideal")]
        lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engines", nargs="+", default=["llamacpp", "torch"], choices=list(ENGINES))
    parser.add_argument("--keep", type=float, default=0.334)
    parser.add_argument("--prompts", nargs="+", type=int, default=[512, 4096])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records" / "heads_speed.jsonl")
    parser.add_argument("--table", action="store_true", help="print what has been measured as Markdown")
    args = parser.parse_args()
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    done = [json.loads(line) for line in lines]
    if args.table:
        print(table(done))
        return
    for engine in args.engines:
        for prompt_tokens in args.prompts:
            key = setting(args, engine, prompt_tokens)
            if any(all(record.get(k) == value for k, value in key.items()) for record in done):
                print(f"{engine} at {prompt_tokens}: done before")
                continue
            record = measure(args, engine, prompt_tokens)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(table([record]))


if __name__ == "__main__":
    main()
