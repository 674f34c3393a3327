"""A chart as a PNG file, through matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from .charts import Chart, HeatChart, Line, LineChart, colour, covers, span, ticks
from .svg import number

#: the light colours of chart.css
COLOURS = (
    "#1c1e21", "#8a6d00", "#b3361b", "#00806c", "#6b4fa0", "#0b62b0",
    "#d6336c", "#7a4a2b", "#2f7d1f", "#4a6572", "#9c27b0", "#c25e00",
)  # fmt: skip

#: patterns of curves that lie on one, two or more others, so that those are seen through the gaps
_OVER: tuple[Any, ...] = ("-", (0, (5, 5)), (0, (3, 7)), (0, (1, 9)))


def write_png(chart: Chart, path: Path) -> None:
    """Draw the chart to `path`, light, 100 dots an inch."""
    with rc_context({"text.parse_math": False}):  # a $ in a name is a $
        figure = _lines(chart) if isinstance(chart, LineChart) else _heat(chart)
        FigureCanvasAgg(figure).print_png(path)


def _lines(chart: LineChart) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), dpi=100)  # fixed margins: a layout that fits them takes as long as the drawing
    axes = figure.add_axes((0.12, 0.13, 0.62, 0.78))
    over = dict(zip(map(id, chart.lines), covers(chart), strict=True))
    for name, lines in _by_name(chart):
        ink, style = COLOURS[lines[0].colour], "--" if lines[0].dashed else _OVER[min(over[id(lines[0])], 3)]
        gap = (math.nan, math.nan)
        if curve := [place for line in lines if line.curve for place in (*line.curve, gap)]:
            width = 1.8 if len(lines) == 1 else 0.9
            axes.plot(*zip(*curve, strict=True), linestyle=style, color=ink, label=name, linewidth=width)
        if points := [(p.x, p.y) for line in lines for p in line.points]:
            face = "white" if lines[0].dashed else ink
            label = None if curve else name
            axes.scatter(*zip(*points, strict=True), s=22, color=face, edgecolors=ink, zorder=3, label=label)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    axes.set_xscale("log" if chart.log_x else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    for axis, log, values in ((axes.xaxis, chart.log_x, chart.xs), (axes.yaxis, chart.log_y, chart.ys)):
        if log:
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_locator(FixedLocator(ticks(*span(values, log=True), log=True)))
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(once.values(), once.keys(), fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _by_name(chart: LineChart) -> list[tuple[str, list[Line]]]:
    """Lines that share a name are drawn in one go: a hundred artists take seconds."""
    found: dict[str, list[Line]] = {}
    for line in chart.lines:
        found.setdefault(line.name, []).append(line)
    return list(found.items())


def _heat(chart: HeatChart) -> Figure:
    across = min(len(chart.panels), 3)
    down = -(-len(chart.panels) // across)
    height = 2.2 * down + 0.9
    figure = Figure(figsize=(3.0 * across + 0.6, height), dpi=100)
    all_axes: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    figure.subplots_adjust(left=0.8 / (3 * across), right=0.91, bottom=0.5 / height, top=1 - 0.8 / height, hspace=0.35)
    for axes in all_axes[len(chart.panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(all_axes, chart.panels, strict=False):
        red, green, blue, _ = to_rgba(COLOURS[colour(panel.group)])
        axes.imshow([[(red, green, blue, share) for share in row] for row in panel.rows_LC], aspect="auto")
        axes.set_title(panel.name, fontsize=9)
        columns = len(panel.rows_LC[0])
        axes.set_xticks([place * columns - 0.5 for place, _ in chart.marks], [label for _, label in chart.marks])
        axes.tick_params(labelsize=7)
    shades = ScalarMappable(Normalize(0, 1), LinearSegmentedColormap.from_list("shades", ["white", COLOURS[0]]))
    bar = figure.colorbar(shades, cax=figure.add_axes((0.93, 0.25, 0.012, 0.5)), ticks=[0, 1])
    bar.ax.set_yticklabels(chart.ends, fontsize=7)
    figure.suptitle(chart.title, fontsize=10)
    figure.supxlabel(chart.x_label, fontsize=9)
    figure.supylabel(chart.y_label, fontsize=9)
    return figure
