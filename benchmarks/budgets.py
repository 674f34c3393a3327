"""Budgets spread over the layers: perplexity as a ratio to the dense model's, by how the budget is spread.

    OMP_NUM_THREADS=1 python benchmarks/budgets.py [--keep 0.5] [--by uniform ranking dp evolution global] [--seed 0]
    OMP_NUM_THREADS=1 python benchmarks/budgets.py --by global evolution --rounds 2
    OMP_NUM_THREADS=1 python benchmarks/budgets.py --by global --recover 1
    python benchmarks/budgets.py --table

The setting of the one-shot table (oneshot.py): 128 × 512 tokens of WikiText train, widths not rounded, the first 32,768
tokens of WikiText validation; and 4,096 of C4 and of code, which the calibration has none of. `global` is the scope of
that name, without a budget; in rounds the model is pruned again, as often as it takes, by equal ratios. Resumable: rows
go to benchmarks/records/budgets.jsonl as they come, and levels stay in benchmarks/runs.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from oneshot import LONG, RUNS, Bench, Results
from torch import Tensor

import lmprune
from lmprune import data
from lmprune.budget.budget import Budget
from lmprune.budget.search import BUDGETS, Effort
from lmprune.data.tokens import stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.study.run import accelerator
from lmprune.training.passes import towards

RECORDS = Path(__file__).parent / "records" / "budgets.jsonl"
#: tokens of each text that is not WikiText
FOREIGN = 4096


#: beside the ways to spread a budget
GLOBAL = "global"
WAYS = (*BUDGETS, GLOBAL)


def texts_of(bench: Bench) -> dict[str, Tensor]:
    """What is measured on, by name."""
    foreign = {
        kind: data.load(str(bench.shared / "data" / "text" / f"{kind}.validation.txt")) for kind in ("c4", "code")
    }
    read = {kind: stream(bench.tokenizer, text, FOREIGN)[0] for kind, text in foreign.items()}
    return {"wikitext": bench.texts("wikitext", LONG), **read}


def perplexities(model: Any, texts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: perplexity(model, ids).perplexity for name, ids in texts.items()}


def measured(
    bench: Bench, key: Mapping[str, Any], dense: Mapping[str, float], texts: Mapping[str, Tensor]
) -> dict[str, Any]:
    units, keep, by = str(key["units"]), float(key["keep"]), key["by"]
    rounds, passes = int(key.get("rounds", 1)), int(key.get("recover", 0))
    levels = RUNS / f"levels-{Path(bench.name).stem}-{units}-{bench.seed}"

    def how(after: int) -> dict[str, Any]:
        """after: how many rounds; levels of what they left are of that model alone."""
        if by == GLOBAL:
            return {"scope": "global"}
        place = levels.with_name(f"{levels.name}-{by}-{keep:g}-{after}-of-{rounds}") if after else levels
        effort = Effort(seed=bench.seed)
        return {"budget": Budget(by=by, effort=effort, levels=place, note=lambda said: print(said, flush=True))}

    model, start = copy.deepcopy(bench.model), time.perf_counter()
    *_, plan = [
        lmprune.prune(
            model, units=units.split("+"), method="obs", keep=keep ** (1 / rounds),  # type: ignore[arg-type]
            data=bench.calibration, multiple_of=1, seed=bench.seed, **how(after),
        )
        for after in range(rounds)
    ]  # fmt: skip
    if passes:
        towards(bench.model, model, bench.calibration, passes, seed=bench.seed)
    seconds, found = time.perf_counter() - start, perplexities(model, texts)
    return {
        **key, "perplexity": found, "dense": dense,
        "ratio": {name: found[name] / dense[name] for name in found},
        "counts": [len(plan.kept[address]) for address in plan.addresses], "seconds": round(seconds, 1),
        "params": sum(weight.numel() for weight in model.parameters()),
        "search": plan.provenance.get("search"), "date": date.today().isoformat(),
        "accelerator": accelerator(str(bench.model.device)),
    }  # fmt: skip


def name_of(record: Mapping[str, Any]) -> str:
    rounds, passes = record.get("rounds", 1), record.get("recover", 0)
    told = f"{record['by']}, {rounds} rounds" if rounds > 1 else record["by"]
    return f"{told}, then {passes} pass{'es' if passes > 1 else ''}" if passes else told


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a run."""
    rows = [
        "| model | units | keep | seed | budget | parameters | WikiText | C4 | code | minutes |",
        "| --- " * 10 + "|",
    ]
    by_setting = sorted(records, key=lambda r: (r["model"], r["units"], r["keep"], r["seed"], WAYS.index(r["by"])))
    for r in sorted(by_setting, key=lambda r: r.get("rounds", 1)):
        ratios = " | ".join(f"{r['ratio'][name]:.3f}" for name in ("wikitext", "c4", "code"))
        told = f"| {r['model']} | {r['units']} | {r['keep']:g} | {r['seed']} | {name_of(r)} | {r['params'] / 1e6:.1f} M"
        rows.append(f"{told} | {ratios} | {r['seconds'] / 60:.0f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--units", default="neurons", help="neurons, heads or neurons+heads")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.5])
    parser.add_argument("--by", nargs="*", default=list(BUDGETS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--recover", type=int, default=0, help="passes over the calibration text after the cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="print what has been measured so far")
    asked = parser.parse_args()
    results = Results(RECORDS)
    if not asked.table:
        bench = Bench(asked.model, asked.shared, asked.seed, device=asked.device)
        texts, name = texts_of(bench), Path(asked.model).stem
        before = next((r["dense"] for r in results.records if r["model"] == name), None)
        dense = before or perplexities(bench.model, texts)
        for keep in asked.keep:
            for by in asked.by:
                key = {"model": name, "units": asked.units, "keep": keep, "seed": asked.seed, "by": by}
                key |= {"rounds": asked.rounds} if asked.rounds > 1 or by == GLOBAL else {}
                passes = {"recover": asked.recover or None}  # records from before there were any do not say so
                if results.find(**key, **passes) is None:
                    key |= passes if asked.recover else {}
                    results.add(measured(bench, key, dense, texts))
    print(table(results.records))


if __name__ == "__main__":
    main()
