"""From a section's rows to its charts: the paper's figures 1 to 5, Pareto fronts, training curves, layer maps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from .charts import FROM_0_TO_1, Chart, HeatChart, Line, LineChart, Panel, Point
from .rows import DENSE, METRICS, ZERO_SHOT, Row, Section, with_dense_params
from .svg import number

#: cells across a layer map, and maps in a section
MAP_COLUMNS, MAX_MAPS = 64, 12
#: points of a training curve; of a loss, which is noisy
MAX_POINTS, LOSS_POINTS = 80, 30
#: times the smallest perplexity from which a scale is of logarithms
_FAR = 4

Value = Callable[[Row], float | None]


def of_section(found: Section, prefix: str) -> list[Chart]:
    """All charts for which there are numbers. prefix: of their ids."""
    made = [*_against_keep(found), *_pareto(found), *_cosines(found), *_left(found), *_training(found), *_maps(found)]
    return [_renamed(chart, f"{prefix}{chart.id}") for chart in made]


def _renamed(chart: Chart, new: str) -> Chart:
    return type(chart)(**{**vars(chart), "id": new})


def tip(row: Row) -> str:
    """What the pointer shows of a run."""
    parts = [f"{row.name}, keep {row.keep:g}, seed {row.seed}"]
    parts += [f"{METRICS[key][0]} {value:.4g}" for key, value in row.metrics.items()]
    parts += [f"uniqueness {row.uniqueness:.3f}"] if row.uniqueness is not None else []
    parts += [f"sensitivity {row.sensitivity:.3g}"] if row.sensitivity is not None else []
    parts += [f"{number(row.params)} parameters"] if row.params else []
    return "\n".join(parts)


def _against_keep(found: Section) -> Iterator[Chart]:
    for key in found.metrics:
        name, less = METRICS[key]
        caption = f"A dot is a run, a line the mean over seeds. {'Less' if less else 'More'} is better."
        yield from _by_keep(found, key, f"{name[0].upper()}{name[1:]} and keep ratio", caption, name)
    for key in ("uniqueness", "sensitivity"):
        title = f"Figures 1, 2: {key}, as a ratio to dense"
        yield from _by_keep(found, f"{key}_ratio", title, "The dense, fine-tuned model on the same data is 1.", "ratio")
    for key in ("uniqueness", "sensitivity"):
        yield from _by_keep(found, key, f"Figure 5: {key}", "Without the ratio.", key)


def _by_keep(found: Section, key: str, title: str, caption: str, y_label: str) -> Iterator[Chart]:
    lines = _lines(found, lambda row: row.keep, lambda row: row.value(key), joined=True)
    if any(line.group != DENSE for line in lines):
        yield LineChart(key, title, caption, "share of neurons kept", y_label, lines, log_y=_far_apart(key, lines))


def _far_apart(key: str, lines: Sequence[Line]) -> bool:
    """Whether one run that broke would press all others into a line: perplexities of several sizes."""
    values = [point.y for line in lines for point in line.points]
    return key == "perplexity" and max(values) > _FAR * min(values)


def _pareto(found: Section) -> Iterator[Chart]:
    if not found.metrics:
        return
    for key in found.metrics:
        if key in (found.metrics[0], ZERO_SHOT):
            yield from _pareto_of(found, key)


def _pareto_of(found: Section, key: str) -> Iterator[Chart]:
    name, sizes = METRICS[key][0], with_dense_params(found)
    suffix = "" if key == found.metrics[0] else f"_{key}"
    axes: list[tuple[str, str, Value]] = [("params", "parameters", lambda row: sizes.get(row.id))]
    for kind in ("prefill", "decode"):
        axes += [(kind, f"speed of {kind}, times dense", lambda row, k=kind: 1.0 if row.dense else row.speed.get(k))]
    for axis, label, x in axes:
        lines = _lines(found, x, lambda row: row.metrics.get(key), joined=False)
        if any(line.group != DENSE for line in lines):
            title = f"{name[0].upper()}{name[1:]} against {label.split(',')[0]}"
            far = _far_apart(key, lines)
            yield LineChart(f"pareto_{axis}{suffix}", title, "A dot is a run.", label, name, lines, log_y=far)


def _lines(found: Section, x: Value, y: Value, *, joined: bool) -> tuple[Line, ...]:
    """A line for dense and for each method, with and without distillation, of the runs that have both numbers."""
    made = []
    for method, distil in [(DENSE, False), *found.names]:
        rows = [(a, b, row) for row in found.of(method, distil=distil) if (a := x(row)) is not None
                and (b := y(row)) is not None]  # fmt: skip
        if not rows:
            continue
        means = tuple((a, statistics.fmean(b for c, b, _ in rows if c == a)) for a in sorted({a for a, _, _ in rows}))
        points = tuple(Point(a, b, tip(row)) for a, b, row in rows)
        curve = means if joined and len(means) > 1 else ()
        made += [Line(rows[0][2].name, method, points, curve, dashed=distil)]
    return tuple(made)


def _typical(found: Section, *keys: str) -> list[Row]:
    """One run a method, with what `keys` name in its record: at the lowest keep ratio, first seed, not distilled."""
    rows = [r for r in found.rows if all(_deep(r.record, key) for key in keys)]
    chosen = {}
    for row in sorted(rows, key=lambda row: (row.keep, row.distil, row.seed)):
        chosen.setdefault(row.method, row)
    order = {row.method: i for i, row in enumerate(found.rows)}
    return sorted(chosen.values(), key=lambda row: order[row.method])


def _deep(record: Any, path: str) -> Any:
    for name in path.split("."):
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _cosines(found: Section) -> Iterator[Chart]:
    rows = _typical(found, "redundancy.layers")
    panels = tuple(
        Panel(
            row.name if row.dense else f"{row.name}, keep {row.keep:g}",
            row.method,
            tuple(tuple(layer["cos_ranges"]) for layer in row.record["redundancy"]["layers"]),
            tuple(f"{row.name}, layer {layer['layer']}" for layer in row.record["redundancy"]["layers"]),
        )
        for row in rows
    )
    if panels:
        caption = "Share of a layer's neurons that have at least one |cos| in each of ten ranges; stronger is more."
        yield HeatChart("cos_ranges", "Figure 3: how alike neurons are", caption, "|cos|", "layer", panels, FROM_0_TO_1)


def _left(found: Section) -> Iterator[Chart]:
    for keep in found.keeps[-1:]:
        lines = []
        for method, distil in found.names:
            runs = [row for row in found.of(method, keep, distil) if _deep(row.record, "kept")]
            if not runs:
                continue
            shares = [_shares(row.record) for row in runs]
            curve = tuple((float(i), statistics.fmean(layer)) for i, layer in enumerate(zip(*shares, strict=True)))
            lines += [Line(runs[0].name, method, curve=curve, dashed=distil, tip=f"{runs[0].name}, keep {keep:g}")]
        if lines:
            title = f"Figure 4: share of neurons left in each layer, keep {keep:g}"
            caption = "Mean over seeds; under local scope every layer keeps the same share."
            yield LineChart("left", title, caption, "layer", "share left", tuple(lines))


def _shares(record: Any) -> list[float]:
    return [sum(bits) / len(bits) for bits in _bits(record)]


def _bits(record: Any) -> list[list[int]]:
    """Which neurons of each layer stayed, 0 or 1."""
    layers = zip(record["kept"], record["widths_before"], strict=True)
    return [[int(bit) for bit in f"{int(hexes, 16):0{4 * len(hexes)}b}"[:width]] for hexes, width in layers]


def _training(found: Section) -> Iterator[Chart]:
    """A chart a keep ratio, with dense in each: a line a method."""
    for key, title in (
        ("loss", "Training loss without penalties"),
        ("perplexity", "Perplexity while training"),
        ("keep", "Keep ratio"),
    ):
        most = LOSS_POINTS if key == "loss" else MAX_POINTS
        for keep in found.keeps:
            lines = []
            for method, distil in [(DENSE, False), *found.names]:
                runs = found.of(method, distil=distil) if method == DENSE else found.of(method, keep, distil)
                logs = [log for row in runs if len(log := _logged(row, key)) > 1]
                mean = _mean_of(logs) if logs else []
                if len(mean) > 1:
                    curve = _thinned(mean, most)
                    lines += [Line(runs[0].name, method, curve=curve, dashed=distil, tip=runs[0].name)]
            if any(line.group != DENSE for line in lines):
                caption = f"Mean over seeds{', of neighbouring steps' if key == 'loss' else ''}."
                yield LineChart(
                    f"training_{key}_{keep:g}", f"{title}, keep {keep:g}", caption, "step", title.lower(), tuple(lines),
                    log_y=key == "perplexity",
                )  # fmt: skip


def _logged(row: Row, key: str) -> dict[float, float]:
    """By step; without what methods add to their loss, which can't be compared."""
    added = "penalty" if key == "loss" else None
    log = row.record.get("training_log") or []
    return {float(e["step"]): e[key] - (e.get(added) or 0.0) for e in log if e.get(key) is not None}


def _mean_of(logs: Sequence[dict[float, float]]) -> list[tuple[float, float]]:
    """Over the steps that all runs have."""
    steps = sorted(set.intersection(*(set(log) for log in logs)))
    return [(step, statistics.fmean(log[step] for log in logs)) for step in steps]


def _thinned(curve: Sequence[tuple[float, float]], most: int) -> tuple[tuple[float, float], ...]:
    """Means of neighbours, so that a noisy loss stays readable."""
    size = -(-len(curve) // most)
    pieces = [curve[i : i + size] for i in range(0, len(curve), size)]
    return tuple((statistics.fmean(x for x, _ in p), statistics.fmean(y for _, y in p)) for p in pieces)


def _maps(found: Section) -> Iterator[Chart]:
    rows = _typical(found, "kept")[:MAX_MAPS]
    panels = []
    for row in rows:
        bits = _bits(row.record)
        tips = tuple(f"{row.name}, layer {i}: {sum(layer)} of {len(layer)} neurons" for i, layer in enumerate(bits))
        columns = min(MAP_COLUMNS, *map(len, bits))
        shares = tuple(_binned(layer, columns) for layer in bits)
        panels += [Panel(f"{row.name}, keep {row.keep:g}", row.method, shares, tips)]
    if panels:
        caption = "A row a layer, neurons in their order from left to right; stronger where more of them stayed."
        last = max(max(row.record["widths_before"]) for row in rows)
        marks = tuple((share, f"{last * share:.0f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
        yield HeatChart("maps", "Which neurons stayed", caption, "neuron", "layer", tuple(panels), marks)


def _binned(bits: Sequence[int], columns: int) -> tuple[float, ...]:
    edges = [i * len(bits) // columns for i in range(columns + 1)]
    return tuple(sum(bits[a:b]) / (b - a) for a, b in pairwise(edges))
