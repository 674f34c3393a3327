"""A chart as SVG, by hand: small, themed by CSS classes, every run a target for pointer and filter."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.resources import files

from ..markdown import in_html
from .charts import Chart, HeatChart, Line, LineChart, Panel, colour, covers, groups, span, ticks

WIDTH, HEIGHT = 560, 350
_LEFT, _RIGHT, _BOTTOM, _TOP = 62, 14, 46, 12
_LEGEND_LINE = 18
_LEVELS = 8  # shades of a heat map
_OVER = 3  # patterns for curves that lie on others
_FEW_COLUMNS = 12  # up to so many, every cell is an element of its own


def css() -> str:
    """The style of charts, for a page or a file of their own."""
    return files("lmprune.report").joinpath("chart.css").read_text(encoding="utf-8")


def standalone(chart: Chart) -> str:
    """A file of its own."""
    return svg(chart).replace(">", f"><style>{css()}</style>", 1)


def svg(chart: Chart) -> str:
    """For a page that has `css()`."""
    return _lines(chart) if isinstance(chart, LineChart) else _heat(chart)


def slug(group: str) -> str:
    """What a group is called in a class name."""
    return "".join(c if c.isalnum() else "-" for c in group)


def number(value: float) -> str:
    """As an axis shows it.

    >>> number(0.05), number(2_600_000), number(31000), number(12.0)
    ('0.05', '2.6M', '31k', '12')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def _attribute(text: str) -> str:
    """For between quotation marks; a line break there would be read as a space in a file of its own."""
    return in_html(text).replace("\n", "&#10;")


def _classes(group: str, ink: int) -> str:
    return f"g g-{slug(group)} c{ink}"


def _text(x: float, y: float, text: str, css_class: str = "", extra: str = "") -> str:
    kind = f' class="{css_class}"' if css_class else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{extra}>{in_html(text)}</text>'


def _open(chart: Chart, width: float, height: float) -> str:
    label = _attribute(f"{chart.title}. {chart.caption}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{label}">'
    )


def _scale(low: float, high: float, start: float, stop: float, *, log: bool) -> Callable[[float], float]:
    f: Callable[[float], float] = math.log if log else float
    return lambda value: start + (f(value) - f(low)) / (f(high) - f(low)) * (stop - start)


def _lines(chart: LineChart) -> str:
    entries, legend_height = _legend(chart)
    top, bottom = _TOP + legend_height, HEIGHT - _BOTTOM + legend_height
    (x_low, x_high), (y_low, y_high) = span(chart.xs, log=chart.log_x), span(chart.ys, log=chart.log_y)
    x = _scale(x_low, x_high, _LEFT, WIDTH - _RIGHT, log=chart.log_x)
    y = _scale(y_low, y_high, bottom, top, log=chart.log_y)
    parts = [_open(chart, WIDTH, HEIGHT + legend_height), *entries]
    for value in ticks(y_low, y_high, log=chart.log_y):
        parts += [f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{WIDTH - _RIGHT}"/>']
        parts += [_text(_LEFT - 6, y(value) + 4, number(value), "tick y")]
    for value in ticks(x_low, x_high, log=chart.log_x):
        parts += [f'<path class="grid" d="M{x(value):.1f} {top}V{bottom}"/>']
        parts += [_text(x(value), bottom + 16, number(value), "tick x")]
    parts += [_text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 36, chart.x_label, "label")]
    middle = (top + bottom) / 2
    parts += [_text(14, middle, chart.y_label, "label", f' transform="rotate(-90 14 {middle:.1f})"')]
    parts += [_line(line, x, y, over) for line, over in zip(chart.lines, covers(chart), strict=True)]
    return "".join([*parts, "</svg>"])


def _legend(chart: LineChart) -> tuple[list[str], int]:
    """(elements, height): one entry a name, wrapped."""
    found, at, row = [], float(_LEFT), 0
    for name, line in {line.name: line for line in chart.lines}.items():
        width = 34 + 7.4 * len(name)
        if at + width > WIDTH and at > _LEFT:
            at, row = float(_LEFT), row + 1
        y = _TOP + row * _LEGEND_LINE
        dash = " dashed" if line.dashed else ""
        found += [
            f'<g class="key k-{slug(line.group)} c{line.colour}" data-group="{_attribute(line.group)}">'
            f'<path class="curve{dash}" d="M{at:.0f} {y}h18"/>{_text(at + 23, y + 4, name)}</g>'
        ]
        at += width
    return found, (row + 1) * _LEGEND_LINE if found else 0


def _line(line: Line, x: Callable[[float], float], y: Callable[[float], float], over: int) -> str:
    parts = [f'<g class="{_classes(line.group, line.colour)}">']
    if line.curve:
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line.curve)
        tip = f' data-tip="{_attribute(line.tip)}"' if line.tip else ""
        kind = " dashed" if line.dashed else f" over{min(over, _OVER)}" if over else ""
        parts += [f'<path class="curve{kind}" d="M{path}"{tip}/>']
    for p in line.points:
        hollow = ' class="hollow"' if line.dashed else ""
        parts += [f'<circle{hollow} cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="4" data-tip="{_attribute(p.tip)}"/>']
    return "".join([*parts, "</g>"])


def _heat(chart: HeatChart) -> str:
    across = min(len(chart.panels), 3)
    width = (WIDTH * 1.6 - _LEFT - 12 * across) / across if across > 1 else WIDTH - _LEFT - _RIGHT
    rows = max(len(p.rows_LC) for p in chart.panels)
    row_height = max(4.0, min(18.0, 240 / rows))
    panel_height = rows * row_height + (54 if chart.marks else 40)
    down = math.ceil(len(chart.panels) / across)
    parts = [_open(chart, _LEFT + across * (width + 12), down * panel_height + 52)]
    for i, panel in enumerate(chart.panels):
        left, top = _LEFT + i % across * (width + 12), 20 + i // across * panel_height
        parts += [
            f'<g class="{_classes(panel.group, colour(panel.group))}" transform="translate({left:.1f} {top:.1f})">'
        ]
        parts += [_text(0, -6, panel.name, "panel"), *_cells(panel, width, row_height)]
        if i % across == 0:
            parts += [
                _text(-6, (row + 0.5) * row_height + 4, str(row), "tick y")
                for row in range(0, len(panel.rows_LC), max(1, math.ceil(len(panel.rows_LC) / 12)))
            ]
        under = len(panel.rows_LC) * row_height + 14
        # the last mark ends with its panel: the next panel's first is beside it
        parts += [_text(at * width, under, label, "tick y" if at == 1 else "tick x") for at, label in chart.marks]
        parts += ["</g>"]
    height = down * panel_height
    parts += [_text(_LEFT + across * (width + 12) / 2, height + 14, chart.x_label, "label")]
    parts += [_text(14, height / 2, chart.y_label, "label", f' transform="rotate(-90 14 {height / 2:.1f})"')]
    return "".join([*parts, *_shades(chart.ends, _LEFT, height + 30), "</svg>"])


def _shades(ends: tuple[str, str], left: float, top: float) -> list[str]:
    """The scale of a heat map's colours, from the palest to the strongest."""
    low, high, size = *ends, 16
    at = left + 7.0 * len(low) + 6
    cells = [
        f'<rect class="shade" x="{at + i * size:.1f}" y="{top:.1f}" width="{size}" height="12" '
        f'fill-opacity="{i / _LEVELS:.2f}"/>'
        for i in range(_LEVELS + 1)
    ]
    return [_text(left, top + 10, low, "tick"), *cells, _text(at + (_LEVELS + 1) * size + 6, top + 10, high, "tick")]


def _cells(panel: Panel, width: float, row_height: float) -> list[str]:
    """A background, then the cells: one by one where they are few, else one path a shade and row."""
    columns = len(panel.rows_LC[0])
    cell = width / columns
    parts = [f'<rect class="ground" width="{width:.1f}" height="{len(panel.rows_LC) * row_height:.1f}"/>']
    for row, (shares, tip) in enumerate(zip(panel.rows_LC, panel.row_tips, strict=True)):
        y = row * row_height
        if columns <= _FEW_COLUMNS:
            parts += [
                f'<rect class="cell" x="{c * cell:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{row_height:.1f}" '
                f'fill-opacity="{share:.2f}" data-tip="{_attribute(f"{tip}, column {c + 1}: {share:.0%}")}"/>'
                for c, share in enumerate(shares)
            ]
            continue
        parts += [f'<g data-tip="{_attribute(tip)}">']
        for level in range(1, _LEVELS + 1):
            path = "".join(
                f"M{c * cell:.1f} {y:.1f}h{cell:.1f}v{row_height:.1f}h-{cell:.1f}z"
                for c, share in enumerate(shares)
                if round(share * _LEVELS) == level
            )
            parts += [f'<path class="cell" fill-opacity="{level / _LEVELS:.2f}" d="{path}"/>'] if path else []
        parts += ["</g>"]
    return parts


def legend_groups(charts: list[Chart]) -> list[tuple[str, str, int]]:
    """(group, its slug, its colour) of all charts of a page."""
    lines = [line for chart in charts if isinstance(chart, LineChart) for line in chart.lines]
    inks = {line.group: line.colour for line in lines}
    return [(group, slug(group), inks.get(group, colour(group))) for group in groups(charts)]
