"""Whether a latency table tells what a plan will take, and whether a target for speed is met.

    python benchmarks/speed_targets.py --stage table [--engine llamacpp torch]       # lmprune latency, kept in runs/
    python benchmarks/speed_targets.py --stage plans [--number 10]                   # random widths: told and measured
    python benchmarks/speed_targets.py --stage targets [--budget uniform ranking]    # pruned to it, measured, eval
    python benchmarks/speed_targets.py --show

Every model is measured in turn with the dense one, in `lmprune bench`; an error is of the speed-up, measured over told.
PHASES says what of an engine's time counts. Records go to benchmarks/records/speed_targets.jsonl as they come, and what
is there is not run again. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from oneshot import RUNS, Results
from quality import command

import lmprune
from lmprune.budget.timing import LatencyTable, Timed
from lmprune.checkpoints import checkpoint
from lmprune.checkpoints.shrinking import shrink
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "speed_targets.jsonl"
PHASES: Mapping[str, Timed] = {"torch": "decode", "llamacpp": "prefill"}
TARGETS = (1.3, 1.5)
#: widths of random plans: multiples of it, from the least to all
STEP, LEAST = 32, 128
TEXT = ("--data", "wikitext:tokens", "--data-dir")


def table_of(asked: argparse.Namespace, engine: str) -> Path:
    file = RUNS / f"latency-{Path(asked.model).stem}-{engine}.json"
    if not file.is_file():
        RUNS.mkdir(exist_ok=True)
        how = ("--engine", engine, "--units", "neurons", "--repeats", asked.repeats, "--threads", asked.threads)
        command("latency", asked.model, *how, "--out", file)
    return file


def measured(asked: argparse.Namespace, engine: str, model: object) -> float:
    """How many times as fast as the dense model."""
    how = ("--engine", engine, "--repeats", asked.repeats, "--threads", asked.threads)
    found = command("bench", asked.model, model, *how)
    return found["results"][1][f"speedup_{PHASES[engine]}"]


def random_plan(asked: argparse.Namespace, engine: str, seed: int) -> dict[str, Any]:
    """Widths drawn for each layer alone; the first neurons stay, for which of them does not matter to the time."""
    model = lmprune.load(asked.model, dtype="auto")
    sites, draw = find_sites(model), torch.Generator().manual_seed(seed)
    counts = [int(torch.randint(LEAST // STEP, s.count // STEP + 1, (), generator=draw)) * STEP for s in sites]
    costs = LatencyTable.load(table_of(asked, engine), PHASES[engine]).costs(sites)
    before = {site.address: site.count for site in sites}
    told = costs.total(before) / costs.total(dict(zip(before, counts, strict=True)))
    plan = PrunePlan.of([*before], [torch.arange(count) for count in counts], [*before.values()])
    with tempfile.TemporaryDirectory(prefix="speed-targets-") as room:
        tokenizer = lmprune.load_tokenizer(asked.model)
        checkpoint.save(shrink(model, plan), Path(room) / "cut", tokenizer=tokenizer, plan=plan)
        found = measured(asked, engine, Path(room) / "cut")
    return {"counts": counts, "told": told, "measured": found}


def target(asked: argparse.Namespace, engine: str, speedup: float, budget: str) -> dict[str, Any]:
    """Pruned by obs to a speed-up of the table's, measured and evaluated."""
    texts = (*TEXT, asked.shared / "data" / "wikitext")
    with tempfile.TemporaryDirectory(prefix="speed-targets-") as room:
        out = Path(room) / "pruned"
        wish = ("--target-speedup", speedup, "--latency-table", table_of(asked, engine), "--latency-of", PHASES[engine])
        read = (*texts, "--calibration-tokens", asked.calibration_tokens, "--answer-tokens", 0)
        told = command("prune", asked.model, "--method", "obs", *wish, "--budget", budget, *read, "--out", out)
        found = measured(asked, engine, out)
        read = (*texts, "--max-tokens", asked.eval_tokens, "--context", 1024)
        quality = command("eval", out, *read, "--baseline", asked.model)
    cost = told["cost"]  # no more than asked for: widths are rounded down
    kept = {"params": told["params_after"], "cost": cost, "ratio": quality["perplexity_ratio"]}
    return {**kept, "told": cost["before"] / cost["after"], "measured": found}


def about(asked: argparse.Namespace, engine: str) -> dict[str, Any]:
    package = {"torch": "torch", "llamacpp": "xllamacpp"}[engine]
    versions = {name: version(name) for name in dict.fromkeys(("torch", package))}
    return {"date": date.today().isoformat(), "load": os.getloadavg()[0], "cpus": os.cpu_count(), "versions": versions}


def show(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a model; the error is of the speed-up."""
    rows = ["| engine | phase | widths | told × | measured × | error | perplexity |", "| --- " * 7 + "|"]
    for r in sorted(records, key=lambda r: (r["stage"], r["engine"])):
        name = f"random {r['seed']}" if r["stage"] == "plans" else f"{r['budget']}, {r['target']:g} ×"
        ratio = f"{r['ratio']:.3f}" if "ratio" in r else ""
        numbers = f"{r['told']:.3f} | {r['measured']:.3f} | {r['measured'] / r['told'] - 1:+.1%} | {ratio}"
        rows.append(f"| {r['engine']} | {r['phase']} | {name} | {numbers} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--stage", choices=("table", "plans", "targets"))
    parser.add_argument("--engine", nargs="*", default=[*PHASES], choices=[*PHASES])
    parser.add_argument("--number", type=int, default=10)
    parser.add_argument("--budget", nargs="*", default=["uniform", "ranking"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-tokens", type=int, default=16_384)
    parser.add_argument("--eval-tokens", type=int, default=16_384)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    results = Results(RECORDS)
    for engine in [] if asked.show else asked.engine:
        table_of(asked, engine)
        jobs: list[tuple[dict[str, Any], Any]] = []
        if asked.stage == "plans":
            jobs = [({"seed": n}, lambda n=n, e=engine: random_plan(asked, e, n)) for n in range(asked.number)]
        if asked.stage == "targets":
            jobs = [
                ({"budget": by, "target": x}, lambda x=x, by=by, e=engine: target(asked, e, x, by))
                for x in TARGETS
                for by in asked.budget
            ]
        for key, job in jobs:
            key = {"stage": asked.stage, "model": asked.model, "engine": engine, "phase": PHASES[engine], **key}
            if results.find(**key) is None:
                results.add({**key, **about(asked, engine), **job()})
    print(show(results.records))


if __name__ == "__main__":
    assert set(PHASES.values()) <= set(get_args(Timed))
    main()
