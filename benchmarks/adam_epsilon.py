"""AdamW's ε of the weights, chosen on a held-out part of the training text: torch's 1e-8, and the authors' 1e-4.

    OMP_NUM_THREADS=1 python benchmarks/adam_epsilon.py [--steps 150] [--seeds 0 1] [--only RECIPE …]
    python benchmarks/adam_epsilon.py --table

As gum_weights.py. A larger ε makes steps smaller where gradients are small, so the learning rate is tried with it.
Resumable: results go to benchmarks/runs/adam_epsilon.jsonl as they come.
"""

from __future__ import annotations

from pathlib import Path

from training_quality import Recipe, command

RUNS = Path(__file__).parent / "runs" / "adam_epsilon.jsonl"
#: ε, learning rate
TRIED = ((1e-8, 5e-4), (1e-4, 5e-4), (1e-4, 2e-3), (1e-6, 5e-4), (1e-8, 2e-3))

RECIPES = {
    f"{method or 'dense'}, ε {epsilon:g}, lr {lr:g}": Recipe(method, adam_epsilon=epsilon, lr=lr)
    for epsilon, lr in TRIED
    for method in (None, "top_v", "gum")
}


if __name__ == "__main__":
    command(__doc__, RUNS, RECIPES, steps=150, held_out=True)
