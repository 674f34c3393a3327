"""Result records as a study writes them, with numbers that follow a rule, so that it is known what to report."""

from __future__ import annotations

import random
from typing import Any

from lmprune.study.records import RECORD_FORMAT

LAYERS, WIDTH = 6, 64
#: method -> how much worse (log perplexity) it is at keep 0; its uniqueness
METHODS = {
    "random": (0.50, 0.80), "magnitude": (0.80, 0.70), "soft": (0.60, 0.75), "hard": (0.48, 0.85),
    "top_v": (0.45, 0.86), "gum": (0.35, 0.95),
}  # fmt: skip


def made_up(
    method: str, keep: float = 1.0, *, seed: int = 0, distil: bool = False, model: str = "models/gpt-neo-mini",
    task: str = "wikitext", error: str | None = None, noise: float = 0.002, trained: bool = True,
    version: str = "0.1.0",
) -> dict[str, Any]:  # fmt: skip
    """The record of one run."""
    draw = random.Random(f"{model}{task}{method}{keep}{distil}{seed}")
    dense = method == "dense"
    worse, unique = (0.0, 0.9) if dense else METHODS[method]
    log = (1 - keep) ** 2 * worse * (0.8 if distil else 1.0) + draw.uniform(-noise, noise)
    nll = 3.0 + log
    uniqueness = unique + draw.uniform(-noise, noise)
    widths = [max(1, round(WIDTH * keep) + (i - 2 if method in ("gum", "top_v") else 0)) for i in range(LAYERS)]
    kept = [sorted(draw.sample(range(WIDTH), min(w, WIDTH))) for w in widths]
    record: dict[str, Any] = {
        "format": RECORD_FORMAT,
        "id": f"{model.split('/')[-1]}-{task}-{method}-k{keep:g}-s{seed}{'-distil' if distil else ''}",
        "study": "made up",
        "error": error,
        "config": {
            "model": model, "task": task, "method": method, "criterion": method, "keep": keep, "seed": seed,
            "distil": distil, "start": "base", "options": {},
        },
        "commands": [["lmprune", "prune", model]],
        "versions": {"python": "3.11.2", "lmprune": version, "torch": "2.13.0", "transformers": "5.23.0"},
        "commit": None,
        "machine": {"platform": "Linux", "cpus": 2, "threads": 1},
        "seconds": {"prune": 100.0, "eval": 20.0, "total": 120.0},
        "peak_memory_mb": 812.4,
    }  # fmt: skip
    if error is not None:
        return record
    record["eval"] = {"perplexity": 2.718281828459045**nll, "nll": nll, "tokens": 1000}
    if not dense:
        record["eval"]["answers"] = made_up_answers(method, keep)
    record["redundancy"] = {
        "uniqueness": uniqueness,
        "sensitivity": 2.0 * keep,
        "uniqueness_ratio": uniqueness / 0.9,
        "sensitivity_ratio": keep,
        "layers": [
            {"layer": i, "width": w, "cos_ranges": [1.0, 1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01 * i]}
            for i, w in enumerate(widths)
        ],
    }
    if not dense:
        record["prune"] = {"params_before": 3_550_848, "params_after": int(1_775_616 * (1 + keep))}
        record["widths_before"] = [WIDTH] * LAYERS
        record["kept"] = [f"{sum(1 << (WIDTH - 1 - j) for j in layer):0{WIDTH // 4}x}" for layer in kept]
        record["bench"] = {"results": [{}, {"speedup_prefill": 2 - keep, "speedup_decode": 2 - keep}]}
    if trained:
        record["training_log"] = [
            {"step": step, "loss": nll + 2 / (1 + step / 20), "keep": 1 - (1 - keep) * min(step / 200, 1), "lr": 1e-4}
            | ({"perplexity": 30.0} if step % 100 == 0 else {})
            for step in range(0, 301, 10)
        ]
    return record


def made_up_answers(method: str, keep: float) -> dict[str, Any]:
    items = [
        {"prompt": f"Prompt {i}?", "before": f"dense says {i}", "after": f"{method} at {keep:g} says {i}",
         "agreement": keep, "repetition": {"before": 0.0, "after": 1 - keep}}
        for i in range(2)
    ]  # fmt: skip
    return {
        "prompts": "built in", "chat_template": False, "max_new_tokens": 48, "agreement": keep, "tokens": 96,
        "repetitive": {"before": 0, "after": 2 if keep < 0.5 else 0}, "items": items, "seconds": 3.0,
    }  # fmt: skip


def grid(*, keeps: tuple[float, ...] = (0.5, 0.25), seeds: int = 3, **how: Any) -> list[dict[str, Any]]:
    """A whole study: dense, and every method with and without distillation."""
    records = [made_up("dense", seed=seed, **how) for seed in range(seeds)]
    for distil in (False, True):
        for keep in keeps:
            records += [made_up(m, keep, seed=s, distil=distil, **how) for m in METHODS for s in range(seeds)]
    return records
