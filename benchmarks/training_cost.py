"""What pruning costs while training: GUM's steps against plain dense fine-tuning, interleaved in one run.

    python benchmarks/training_cost.py [--repeats 5] [--run-steps 20] [--json]

A random model of GPT-Neo-125m's shape (12 layers, D 768, F 3072), steps of 4 × 256 tokens, fp32, the same Trainer for
both; medians of `repeats` steps each. The whole run is the sum over `run-steps` steps along the cubic schedule to
0.25, each beside a dense step; estimates of similarity fall where they fall in 500 steps: their time is measured
apart and spread over the steps between two of them. Memory: peak resident size of a process of its own for each.
The correlation of estimated and exact u is taken on gpt-neo-mini over WikiText train.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, TrainingArguments

import lmprune
from lmprune import data
from lmprune.data.tokens import sequences
from lmprune.evaluation.memory import peak_memory_mb
from lmprune.gradual import GradualPruner
from lmprune.gradual.similarity import mean_similarity
from lmprune.training.trainer import PruneTrainer, collate

BATCH, SEQ_LEN, STEPS = 4, 256, 500
CUBIC_KEEP = 0.25


def model_125m() -> Any:
    torch.manual_seed(0)
    config = GPTNeoConfig(attention_types=[[["global", "local"], 6]], num_layers=12, hidden_size=768)
    return GPTNeoForCausalLM(config)


class Stepper:
    """One model with its Trainer, made to take single steps. device: where the Trainer takes it by itself."""

    def __init__(self, method: str | None, *, device: str = "cpu", bf16: bool = False, **how: Any):
        self.model = model_125m().to(device)
        self.pruner = None
        if method:
            self.pruner = GradualPruner(
                self.model, method=method, keep=CUBIC_KEEP, num_steps=STEPS, multiple_of=32, **how
            )  # fmt: skip
        args = TrainingArguments(
            output_dir=tempfile.mkdtemp(), max_steps=STEPS, learning_rate=5e-4, report_to="none",
            use_cpu=device == "cpu", bf16=bf16, remove_unused_columns=False, per_device_train_batch_size=BATCH,
        )  # fmt: skip
        self.trainer = PruneTrainer(model=self.model, args=args, pruner=self.pruner, data_collator=collate)
        self.trainer.create_optimizer_and_scheduler(STEPS)
        self.trainer.current_gradient_accumulation_steps = 1
        self.generator = torch.Generator().manual_seed(0)

    def step(self, number: int) -> float:
        """Seconds of the step after `number` steps."""
        rows = torch.randint(0, 50257, (BATCH, SEQ_LEN), generator=self.generator)
        inputs = collate([{"input_ids": row} for row in rows])
        start = time.perf_counter()
        if self.pruner is not None:
            self.pruner.begin_step(number)
        self.trainer.training_step(self.model, inputs, torch.tensor(BATCH * (SEQ_LEN - 1)))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()  # type: ignore[union-attr]
        self.model.zero_grad()
        if self.pruner is not None:
            self.pruner.end_step()
        if not self.trainer.args.use_cpu:
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    def refresh_seconds(self) -> float:
        assert self.pruner is not None and self.pruner.estimate is not None
        start = time.perf_counter()
        self.pruner.estimate.refresh()
        return time.perf_counter() - start


def step_ratio(dense: Stepper, gum: Stepper, number: int, repeats: int) -> dict[str, float]:
    """GUM's step against dense, at the keep ratio after `number` steps, estimates of similarity spread over steps."""
    assert gum.pruner is not None and gum.pruner.pressing is not None
    apart = number // gum.pruner.pressing.every * gum.pruner.pressing.every + 1  # no estimate due
    for stepper in (gum, dense):
        stepper.step(apart)  # warm up
    pairs = [(gum.step(apart), dense.step(apart)) for _ in range(repeats)]
    refresh = statistics.median(gum.refresh_seconds() for _ in range(3))
    g, d = (statistics.median(column) for column in zip(*pairs, strict=True))
    every = gum.pruner.pressing.every
    return {"gum": g + refresh / every, "dense": d, "refresh": refresh, "ratio": (g + refresh / every) / d}


def whole_run(dense: Stepper, gum: Stepper, run_steps: int) -> float:
    assert gum.pruner is not None and gum.pruner.pressing is not None
    total = {"gum": 0.0, "dense": 0.0}
    every = gum.pruner.pressing.every
    for i in range(run_steps):
        number = int((i + 0.5) * STEPS / run_steps)
        number += number % every == 0
        total["gum"] += gum.step(number) + gum.refresh_seconds() / every
        total["dense"] += dense.step(number)
    return total["gum"] / total["dense"]


@torch.no_grad()
def correlation(shared: Path) -> dict[str, float]:
    """Estimated against exact u on gpt-neo-mini: the median over layers, and the ratio of their means."""
    folder = shared / "models" / "gpt-neo-mini"
    model, tokenizer = lmprune.load(folder), lmprune.load_tokenizer(folder)
    text = data.load("wikitext:tokens", "train", data_dir=shared / "data" / "wikitext")
    ids = sequences(tokenizer, text, seq_len=SEQ_LEN, num_tokens=2**62, seed=0)
    pruner = GradualPruner(model, method="gum", keep=0.5, num_steps=STEPS)
    assert pruner.estimate is not None
    model.train()
    for batch in ids[:64].split(BATCH):  # what the buffer has seen by the first estimate, with the default settings
        model(batch)
        pruner.estimate.end_step()
    pruner.estimate.refresh()
    estimated = [u.clone() for u in pruner.estimate.similarities]
    grams = [torch.zeros(mask.count, mask.count, dtype=torch.float64) for mask in pruner.masks]
    for mask, gram in zip(pruner.masks, grams, strict=True):
        mask.observer = adds_to(gram)
    for batch in ids[1000:2024].split(8):  # 262,144 other tokens
        model(batch)
    exact = [mean_similarity(gram, len(gram)) for gram in grams]
    pairs = list(zip(estimated, exact, strict=True))
    each = [float(torch.corrcoef(torch.stack([e.double(), x]))[0, 1]) for e, x in pairs]
    bias = [float(e.mean() / x.mean()) for e, x in pairs]
    return {"correlation": statistics.median(each), "worst": min(each), "bias": statistics.median(bias)}


def adds_to(gram_FF: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def see(h: torch.Tensor, _kept: torch.Tensor) -> None:
        rows_NF = h.flatten(0, 1).double()
        gram_FF.add_(rows_NF.T @ rows_NF)

    return see


def peak_mb(method: str) -> float:
    """Peak resident size in MB of a process that takes 9 steps, which fill the buffer of rows."""
    code = [sys.executable, __file__, "--memory-of", method]
    return float(subprocess.run(code, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run-steps", type=int, default=20)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        stepper = Stepper(None if args.memory_of == "dense" else args.memory_of)
        for number in range(1, 10):  # as many as fill the buffer of rows
            stepper.step(number)
        if stepper.pruner is not None:
            stepper.refresh_seconds()
        print(peak_memory_mb())
        return
    dense, gum = Stepper(None), Stepper("gum")
    start, end = step_ratio(dense, gum, 1, args.repeats), step_ratio(dense, gum, STEPS - 1, args.repeats)
    run = whole_run(dense, gum, args.run_steps)
    del dense, gum
    found = correlation(args.shared)
    memory = {method: peak_mb(method) for method in ("dense", "gum")}
    result = {
        "gum_step_ratio": start["ratio"], "gum_step_ratio_keep_025": end["ratio"], "whole_run_ratio": run,
        "uniqueness_correlation": found["correlation"], "uniqueness_correlation_worst_layer": found["worst"],
        "similarity_bias": found["bias"], "extra_memory_mb": memory["gum"] - memory["dense"],
        "seconds": {"start": start, "end": end}, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
