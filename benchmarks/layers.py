"""SmolLM2-135M without three of its 30 blocks, chosen by each method that has a score for layers.

    python benchmarks/layers.py                                    # all methods, 27 of 30 blocks
    python benchmarks/layers.py --units attentions --methods shortgpt,obs --keep 0.8

Resumable: results go to benchmarks/runs/layers.jsonl as they come, and what is there is not run again. Calibration:
16 × 512 tokens of WikiText train; evaluation: the first 4,096 tokens of WikiText validation (raw) and of Python's
documentation (validation), context 1,024; fp32. Each pruned model answers a question, greedily.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import lmprune
from lmprune import data
from lmprune.data.tokens import sequences, stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.methods import METHODS

RUNS = Path(__file__).parent / "runs" / "layers.jsonl"
METHODS_OF_LAYERS = [name for name, row in METHODS.items() if "layers" in row.kinds]
QUESTION = "What is the capital of France, and what is it known for?"


def texts(shared: Path) -> dict[str, Any]:
    return {
        "wikitext": data.load("wikitext:raw", "validation", data_dir=shared / "data" / "wikitext"),
        "python-docs": data.load("python-docs", "validation"),
    }


def answer(model: Any, tokenizer: Any) -> str:
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    return tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def measured(model: Any, tokenizer: Any, shared: Path, tokens: int) -> dict[str, Any]:
    found = {}
    for name, text in texts(shared).items():
        ids = stream(tokenizer, text, tokens)[0]
        found[name] = perplexity(model, ids, context=1024).perplexity
    return {"perplexity": found, "parameters": model.num_parameters(), "answer": answer(model, tokenizer)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", default=",".join(METHODS_OF_LAYERS))
    parser.add_argument("--units", default="layers")
    parser.add_argument("--keep", type=float, default=0.9)
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    options = parser.parse_args()
    RUNS.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    model, tokenizer = lmprune.load(options.model), lmprune.load_tokenizer(options.model)
    text = data.load("wikitext", "train", data_dir=options.shared / "data" / "wikitext")
    ids = sequences(tokenizer, text, seq_len=512, num_tokens=options.calibration_tokens, seed=0)
    same = {"model": options.model, "calibration_tokens": ids.numel(), "tokens": options.tokens}
    for method in ["dense", *options.methods.split(",")]:
        how = {**same, "method": method, "units": options.units, "keep": options.keep}
        if method == "dense":
            how |= {"units": None, "keep": 1.0, "calibration_tokens": 0}
        if any(how.items() <= record.items() for record in done):
            continue
        pruned, start, gone = copy.deepcopy(model), time.perf_counter(), []
        if method != "dense":
            plan = lmprune.prune(pruned, units=(options.units,), method=method, keep=options.keep, data=ids)
            ((address, kept),) = plan.kept.items()
            gone = sorted(set(range(plan.counts_before[address])) - set(kept))
        record = {**how, "gone": gone, "seconds": time.perf_counter() - start}
        record |= measured(pruned, tokenizer, options.shared, options.tokens)
        print(json.dumps(record), flush=True)
        with RUNS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
