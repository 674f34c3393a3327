"""What evaluation costs: decoding in batches against one at a time, perplexity against bare forward passes.

    python benchmarks/evaluation_speed.py [--model ../shared/models/gpt2-mini] [--items 32] [--repeats 3] [--json]

Decoding: WikiSQL questions (dev), greedy, one at a time and 16 at once, in turn; a base model, which does not know the
task, nearly always goes on to the limit of new tokens. Perplexity: WikiText (validation), against forward passes over
the same windows in the same batches, logits included. Medians over the repeats, after a warm-up, all in one run; leave
the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import lmprune
from lmprune import data
from lmprune.data import pairs
from lmprune.data.tokens import stream
from lmprune.evaluation.decoding import DECODINGS, decode
from lmprune.evaluation.perplexity import default_context, inference, perplexity

BATCHES = (1, 16)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; a busy moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def main() -> None:
    shared = Path(__file__).parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(shared / "models" / "gpt2-mini"))
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    model, tokenizer = lmprune.load(args.model), lmprune.load_tokenizer(args.model)
    questions = pairs.load("wikisql", data_dir=args.data / "wikisql").pairs[: args.items]
    contexts = pairs.token_ids(tokenizer, [pair.context for pair in questions])
    text = data.load("wikitext", data_dir=args.data / "wikitext")
    input_ids, _ = stream(tokenizer, text, args.tokens)
    context = default_context(model.config)
    windows = input_ids[: len(input_ids) // context * context].view(-1, context)
    input_ids = windows.flatten()
    batch = max(1, 2048 // context)  # what `perplexity` takes by itself

    def decoding(batch_size: int) -> None:
        settings = {"max_new_tokens": args.new_tokens, "batch_size": batch_size}
        for _ in decode(model, tokenizer, contexts, DECODINGS["greedy"], **settings):
            pass

    def forward() -> None:
        with inference(model):
            for ids_BT in windows.split(batch):
                model(input_ids=ids_BT, use_cache=False)

    decoded = in_turn({str(size): lambda size=size: decoding(size) for size in BATCHES}, args.repeats)
    scored = in_turn({"forward": forward, "perplexity": lambda: perplexity(model, input_ids)}, args.repeats)
    rates = {size: len(contexts) / took for size, took in decoded.items()}
    result = {
        "model": args.model,
        "items": len(contexts),
        "new_tokens": args.new_tokens,
        "sequences_per_second": rates,
        "batch_gain": rates["16"] / rates["1"],
        "perplexity_tokens": len(input_ids),
        "forward_seconds": scored["forward"],
        "perplexity_seconds": scored["perplexity"],
        "perplexity_overhead": scored["perplexity"] / scored["forward"] - 1,
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"decoding, sequences a second: {rates['1']:.2f} by one, {rates['16']:.2f} by 16: {result['batch_gain']:.1f} ×"
    )
    took = f"{scored['perplexity']:.2f} s, bare forward {scored['forward']:.2f} s"
    print(f"perplexity: {took}: {result['perplexity_overhead']:+.1%}")


if __name__ == "__main__":
    main()
