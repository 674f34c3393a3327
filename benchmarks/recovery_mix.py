"""A model cut by `obs` on text of several kinds, then distilled on such text; measured before and after.

    OMP_NUM_THREADS=1 python benchmarks/recovery_mix.py [--keep 0.5] [--seed 0] [--lr 3e-4] [--text natural] [--tasks]
    OMP_NUM_THREADS=1 python benchmarks/recovery_mix.py --scope global --steps 540 --bf16 --tasks
    python benchmarks/recovery_mix.py --table

Carries out `lmprune prune`, `recover` and `eval` as a user would. Calibration and training read what quality.py cuts
off the training files; settings are chosen by its texts to `choose` by, what docs/results.md tells are its texts
to `report`. STEPS steps of 4,096 tokens are what one core of the machine here does in three to four hours, half as many
again with --bf16; with an accelerator they take minutes (`--device cuda --bf16`). Records are written as they come.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import quality
from quality import TASKS, command

import lmprune
from lmprune.study.run import accelerator

RECORDS = Path(__file__).parent / "records" / "recovery_mix.jsonl"
MODEL = "smollm2-135m"
STEPS, CALIBRATION = 360, 65_536
#: name -> (source of training text, how many tokens of it): a fifth of each kind, or shares as there is text of each
TEXTS = {
    "equal": ("mix", 200_000),
    "natural": ("mix:wiki=0.6,c4=0.12,code=0.18,chat=0.075,technical=0.025", 1_400_000),
}
QUESTIONS = (
    "What is the capital of France?",
    "What color is the sky on a clear day?",
    "How many days are there in a week?",
    "What do bees make?",
    "Which planet do we live on?",
)


def cut(asked: argparse.Namespace) -> Path:
    """The model after `obs`, made once for each share, scope and seed."""
    of_it = "" if asked.model == MODEL else f"-{Path(asked.model).stem}"
    place = asked.out / f"obs-{asked.scope}-{asked.keep:g}-{asked.seed}{of_it}"
    if not place.is_dir():
        text = ("--data", "mix", "--data-dir", quality.CUT, "--calibration-tokens", CALIBRATION)
        rest = ("--keep", asked.keep, "--seed", asked.seed, "--answer-tokens", 0, "--device", asked.device)
        rest += ("--scope", asked.scope, "--save-dtype", "float32")
        command("prune", asked.model, "--method", "obs", *text, *rest, "--out", place)
    return place


def recovered(asked: argparse.Namespace, name: str) -> tuple[Path, dict[str, Any]]:
    source, tokens = TEXTS[asked.text]
    text = ("--data", source, "--data-dir", quality.CUT, "--train-tokens", tokens, "--seed", asked.seed)
    how = ("--steps", asked.steps, "--lr", asked.lr, "--kl-weight", asked.kl_weight, "--patience", 100)
    how += ("--temperature", asked.temperature)
    how += ("--batch-size", asked.batch_size, "--grad-accum", 8 // asked.batch_size, "--device", asked.device)
    how += ("--bf16",) if asked.bf16 else ()
    place = asked.out / name
    return place, command("recover", cut(asked), "--teacher", asked.model, *text, *how, "--out", place, "--force")


def measured(asked: argparse.Namespace, model: Path, measure: quality.Measure) -> dict[str, Any]:
    """Ratios by kind; with --tasks, WikiText as the one-shot table reads it, answers, and lm-eval's tasks."""
    found: dict[str, Any] = measure.ratios(lmprune.load(str(model)).to(asked.device))
    if asked.tasks:
        prompts = asked.out / "questions.txt"
        prompts.write_text("\n".join(QUESTIONS), encoding="utf-8")
        data = ("--data", "wikitext:raw", "--data-dir", asked.shared / "data" / "wikitext")
        read = (*data, "--max-tokens", 32_768, "--context", 1024, "--prompts", prompts, "--answer-tokens", 24)
        against = ("--baseline", asked.model, "--device", asked.device)
        found["wikitext"] = command("eval", model, *read, *against)
        limited = ("--data-dir", asked.shared / "data" / "zeroshot", "--limit", asked.limit, "--batch-size", 32)
        found["zero_shot"] = command("eval", model, "--tasks", TASKS, *limited, *against)
    return found


def before(asked: argparse.Namespace, named: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of the same cut on such a device, as much as is asked for now."""
    wanted = {name: named.get(name) for name in ("keep", "scope", "seed", "model")}
    wanted |= {"accelerator": accelerator(asked.device), "limit": asked.limit if asked.tasks else None}
    for r in read():
        found = {**r, "limit": r["one_shot"].get("zero_shot", {}).get("limit")}
        if all(found.get(name) == value for name, value in wanted.items()):
            return r["one_shot"]
    return None


def record(asked: argparse.Namespace) -> dict[str, Any]:
    named = {name: getattr(asked, name) for name in ("keep", "scope", "seed", "text", "lr", "kl_weight", "steps")}
    named |= {"temperature": asked.temperature} | ({} if asked.model == MODEL else {"model": Path(asked.model).stem})
    name = "-".join(f"{value}" for value in named.values())
    dense, tokenizer = lmprune.load(asked.model).to(asked.device), lmprune.load_tokenizer(asked.model)
    measure = quality.Measure(dense, tokenizer, asked.shared)
    del dense
    place, told = recovered(asked, name)
    after = measured(asked, place, measure)
    one_shot = before(asked, named) or measured(asked, cut(asked), measure)
    kept = ("training", "seconds", "peak_memory_mb", "command")
    return {
        **named, "date": date.today().isoformat(), "accelerator": accelerator(asked.device), "bf16": asked.bf16,
        "recover": {key: told[key] for key in kept}, "one_shot": one_shot, "recovered": after,
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    kinds = [kind for kind in records[0]["recovered"]["report"] if kind != "mean_log"]
    rows = [["model", "keep", "scope", "seed", "text", "steps", "lr", "T", "choose by", *kinds, "mean log"]]
    for r in records:
        for stage in ("one_shot", "recovered"):
            found = r[stage]
            how = [r["text"], str(r["steps"]), f"{r['lr']:g}", f"{r.get('temperature', 2):g}"]
            how = how if stage == "recovered" else ["obs alone", "", "", ""]
            numbers = [f"{found['report'][kind]:.3f}" for kind in (*kinds, "mean_log")]
            of = [r.get("model", MODEL), f"{r['keep']:g}", r.get("scope", "local"), str(r["seed"])]
            rows.append([*of, *how, f"{found['choose']['mean_log']:.3f}", *numbers])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("out/recovery_mix"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", choices=sorted(TEXTS), default="equal")
    parser.add_argument("--scope", default="local", choices=("local", "global"))
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=2, choices=(1, 2, 4, 8))
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--tasks", action="store_true")
    parser.add_argument("--only-cut", action="store_true", help="make the pruned model that others begin with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        print(table(read()))
        return
    asked.shared = asked.shared.resolve()
    asked.out.mkdir(parents=True, exist_ok=True)
    quality.cut_files(asked.shared)
    if asked.only_cut:
        cut(asked)
        return
    line = json.dumps(record(asked))
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
