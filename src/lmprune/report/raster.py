"""A chart as a PNG file, through matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .charts import Chart, HeatChart, LineChart, colour
from .svg import number

#: the light colours of chart.css
COLOURS = (
    "#1c1e21", "#8a6d00", "#b3361b", "#00806c", "#6b4fa0", "#0b62b0",
    "#d6336c", "#7a4a2b", "#2f7d1f", "#4a6572", "#9c27b0", "#c25e00",
)  # fmt: skip


def write_png(chart: Chart, path: Path) -> None:
    """Draw the chart to `path`, light, 120 dots an inch."""
    figure = _lines(chart) if isinstance(chart, LineChart) else _heat(chart)
    FigureCanvasAgg(figure).print_png(path)


def _lines(chart: LineChart) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for line in chart.lines:
        ink = COLOURS[colour(line.group)]
        style = "--" if line.dashed else "-"
        if line.curve:
            axes.plot(*zip(*line.curve, strict=True), style, color=ink, label=line.name, linewidth=1.8)
        if line.points:
            face = "white" if line.dashed else ink
            xs, ys = [p.x for p in line.points], [p.y for p in line.points]
            axes.scatter(xs, ys, s=22, color=face, edgecolors=ink, zorder=3, label=None if line.curve else line.name)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    axes.set_xscale("log" if chart.log_x else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    for axis, log in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y)):
        if log:
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axis.set_minor_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.tick_params(which="minor", labelsize=7)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(once.values(), once.keys(), fontsize=8, frameon=False)
    return figure


def _heat(chart: HeatChart) -> Figure:
    across = min(len(chart.panels), 3)
    down = -(-len(chart.panels) // across)
    figure = Figure(figsize=(3.4 * across, 2.4 * down + 0.5), dpi=120, layout="constrained")
    all_axes: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in all_axes[len(chart.panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(all_axes, chart.panels, strict=False):
        red, green, blue, _ = to_rgba(COLOURS[colour(panel.group)])
        axes.imshow([[(red, green, blue, share) for share in row] for row in panel.rows_LC], aspect="auto")
        axes.set_title(panel.name, fontsize=9)
        axes.set_xticks([])
    figure.suptitle(chart.title, fontsize=10)
    figure.supxlabel(chart.x_label, fontsize=9)
    figure.supylabel(chart.y_label, fontsize=9)
    return figure
