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
    matrix(10, 20.5, 11, 12, "gate  (F × D)", row=7)
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
        (5, "nothing\ngoes"),
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


def methods() -> Figure:
    """What is left of the perplexity as neurons go, by lmprune's method and by those of other tools."""
    records = [json.loads(line) for line in (RECORDS / "oneshot-smollm2-135m.jsonl").read_text().splitlines()]
    records = [record for record in records if record["text"] == "wikitext" and record["max_tokens"] == 32768]
    (dense,) = {record["perplexity"] for record in records if record["method"] == "dense"}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for method, scope, colour, style in (
        ("obs", "local", GONE, "o-"), ("plain_obs", "local", GONE, "o:"), ("two_ssp", "local", SECOND, "s-"),
        ("wanda_sp", "local", SECOND, "^--"), ("minitron", "local", INK, "D-"), ("llm_pruner", "local", INK, "D:"),
        ("flap", "global", "#2e7d32", "v-"),
    ):  # fmt: skip
        points = sorted(
            (r["keep"], r["perplexity"] / dense) for r in records if (r["method"], r["scope"]) == (method, scope)
        )
        axes.plot(*zip(*points, strict=True), style, color=colour, label=method, linewidth=1.4, markersize=5)
    axes.invert_xaxis()
    axes.set(
        yscale="log", xlabel="share of the neurons that stay", ylabel="perplexity on WikiText, × the dense model's"
    )
    axes.set_yticks([1, 1.5, 2, 3, 5, 10, 17], ["1", "1.5", "2", "3", "5", "10", "17"])
    axes.set_xticks([0.9, 0.8, 0.7, 0.5])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    return figure


def foreign() -> Figure:
    """Half of the neurons gone: the text of calibration, and two of other kinds, by how the budget is spread."""
    records = [json.loads(line) for line in (RECORDS / "budgets.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for at, (by, colour) in enumerate((("uniform", SOFT), ("evolution", GONE))):
        (row,) = [r["ratio"] for r in records if (r["by"], r["keep"], r["seed"]) == (by, 0.5, 0)]
        label = {"uniform": "the same width for each layer", "evolution": "widths found by search"}[by]
        bars = axes.bar([n + 0.38 * at for n in range(len(row))], list(row.values()), 0.36, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
        axes.set_xticks([n + 0.19 for n in range(len(row))], ["WikiText (calibrated on)", "web pages (C4)", "code"])
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set(ylabel="perplexity, × the dense model's")
    axes.legend(frameon=False, loc="upper left")
    return figure


def speed() -> Figure:
    """Half of the neurons gone: how many times as fast, in each engine, and what its feed-forward share allows."""
    records = [json.loads(line) for line in (RECORDS / "deploy_speed.jsonl").read_text().splitlines()]
    half = {
        record["engine"]: next(row for row in record["rows"] if row["keep"] == 0.5)
        for record in records  # the last of an engine is its longest
        if record["model"] == "smollm2-135m"
    }
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for at, (phase, colour) in enumerate((("prefill", SECOND), ("decode", GONE))):
        places = [n + 0.38 * at for n in range(len(half))]
        values = [row[f"speedup_{phase}"] for row in half.values()]
        axes.bar_label(
            axes.bar(places, values, 0.36, color=colour, label=phase),
            fmt="%.2f",
            fontsize=9,
            color="white",
            label_type="center",
        )
        ideal = [row[f"ideal_{phase}"] for row in half.values()]
        told = "what Amdahl's law allows" if at else None
        axes.scatter(places, ideal, marker="_", s=300, color=INK, zorder=3, label=told)
    axes.set_xticks([n + 0.19 for n in range(len(half))], list(half))
    axes.set(ylabel="times as fast as dense", ylim=(1, 1.75))
    axes.legend(frameon=False, ncols=3, loc="upper left")
    return figure


PICTURES = {
    "seam": seam, "schedule": schedule, "curves": curves, "units": units, "methods": methods, "foreign": foreign,
    "speed": speed,
}  # fmt: skip


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "lmprune", "svg.fonttype": "path", "font.size": 9}):
        for name, draw in PICTURES.items():
            draw().savefig(OUT / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
