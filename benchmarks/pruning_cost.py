"""What `obs` costs: its time against one plain forward pass over the same tokens, and its peak memory.

    python benchmarks/pruning_cost.py [--model smollm2-135m] [--keep 0.7] [--tokens 65536] [--repeats 1] [--json]

The forward pass (the whole model, logits included, four sequences at a time) is run in parts: some before the pruning,
some after each block of it, the last ones when it is over; so both see the same machine, whose pace changes by half
within minutes. Peak memory is the process's resident peak while it prunes, beyond what it held with both models loaded.
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
from typing import Any

import psutil
import torch

import lmprune
from lmprune import data
from lmprune.data.tokens import sequences
from lmprune.progress import Progress


class PeakMemory:
    """The highest resident size of this process (bytes) while a `with` block runs, sampled every 20 ms; but not while
    it is `away`."""

    def __enter__(self) -> PeakMemory:
        self.peak, self.away, self._stop = 0, False, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.02):
            if not self.away:
                self.peak = max(self.peak, process.memory_info().rss)


class Passes:
    """A forward pass of the dense model in parts, and the seconds that those took."""

    def __init__(self, dense: Any, input_ids: torch.Tensor, memory: PeakMemory):
        self.dense, self.memory, self.left = dense, memory, list(input_ids.split(4))
        self.seconds = self.cpu_seconds = 0.0

    def stage(self, name: str) -> Progress | None:
        """One part after each block that is pruned."""
        return self.some if name == "pruning" else None

    @torch.no_grad()
    def some(self, done: int, total: int) -> None:
        """So many that as large a part of them is done as of the blocks."""
        self.memory.away, start, cpu = True, time.perf_counter(), time.process_time()
        for _ in range(max(len(self.left) // (total - done + 1), 1) if self.left else 0):
            self.dense(self.left.pop(), use_cache=False)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu
        self.memory.away = False


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
    ratios, cpu_ratios, prunings, peak = list[float](), list[float](), list[float](), 0
    for _ in range(args.repeats):
        cut = copy.deepcopy(dense)
        held = psutil.Process().memory_info().rss
        with PeakMemory() as memory:
            passes = Passes(dense, input_ids, memory)
            start, cpu = time.perf_counter(), time.process_time()
            passes.some(0, len(passes.left))
            lmprune.prune(cut, method=args.method, keep=args.keep, data=input_ids, stages=passes.stage)
            passes.some(1, 1)
            prunings.append(time.perf_counter() - start - passes.seconds)
            cpu_ratios.append((time.process_time() - cpu) / passes.cpu_seconds - 1)
        assert not passes.left
        ratios.append(prunings[-1] / passes.seconds)
        peak = max(peak, memory.peak - held)
    ratio, seconds = statistics.median(ratios), statistics.median(prunings)
    result = {
        "model": args.model,
        "method": args.method,
        "keep": args.keep,
        "tokens": input_ids.numel(),
        "forward_seconds": seconds / ratio,
        "prune_seconds": seconds,
        "ratio": ratio,
        "ratios": ratios,
        "cpu_ratios": cpu_ratios,
        "extra_memory_mb": peak / 1e6,
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
