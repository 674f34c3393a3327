"""Neurons, heads and layers one-shot, alone and together, at the same number of removed parameters.

    OMP_NUM_THREADS=1 python benchmarks/units.py [--model smollm2-135m] [--shared ../shared] [--only NAME …]
    python benchmarks/units.py --model smollm2-135m --table

Perplexity of the pruned model as a ratio to the dense one's, calibrated and evaluated as the one-shot table is
(oneshot.py: 128 × 512 tokens of WikiText train, the first 32,768 of validation, context 1,024, float32). A ratio of
removed parameters is of those in the blocks. Resumable: records are written as they come.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from oneshot import LONG, Bench

import lmprune
from lmprune.data.beginning import Beginning
from lmprune.evaluation.perplexity import perplexity
from lmprune.sites.find import find_sites
from lmprune.study.run import accelerator

RECORDS = Path(__file__).parent / "records"
REMOVED = (0.10, 0.20, 0.35)


@dataclass(frozen=True)
class Row:
    """units at `keep`; keep None = so that `removed` of the blocks' parameters go."""

    units: tuple[Any, ...]
    method: str
    scope: str = "local"
    keep: float | None = None
    removed: float | None = None

    @property
    def name(self) -> str:
        much = f"keep {self.keep:.3g}" if self.keep else f"{self.removed:.0%} removed"
        return f"{'+'.join(self.units)}, {self.method}, {self.scope}, {much}"


ROWS = (
    *(Row(("heads",), method, keep=2 / 3) for method in ("obs", "magnitude", "taylor", "random", "flap")),
    *(
        row
        for removed in REMOVED
        for row in (
            Row(("neurons",), "obs", removed=removed),
            Row(("neurons",), "obs", "global", removed=removed),
            Row(("heads",), "obs", "global", removed=removed),
            Row(("layers",), "obs", removed=removed),
            Row(("layers",), "shortgpt", removed=removed),
            Row(("neurons", "heads"), "obs", "global", removed=removed),
        )
    ),
)


def block_params(model: Any) -> int:
    (layers,) = find_sites(model, ["layers"])
    return layers.params * layers.count


def keep_for(row: Row, model: Any) -> float | None:
    """The ratio of the row's units that leaves the asked parameters, or the nearest to `keep` that a layer has; None
    where they are too few to remove so much."""
    if row.keep is not None:
        count = find_sites(model, row.units)[0].count
        return round(row.keep * count) / count
    assert row.removed is not None
    own = sum(site.params * site.count for site in find_sites(model, row.units))
    keep = 1 - row.removed * block_params(model) / own
    return keep if keep > 0.02 else None


def measured(bench: Bench, row: Row, dense: float, tokens: Any, begin: Any) -> dict[str, Any] | None:
    keep = keep_for(row, bench.model)
    if keep is None:
        return None
    if row.units == ("layers",):
        (layers,) = find_sites(bench.model, ["layers"])
        keep = round(keep * layers.count) / layers.count
    model, start = copy.deepcopy(bench.model), time.perf_counter()
    plan = lmprune.prune(
        model, units=row.units, method=row.method, scope=row.scope, keep=keep,  # type: ignore[arg-type]
        data=bench.calibration, multiple_of=1, seed=bench.seed,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    result = perplexity(model, tokens, begin=begin)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (bench.model, model))
    return {
        "name": row.name, "units": row.units, "method": row.method, "scope": row.scope, "keep": keep,
        "asked": row.removed, "removed": (before - after) / block_params(bench.model), "params": after,
        "perplexity": result.perplexity, "dense": dense, "ratio": result.perplexity / dense,
        "counts": [len(plan.kept[address]) for address in plan.addresses], "seconds": seconds,
        "calibration_tokens": bench.calibration.numel(), "tokens": result.tokens, "date": date.today().isoformat(),
        "accelerator": accelerator(str(bench.model.device)),
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    rows = [
        f"| {r['name']} | {r['removed']:.1%} | {r['perplexity']:.2f} | {r['ratio']:.3f} | {math.log(r['ratio']):.3f} |"
        for r in sorted(records, key=lambda r: (r["asked"] or 0, r["ratio"]))
    ]
    head = [
        "| units, method, scope | parameters removed (of the blocks') | perplexity | ratio | log |",
        "| --- " * 5 + "|",
    ]
    return "\n".join([*head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    file = RECORDS / f"units-{Path(asked.model).stem}.jsonl"
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
    if not asked.table:
        bench = Bench(asked.model, asked.shared, seed=0, device=asked.device)
        tokens, begin = bench.texts("wikitext", LONG), Beginning.of(bench.tokenizer).ids
        known = {r["name"] for r in records}
        wanted = [r for r in ROWS if r.name not in known and (not asked.only or any(o in r.name for o in asked.only))]
        dense = next((r["dense"] for r in records), None) or perplexity(bench.model, tokens, begin=begin).perplexity
        for row in wanted:
            found = measured(bench, row, dense, tokens, begin)
            if found is not None:
                records.append(found)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(found) + "\n")
                print(f"{found['name']}: {found['ratio']:.3f}", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
