"""The pictures of the documents: `python docs/pictures.py` draws them anew into docs/img/.

What is measured comes from a record; the rest is drawn from the code's own functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from lmprune.gradual.schedules import cubic

ROOT = Path(__file__).parents[1]
OUT, RECORDS = ROOT / "docs" / "img", ROOT / "benchmarks" / "records"
INK, GONE, SOFT, SECOND = "#37474f", "#d84315", "#cfd8dc", "#1565c0"


def seam() -> Figure:
    """A gated feed-forward layer as matrices; one neuron is a row of two and a column of the third."""
    figure = Figure(figsize=(8.4, 3.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 84), ylim=(0, 34))
    axes.axis("off")

    def matrix(x: float, y: float, wide: float, high: float, name: str, *, row: float = 0, column: float = 0) -> None:
        axes.add_patch(Rectangle((x, y), wide, high, facecolor=SOFT, edgecolor=INK, linewidth=1))
        if row:
            axes.add_patch(Rectangle((x, y + row), wide, 1.4, facecolor=GONE, edgecolor="none"))
        if column:
            axes.add_patch(Rectangle((x + column, y), 1.4, high, facecolor=GONE, edgecolor="none"))
        axes.text(x + wide / 2, y - 1.6, name, ha="center", va="top", color=INK, fontsize=10)

    def arrow(a: tuple[float, float], b: tuple[float, float]) -> None:
        axes.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=12, color=INK, linewidth=1))

    axes.text(3.5, 20.5, "x", color=INK, fontsize=13, ha="center")
    arrow((5, 21), (9.5, 25))
    arrow((5, 20), (9.5, 11))
    matrix(10, 19.5, 11, 12, "gate  (F × D)", row=7)
    matrix(10, 4.5, 11, 12, "up  (F × D)", row=7)
    arrow((21.5, 25.5), (28, 22))
    arrow((21.5, 10.5), (28, 18))
    axes.text(32, 20, "act(gate x)\n· up x", ha="center", va="center", color=INK, fontsize=10)
    arrow((36.5, 20), (42, 20))
    axes.add_patch(Rectangle((43, 9), 2.4, 22, facecolor=SOFT, edgecolor=INK, linewidth=1))
    axes.add_patch(Rectangle((43, 21.5), 2.4, 1.4, facecolor=GONE, edgecolor="none"))
    axes.text(44.2, 7.4, "h  (F)\nthe seam", ha="center", va="top", color=INK, fontsize=10)
    axes.text(47.6, 22.2, "one neuron", va="center", color=GONE, fontsize=10)
    arrow((46.5, 18), (55, 18))
    matrix(56, 12.5, 18, 11, "down  (D × F)", column=11)
    arrow((74.5, 18), (79, 18))
    axes.text(81, 17.5, "y", color=INK, fontsize=13, ha="center")
    return figure


def schedule() -> Figure:
    """What stays while a model trains, and how the weight of GUM's penalty falls with it."""
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.add_axes((0.1, 0.17, 0.86, 0.74))
    steps = range(101)
    for keep, ink in ((0.5, SECOND), (0.25, GONE)):
        axes.plot(steps, [cubic(keep, 100)(step) for step in steps], color=ink, label=f"to {keep:g}")
    for at, word in (
        (5, "nothing goes"),
        (40, "units go, the mask\nis chosen at every step"),
        (85, "the rest trains on"),
    ):
        axes.text(at, 1.06, word, ha="center", va="bottom", fontsize=8, color=INK)
    for at in (10, 70):
        axes.axvline(at, color=SOFT, linewidth=1, zorder=0)
    axes.set(xlim=(0, 100), ylim=(0, 1.25), xlabel="% of the training steps", ylabel="share that stays")
    axes.legend(frameon=False, loc="lower left")
    return figure


def curves() -> Figure:
    """What each layer's removals cost, measured."""
    record: dict[str, Any] = json.loads((RECORDS / "level_curves.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_axes((0.12, 0.15, 0.84, 0.8))
    for layer, errors in record["error"].items():
        named = {"0": GONE, "14": SECOND, "29": "#2e7d32"}.get(layer)
        told = {"label": f"layer {layer}", "zorder": 2, "linewidth": 1.8} if named else {"linewidth": 0.8, "zorder": 1}
        axes.plot(record["left"], errors, color=named or SOFT, **told)
    axes.invert_xaxis()
    axes.set(xlabel="neurons left in the layer, of 1,536", ylabel="what the loss grows by (estimated)")
    axes.legend(frameon=False)
    return figure


def units() -> Figure:
    """What is lost as neurons, heads and layers go, alone and together, at the same number of parameters."""
    lines = (RECORDS / "units-smollm2-135m.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["asked"]]
    rows: tuple[tuple[str, list[str], str, str, str, str], ...] = (
        ("neurons", ["neurons"], "obs", "global", GONE, "o-"),
        ("neurons and heads", ["neurons", "heads"], "obs", "global", SECOND, "s-"),
        ("heads", ["heads"], "obs", "global", SECOND, "^--"),
        ("layers", ["layers"], "obs", "local", INK, "D-"),
        ("layers, no refit (ShortGPT)", ["layers"], "shortgpt", "local", INK, "D:"),
    )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, kinds, method, scope, colour, style in rows:
        of = [r for r in records if (r["units"], r["method"], r["scope"]) == (kinds, method, scope)]
        points = sorted((100 * r["removed"], r["ratio"]) for r in of)
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.4, markersize=5)
    axes.set(
        yscale="log",
        ylim=(1, 18),
        xlabel="removed, % of the blocks' parameters",
        ylabel="perplexity, × the dense model's",
    )
    axes.set_yticks([1, 1.5, 2, 3, 5, 9], ["1", "1.5", "2", "3", "5", "9"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2, loc="upper left")
    return figure


PICTURES = {"seam": seam, "schedule": schedule, "curves": curves, "units": units}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "lmprune", "svg.fonttype": "path", "font.size": 9}):
        for name, draw in PICTURES.items():
            draw().savefig(OUT / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
