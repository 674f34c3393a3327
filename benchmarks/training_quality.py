"""Prune while fine-tuning, every method: validation perplexity at equal steps, beside dense fine-tuning.

    python benchmarks/training_quality.py [--steps 500] [--seeds 0 1 2] [--keeps 0.25 0.5] [--only gum obs …]
    python benchmarks/training_quality.py --table

Model gpt-neo-mini, data WikiText-2 in its .tokens form, steps of 4 × 256 tokens, lr 5e-4, everything else the
defaults; perplexity on the first 65,536 tokens of validation, context 512. Resumable: results go to
benchmarks/runs/training_quality.jsonl as they come, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lmprune
from lmprune import data
from lmprune.checkpoints.shrinking import shrink
from lmprune.data.tokens import sequences, stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.gradual import GradualPruner, GradualSettings
from lmprune.sites.find import find_sites
from lmprune.training.settings import TrainSettings
from lmprune.training.teachers import OnlineTeacher
from lmprune.training.train import train

RUNS = Path(__file__).parent / "runs" / "training_quality.jsonl"
EVALUATION_TOKENS = 65536
DEFAULT = GradualSettings()


@dataclass(frozen=True)
class Recipe:
    """method: None = dense. schedule: cubic, or oneshot. distil: KL to the dense model, fine-tuned as long."""

    method: str | None
    schedule: str = "cubic"
    distil: bool = False
    settings: GradualSettings = DEFAULT
    adam_epsilon: float = TrainSettings.adam_epsilon
    lr: float = TrainSettings.lr


RECIPES: dict[str, Recipe] = {
    "dense": Recipe(None),
    **{name: Recipe(name) for name in ("random", "magnitude", "soft", "hard", "top_v", "gum", "obs")},
    "obs, oneshot": Recipe("obs", "oneshot"),
    "obs, distilled": Recipe("obs", distil=True),
    "obs, oneshot, distilled": Recipe("obs", "oneshot", distil=True),
    "gum, distilled": Recipe("gum", distil=True),
    "gum, warm": Recipe("gum", settings=GradualSettings(warm_start=True)),
    "gum, warm, distilled": Recipe("gum", distil=True, settings=GradualSettings(warm_start=True)),
}


class Bench:
    """held_out: perplexity on the last 3% of the training blocks, which no step then reads: for choosing, where
    validation is for reporting."""

    def __init__(self, shared: Path, *, held_out: bool = False):
        self.model = str(shared / "models" / "gpt-neo-mini")
        self.tokenizer = lmprune.load_tokenizer(self.model)
        wikitext = shared / "data" / "wikitext"
        train_text = data.load("wikitext:tokens", "train", data_dir=wikitext)
        self.train_ids = sequences(self.tokenizer, train_text, seq_len=256, num_tokens=2**62, seed=None)
        if held_out:
            num_held_out = len(self.train_ids) * 3 // 100
            self.evaluation_ids = self.train_ids[-num_held_out:].flatten()[:EVALUATION_TOKENS]
            self.train_ids = self.train_ids[:-num_held_out]
        else:
            validation = data.load("wikitext:tokens", "validation", data_dir=wikitext)
            self.evaluation_ids, _ = stream(self.tokenizer, validation, EVALUATION_TOKENS)
        self.teachers: dict[int, Any] = {}

    def run(self, recipe: Recipe, keep: float, seed: int, steps: int) -> dict[str, Any]:
        start = time.perf_counter()
        model = lmprune.load(self.model)
        examples = [{"input_ids": row} for row in self.train_ids]
        settings = TrainSettings(steps=steps, seed=seed, adam_epsilon=recipe.adam_epsilon, lr=recipe.lr)
        teacher = OnlineTeacher(self._teacher(seed, steps), model, 2.0) if recipe.distil else None
        how: dict[str, Any] = {"method": recipe.method, "keep": keep, "multiple_of": 1, "seed": seed}
        calibration = self.train_ids[seed::97][:128]  # 32,768 tokens from all over the text
        pruner = None
        if recipe.method and recipe.schedule == "oneshot":
            lmprune.prune(model, data=calibration, **how)
        elif recipe.method:
            pruner = GradualPruner(
                model, num_steps=steps, calibration=calibration[:64], settings=recipe.settings, **how
            )  # fmt: skip
        result = train(model, examples, settings, pruner=pruner, teacher=teacher)
        if recipe.method is None:
            self.teachers[seed] = model
        if pruner is not None:
            shrink(model, pruner.finish())
        found = perplexity(model, self.evaluation_ids)
        return {
            "keep": keep, "seed": seed, "steps": steps, "perplexity": found.perplexity,
            "perplexity_se": found.perplexity_se, "widths": [f.width for f in find_sites(model)],
            "train_seconds": round(result.seconds, 1), "seconds": round(time.perf_counter() - start, 1),
            "date": time.strftime("%Y-%m-%d"), **asdict(recipe), "log": result.log[::5],
        }  # fmt: skip

    def _teacher(self, seed: int, steps: int) -> Any:
        if seed not in self.teachers:
            model = lmprune.load(self.model)
            train(model, [{"input_ids": row} for row in self.train_ids], TrainSettings(steps=steps, seed=seed))
            self.teachers[seed] = model
        return self.teachers[seed]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def carry_out(
    bench: Bench, file: Path, recipes: dict[str, Recipe], *, seeds: list[int], keeps: list[float], steps: int
) -> None:
    """Add to `file` the runs that it does not have."""
    file.parent.mkdir(exist_ok=True)
    for seed, keep, (name, recipe) in itertools.product(seeds, keeps, recipes.items()):
        key = {"recipe": name, "keep": keep if recipe.method else 1.0, "seed": seed, "steps": steps}
        if any(all(r[k] == v for k, v in key.items()) for r in read(file)):
            continue
        record = {"recipe": name, **bench.run(recipe, key["keep"], seed, steps)}
        with file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        print({k: v for k, v in record.items() if k != "log"}, flush=True)


def table(records: list[dict[str, Any]], recipes: dict[str, Recipe]) -> str:
    """Markdown: mean perplexity ± standard deviation over seeds (number of seeds)."""
    keeps = sorted({r["keep"] for r in records if r["method"]}, reverse=True)
    lines = [f"| recipe | {' | '.join(f'keep {k:g}' for k in keeps)} |", "| --- " * (len(keeps) + 1) + "|"]
    for name in recipes:
        cells = []
        for keep in keeps:
            runs = [r for r in records if r["recipe"] == name and (r["keep"] == keep or not r["method"])]
            seen = [r["perplexity"] for r in runs]
            spread = f" ± {statistics.stdev(seen):.2f}" if len(seen) > 1 else ""
            cells.append(f"{statistics.mean(seen):.2f}{spread} ({len(seen)})" if seen else "")
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def command(about: str | None, file: Path, recipes: dict[str, Recipe], *, steps: int, held_out: bool = False) -> None:
    """The command line of this script, and of others with recipes of their own. steps: by default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--keeps", type=float, nargs="*", default=[0.25])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", default=list(recipes), metavar="RECIPE")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    args = parser.parse_args()
    if args.table:
        print(table([r for r in read(file) if r["steps"] == args.steps], recipes))
        return
    chosen = {name: recipes[name] for name in args.only}
    bench = Bench(args.shared, held_out=held_out)
    carry_out(bench, file, chosen, seeds=args.seeds, keeps=args.keeps, steps=args.steps)


if __name__ == "__main__":
    command(__doc__, RUNS, RECIPES, steps=500)
