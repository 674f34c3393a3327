"""What each part of the search for widths is worth: the search without it, at equal reading by the judge.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py [--keep 0.5] [--seed 0] [--variants evolution dp …]
    python benchmarks/ablations.py --table

SmolLM2's neurons, 8,192 tokens of WikiText train for the levels and 8 × 256 others for the judge: a quarter of what
`--budget evolution` takes, so that twelve searches take two hours of a core. What each variant finds is cut and
refitted behind its own cuts on the tokens of the levels, and measured on the judge's text (`kl`, nats a token) and on
the first 16,384 tokens of WikiText validation. All variants end with the best choice by the judge, without the last try
of `solve.trials`. Resumable: rows go to records/ablations.jsonl as they come; levels stay in benchmarks/runs.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from oneshot import RUNS, Bench, Results

from lmprune.budget import search
from lmprune.budget.budget import Budget, Spending
from lmprune.budget.choosing import floors
from lmprune.budget.levels import Choice, Choices
from lmprune.budget.search import Course, Effort, mutated
from lmprune.evaluation.perplexity import perplexity
from lmprune.progress import silent
from lmprune.sites.find import find_sites
from lmprune.sites.site import seams
from lmprune.solve import budgeted
from lmprune.solve.budgeted import Walk, shares
from lmprune.solve.database import Database
from lmprune.solve.obs import Metrics, ObsSettings, end_loss_metrics, obs_to_counts
from lmprune.solve.stitched import DenseEnds, Stitched, as_before

RECORDS = Path(__file__).parent / "records" / "ablations.jsonl"
#: tokens of the levels, and their sequences' length; tokens of WikiText
READ, SEQ_LEN, TEXT = 8192, 256, 16384
AMOUNTS = (2, 4, 8)


class Reading:
    """A judge that counts the sequences that it reads."""

    def __init__(self, judge: Stitched):
        self.judge, self.rounds, self.sequences = judge, judge.rounds, 0

    def loss(self, choice: Choice, amount: int) -> float:
        self.sequences += self.judge.amounts[amount]
        return self.judge.loss(choice, amount)

    def settle(self, choice: Choice) -> None:
        self.judge.settle(choice)

    def changes(self, choice: Choice) -> list[Mapping[int, float]]:
        self.sequences += self.judge.amounts[0] * (len(choice) + 1)
        return self.judge.changes(choice)


class Ground:
    """The dense model with its text; levels by what they were measured on. Each is made when it is asked for."""

    def __init__(self, bench: Bench, keep: float):
        self.bench, self.keep = bench, keep
        self.few, self.judged = shares(bench.calibration, READ)
        self.sites = seams(find_sites(bench.model), "the ablations")

    @cached_property
    def spending(self) -> Spending:
        budget = Budget(by="evolution")
        found = budget.settle(self.sites, budget.costs(self.sites, self.bench.model), self.keep)
        assert isinstance(found, Spending)
        return found

    @cached_property
    def metrics(self) -> Metrics:
        return end_loss_metrics(self.bench.model, self.sites, self.bench.calibration, ObsSettings())

    @cached_property
    def dense(self) -> float:
        """Its perplexity."""
        return perplexity(self.bench.model, self.bench.texts("wikitext", TEXT)).perplexity

    @cached_property
    def ends(self) -> DenseEnds:
        return DenseEnds(self.bench.model, self.sites, self.judged)

    @torch.no_grad()
    def levels(self, *, gradient: bool = True, behind: Sequence[int] | None = None) -> tuple[Choices, Database]:
        """gradient: errors in terms of the end loss. behind: the cuts that they are measured behind."""
        settings = ObsSettings(end_loss=gradient)
        metrics = self.metrics if gradient else Metrics()
        walk = Walk(self.bench.model, self.sites, self.few, metrics, settings, self.bench.seed)
        about = walk.about(behind)
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        database = Database(RUNS / f"ablations-{name}-{'end' if gradient else 'own'}", about)
        walk.fill(database, behind, silent)
        fewest = floors(self.sites, 1)
        grids = [budgeted._grid(site, 1, fewest[site.address]) for site in self.sites]
        levels = [database.levels(site.address, grid) for site, grid in zip(self.sites, grids, strict=True)]
        return Choices.of(levels, self.spending.costs, self.spending.most), database

    def uniform(self, choices: Choices) -> Choice:
        """The widest level that all sites can have."""
        number = len(choices.levels[0].counts)
        return next(each for level in range(number) if choices.fits(each := (level,) * len(choices.levels)))

    @torch.no_grad()
    def measured(self, counts: Sequence[int]) -> dict[str, float]:
        model = copy.deepcopy(self.bench.model)
        sites = seams(find_sites(model), "the ablations")
        ends = DenseEnds(model, sites, self.judged)
        obs_to_counts(model, sites, self.few, counts, metrics=self.metrics, seed=self.bench.seed)
        return {
            "kl": ends.divergence(),
            "perplexity": perplexity(model, self.bench.texts("wikitext", TEXT)).perplexity,
        }


@dataclass(frozen=True)
class Variant:
    """A way to find widths. gradient: errors in terms of the end loss. accumulates: levels are measured once more,
    behind the ranking's cuts. amounts, effort: as the search's own. sifted: of how many random children each is the
    best by errors. from_uniform: where the search begins, instead of the ranking. by: what searches; None: nothing."""

    by: Callable[[Choices, Course], object] | None = search.evolution
    gradient: bool = True
    accumulates: bool = True
    amounts: tuple[int, ...] = AMOUNTS
    effort: Effort = field(default_factory=Effort)
    sifted: int = 8
    from_uniform: bool = False

    def found(self, ground: Ground) -> tuple[list[int], dict[str, Any]]:
        """How many neurons each layer keeps, and what the search was."""
        choices, database = ground.levels(gradient=self.gradient)
        start = ground.uniform(choices) if self.from_uniform else search.ranking(choices)
        if self.by is None:
            return choices.counts(start), {}
        if self.accumulates:
            choices, database = ground.levels(gradient=self.gradient, behind=choices.counts(start))
        judge = Reading(Stitched(ground.bench.model, ground.sites, choices.levels, database, ground.ends, self.amounts))
        course = Course(judge, self.effort)
        begun = time.perf_counter()
        with as_before(ground.sites), torch.no_grad(), patch.object(search, "_SIFTED", self.sifted):
            course.offer(start, "start")
            self.by(choices, course)
        told = {"judged": course.loss, "sequences": judge.sequences, "seconds": round(time.perf_counter() - begun, 1)}
        return choices.counts(course.best), {**told, "log": course.log}


def at_random(choices: Choices, course: Course) -> None:
    """Choices around the first by up to twice as many swaps as there are layers, as many as `evolution` reads."""
    draw, first = Random(course.effort.seed), course.best
    for _ in range(EQUAL // AMOUNTS[-1]):
        course.offer(mutated(choices, first, draw, draw.randint(1, 2 * len(first))), "random")


#: sequences that `evolution` reads of 30 layers: in each generation 8 children of 2, 4 of 4 and the best one of 8; and
#: two of each layer in each of `dp`'s measurements, about
EQUAL = Effort().generations * (8 * 2 + 4 * 4 + 8) + Effort().reweighings * 31 * 2
VARIANTS: Mapping[str, Variant] = {
    "uniform": Variant(None, from_uniform=True),
    "ranking": Variant(None),
    "evolution": Variant(),
    "random search": Variant(at_random),
    "evolution, without error accumulation": Variant(accumulates=False),
    "evolution, without the gradient term": Variant(gradient=False),
    "evolution, without growing tokens": Variant(amounts=(8, 8), effort=Effort(reweighings=1, generations=7)),
    "ranking, without the gradient term": Variant(None, gradient=False),
    "evolution from uniform, children at random": Variant(sifted=1, from_uniform=True, effort=Effort(reweighings=0)),
    "dp": Variant(search.dp),
    "evolution, children at random": Variant(sifted=1),
    "random search from uniform": Variant(at_random, from_uniform=True),
}


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a variant, the mean over seeds."""
    rows = ["| search | seeds | judge | really cut | WikiText | sequences read | minutes |", "| --- " * 7 + "|"]
    for name in VARIANTS:
        if own := [r for r in records if r["variant"] == name]:
            kl, ratio = (statistics.mean(r[key] for r in own) for key in ("kl", "ratio"))
            searched = "judged" in own[0]
            judged = f"{statistics.mean(r['judged'] for r in own):.4f}" if searched else "–"
            read = f"{own[0]['sequences']}" if searched else "–"
            minutes = f"{statistics.mean(r['seconds'] for r in own) / 60:.0f}" if searched else "–"
            rows.append(f"| {name} | {len(own)} | {judged} | {kl:.4f} | {ratio:.3f} | {read} | {minutes} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=VARIANTS)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--table", action="store_true", help="print what has been measured so far")
    asked = parser.parse_args()
    results = Results(RECORDS)
    if not asked.table:
        bench = Bench(asked.model, asked.shared, asked.seed)
        bench.seq_len = SEQ_LEN
        ground = Ground(bench, asked.keep)
        for name in asked.variants:
            key = {"model": asked.model, "keep": asked.keep, "seed": asked.seed, "variant": name}
            if results.find(**key) is None:
                counts, told = VARIANTS[name].found(ground)
                found = ground.measured(counts)
                ratio = found["perplexity"] / ground.dense
                results.add({**key, **found, "ratio": ratio, "counts": counts, **told, "date": f"{date.today()}"})
    print(table(results.records))


if __name__ == "__main__":
    main()
