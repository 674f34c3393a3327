"""What `obs` costs: its time against one plain forward pass over the same tokens, and its peak memory.

    python benchmarks/pruning_cost.py [--model smollm2-135m] [--keep 0.7] [--tokens 65536] [--repeats 1] [--json]

Forward passes (the whole model, logits included, batches of 4 × 512) stand before and after each pruning, in one run.
Peak memory is the process's resident peak during the first pruning, beyond what it held with the model just loaded.
Leave the machine alone meanwhile: two busy processes on two cores change the ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import threading
import time
from pathlib import Path

import psutil
import torch

import lmprune
from lmprune import data
from lmprune.data.tokens import sequences


class PeakMemory:
    """The highest resident size of this process (bytes) while a `with` block runs, sampled every 20 ms."""

    def __enter__(self) -> PeakMemory:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, process.memory_info().rss)


@torch.no_grad()
def forward_seconds(model, input_ids: torch.Tensor) -> float:
    start = time.perf_counter()
    for batch in input_ids.split(4):
        model(batch, use_cache=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="obs")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dense, tokenizer = lmprune.load(args.model), lmprune.load_tokenizer(args.model)
    text = data.load("wikitext", "train", data_dir=args.shared / "data" / "wikitext")
    input_ids = sequences(tokenizer, text, seq_len=512, num_tokens=args.tokens, seed=0)
    del text
    held = psutil.Process().memory_info().rss
    forwards, prunings, peak = [forward_seconds(dense, input_ids)], [], 0
    for repeat in range(args.repeats):
        model = dense if args.repeats == repeat + 1 == 1 else copy.deepcopy(dense)
        with PeakMemory() as memory:
            start = time.perf_counter()
            lmprune.prune(model, method=args.method, keep=args.keep, data=input_ids)
            prunings.append(time.perf_counter() - start)
        peak = peak or memory.peak
        if args.repeats > 1:
            forwards.append(forward_seconds(dense, input_ids))
    result = {
        "model": args.model,
        "method": args.method,
        "keep": args.keep,
        "tokens": input_ids.numel(),
        "forward_seconds": statistics.median(forwards),
        "prune_seconds": statistics.median(prunings),
        "ratio": statistics.median(prunings) / statistics.median(forwards),
        "extra_memory_mb": (peak - held) / 1e6,
        "threads": torch.get_num_threads(),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{args.method} at keep {args.keep}, {result['tokens']:,} tokens: {result['prune_seconds']:.0f} s, "
            f"{result['ratio']:.2f} × one forward pass ({result['forward_seconds']:.0f} s); "
            f"{result['extra_memory_mb']:,.0f} MB beyond the loaded model"
        )


if __name__ == "__main__":
    main()
