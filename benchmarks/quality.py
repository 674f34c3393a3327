"""How well a pruned model does on text of kinds that it was not calibrated on, by calibration, method and settings.

    python benchmarks/quality.py --calibrate wikitext --methods obs,flap,activation
    python benchmarks/quality.py --calibrate mix --methods obs --tokens 65536 --scope global
    python benchmarks/quality.py --calibrate mix --methods dense,obs,flap --tokens 65536 --limit 150 --device cuda
    python benchmarks/quality.py --calibrate mix --methods obs --tokens 65536 --recover 1
    python benchmarks/quality.py --table                     # what has been measured so far

Resumable: results go to benchmarks/records/quality.jsonl as they come, and what is there is not run again. Each pruned
model is measured on two sets of texts that share nothing: what is chosen is chosen by `choose` (ends of the training
files, which no calibration here reads, and two kinds that none reads at all), what is reported is `report`. Ratios are
of perplexity to the dense model's on the first 4,096 tokens of each reported text, and 2,048 of each to choose by, in
windows of 1,024; fp32. With --limit, also the accuracy on so many items of each of the nine zero-shot tasks.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor

import lmprune
from lmprune import data
from lmprune.data import TextData, kinds
from lmprune.data.tokens import sequences, stream
from lmprune.data.wikitext import articles
from lmprune.data.zero_shot import ZERO_SHOT
from lmprune.evaluation.perplexity import perplexity
from lmprune.study.run import accelerator
from lmprune.training.passes import towards

RECORDS = Path(__file__).parent / "records" / "quality.jsonl"
CUT = Path(__file__).parent / "runs" / "quality-text"
#: of each training file, what calibrations may read; the rest is to choose by
SHARE = 0.85
SEQ_LEN = 512
#: of each text that is measured on
TOKENS = {"choose": 2048, "report": 4096}
TASKS = ",".join(ZERO_SHOT)
#: in the place of a method: nothing is pruned
DENSE = "dense"


def command(*words: object) -> dict[str, Any]:
    """What a command of lmprune tells."""
    line = [sys.executable, "-m", "lmprune", *map(str, words), "--json"]
    return json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)


def cut_files(shared: Path) -> Path:
    """A folder as `--data-dir` takes it: the first part of each training file is `train`, the rest `validation`."""
    CUT.mkdir(parents=True, exist_ok=True)
    given = shared / "data" / "text"
    whole = {path.name.split(".")[0]: path.read_text(encoding="utf-8") for path in given.glob("*.train.*")}
    whole["wiki"] = (shared / "data" / "wikitext" / "wiki.train.tokens").read_text(encoding="utf-8")
    for kind, read in whole.items():
        pieces = articles(read) if kind == "wiki" else read.splitlines(keepends=True)
        at = round(SHARE * len(pieces))
        ending = "jsonl" if kind == "chat" else "txt"
        for split, part in (("train", pieces[:at]), ("validation", pieces[at:])):
            file, text = CUT / f"{kind}.{split}.{ending}", "".join(part)
            if not (file.is_file() and file.read_text(encoding="utf-8") == text):  # runs beside this one read it
                file.write_text(text, encoding="utf-8")
    return CUT


def texts(shared: Path, tokenizer: Any) -> dict[str, dict[str, TextData]]:
    def read(source: object, split: str = "validation", **how: Any) -> TextData:
        return data.load(str(source), split, tokenizer=tokenizer, **how)

    def chats(path: Path) -> TextData:  # in the model's own template, if it has one
        return data.from_texts([*map(str, kinds.load(path, tokenizer).records)])

    given = shared / "data"
    choose = {kind: read(CUT / f"{kind}.validation.txt") for kind in ("wiki", "c4", "code", "technical")}
    choose["chat"] = chats(CUT / "chat.validation.jsonl")
    choose["sql"] = read("wikisql", "train", data_dir=given / "wikisql")
    report = {kind: read(given / "text" / f"{kind}.validation.txt") for kind in ("c4", "code", "technical")}
    report = {"wiki": read("wikitext:raw", data_dir=given / "wikitext"), **report}
    report["chat"] = chats(given / "text" / "chat.validation.jsonl")
    report["dialogues"] = read(f"{given / 'samsum' / 'validation.jsonl'}:dialogue")
    return {"choose": choose, "report": report}


def calibration(name: str, tokenizer: Any, tokens: int, seed: int) -> Tensor:
    """wikitext: its articles in random order. mix, mix:…: as `lmprune prune --data` reads it, from the cut files."""
    if name == "wikitext":
        found = data.from_texts(articles((CUT / "wiki.train.txt").read_text(encoding="utf-8")))
    else:
        found = data.load(name, "train", data_dir=CUT, tokenizer=tokenizer, num_tokens=tokens, seed=seed)
    return sequences(tokenizer, found, seq_len=SEQ_LEN, num_tokens=tokens, seed=seed)


class Measure:
    def __init__(self, dense: Any, tokenizer: Any, shared: Path):
        self.ids = {
            use: {kind: stream(tokenizer, text, TOKENS[use])[0] for kind, text in found.items()}
            for use, found in texts(shared, tokenizer).items()
        }
        self.dense = self.nll(dense)

    def nll(self, model: Any) -> dict[str, dict[str, float]]:
        return {
            use: {kind: perplexity(model, ids, context=1024).nll for kind, ids in found.items()}
            for use, found in self.ids.items()
        }

    def ratios(self, model: Any) -> dict[str, dict[str, float]]:
        """Of each kind; `mean_log` is the mean of their logarithms."""
        found = self.nll(model)
        logs = {use: {kind: found[use][kind] - base[kind] for kind in base} for use, base in self.dense.items()}
        return {
            use: {**{kind: math.exp(log) for kind, log in row.items()}, "mean_log": sum(row.values()) / len(row)}
            for use, row in logs.items()
        }


def zero_shot(model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """lm-eval's accuracy on the first `limit` items of each task."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        items = ("--data-dir", options.shared.resolve() / "data" / "zeroshot", "--limit", options.limit)
        found = command("eval", folder, "--tasks", TASKS, *items, "--batch-size", 32, "--device", options.device)
    return {name: found[name] for name in ("tasks", "mean_accuracy")}


def table(records: list[dict[str, Any]], use: str) -> str:
    kinds = list(records[0][use])
    rows = [["model", "calibrated on", "tokens", "method", "scope", "keep", "seed", *kinds]]
    for r in records:
        numbers = [f"{r[use][kind]:.3f}" for kind in kinds]
        method = f"{r['method']}, {r['recover']} pass" if r.get("recover") else r["method"]
        how = [r["model"], r["calibrate"], str(r["tokens"]), method, str(r["scope"]), f"{r['keep']:g}"]
        rows.append([*how, str(r["seed"]), *numbers])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibrate", default="wikitext")
    parser.add_argument("--methods", default="flap,activation,obs")
    parser.add_argument("--scope", default=None)
    parser.add_argument("--keep", type=float, default=0.75)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--recover", type=int, default=0, help="passes over the calibration text after the cut")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    options = parser.parse_args()
    done = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    if options.table:
        print("\n\n".join(f"{use}:\n\n{table(done, use)}" for use in ("choose", "report")))
        return
    cut_files(options.shared)
    model, tokenizer = lmprune.load(options.model).to(options.device), lmprune.load_tokenizer(options.model)
    ids, measure = None, None
    for method in options.methods.split(","):
        how = {name: getattr(options, name) for name in ("model", "calibrate", "scope", "keep", "tokens", "seed")}
        how |= {"method": method, **({"limit": options.limit} if options.limit else {})}
        how |= {"recover": options.recover} if options.recover else {}
        if any(how.items() <= r.items() and r.get("recover") == how.get("recover") for r in done):
            continue
        ids = calibration(options.calibrate, tokenizer, options.tokens, options.seed) if ids is None else ids
        measure = Measure(model, tokenizer, options.shared) if measure is None else measure
        pruned, start = copy.deepcopy(model), time.perf_counter()
        if method != DENSE:
            lmprune.prune(pruned, method=method, scope=options.scope, keep=options.keep, data=ids, seed=options.seed)
        if options.recover:
            towards(model, pruned, ids, options.recover, seed=options.seed)
        record = {**how, "accelerator": accelerator(options.device), "seconds": round(time.perf_counter() - start, 1)}
        record |= measure.ratios(pruned)
        if options.limit:
            record["zero_shot"] = zero_shot(pruned, tokenizer, options)
        print(json.dumps(record), flush=True)
        with RECORDS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
