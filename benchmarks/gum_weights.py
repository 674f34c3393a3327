"""GUM's own settings, chosen on a held-out part of the training text: λ_f, λ_u, and the rows u is estimated from.

    OMP_NUM_THREADS=1 python benchmarks/gum_weights.py [--steps 150] [--seeds 0 1 2] [--keeps 0.25]
    python benchmarks/gum_weights.py --table

Model, data and everything else as in training_quality.py, but perplexity is taken on the last 3% of WikiText **train**,
which no step reads. Resumable: results go to benchmarks/runs/gum_weights.jsonl as they come.
"""

from __future__ import annotations

from pathlib import Path

from training_quality import DEFAULT, Recipe, command

from lmprune.gradual import GradualSettings

RUNS = Path(__file__).parent / "runs" / "gum_weights.jsonl"


def gum(penalty: float, similarity: float, rows: int = DEFAULT.similarity_rows) -> tuple[str, Recipe]:
    settings = GradualSettings(penalty_weight=penalty, similarity_weight=similarity, similarity_rows=rows)
    return f"gum, λ_f {penalty:g}, λ_u {similarity:g}, {rows} rows", Recipe("gum", settings=settings)


RECIPES = {
    "dense": Recipe(None),
    "top_v": Recipe("top_v"),  # λ_f = 0
    **dict(gum(DEFAULT.penalty_weight, similarity) for similarity in (0, 1, 5, 20)),
    **dict(gum(penalty, 5) for penalty in (0.2, 2)),
    **dict(gum(DEFAULT.penalty_weight, 5, rows) for rows in (256, 4096)),
}


if __name__ == "__main__":
    command(__doc__, RUNS, RECIPES, steps=150, held_out=True)
