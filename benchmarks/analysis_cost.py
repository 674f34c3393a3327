"""What `lmprune analyze` costs beside a forward and backward pass over the same tokens, both in one run.

    python benchmarks/analysis_cost.py --model smollm2-135m --tokens 16384 [--json]

Processor seconds of one thread, so that work beside it changes little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

import lmprune
from lmprune.data import load
from lmprune.data.tokens import sequences
from lmprune.evaluation.memory import peak_memory_mb
from lmprune.scores.redundancy import measure
from lmprune.sites.find import find_sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = lmprune.load(options.model), lmprune.load_tokenizer(options.model)
    ids = sequences(tokenizer, load("python-docs"), seq_len=options.seq_len, num_tokens=options.tokens, seed=None)
    loaded = peak_memory_mb()
    ffns = find_sites(model)
    seconds = {"analyze": 0.0, "forward_backward": 0.0}

    def passes() -> None:
        for batch in ids.split(1):
            model(batch, labels=batch, use_cache=False).loss.backward()
            model.zero_grad()

    seconds["analyze"] = cpu_seconds(lambda: measure(model, ffns, ids, num_peaks=5))
    peak = peak_memory_mb()  # before the gradients of all weights are there
    seconds["forward_backward"] = cpu_seconds(passes)
    record = {
        "model": options.model,
        "tokens": ids.numel(),
        **seconds,
        "ratio": seconds["analyze"] / seconds["forward_backward"],
        "memory_beyond_model_mb": peak - loaded,
    }
    print(json.dumps(record) if options.json else "\n".join(f"{name}: {value}" for name, value in record.items()))


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
