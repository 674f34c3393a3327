"""What a figure shows, before anybody draws it: plain values, read by `svg` and by `raster` alike."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: groups that always have the same colour, in this order; others take the colours that are left
_KNOWN = ("dense", "random", "magnitude", "soft", "hard", "top_v", "gum", "anti_gum", "obs", "activation")
NUM_COLOURS = 12
#: marks of a heat map across which something goes from 0 to 1
FROM_0_TO_1 = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))


@dataclass(frozen=True)
class Point:
    """tip: what is shown when the pointer is over it."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Line:
    """name: in the legend. group: what colours and filters go by, a method's name.

    points: one a run. curve: what is joined, such as the means of the runs. tip: of the curve. ink: a colour's number,
    where the group's own is not wanted.
    """

    name: str
    group: str
    points: tuple[Point, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    dashed: bool = False
    tip: str = ""
    ink: int | None = None

    @property
    def colour(self) -> int:
        return colour(self.group) if self.ink is None else self.ink


@dataclass(frozen=True)
class LineChart:
    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False

    @property
    def xs(self) -> list[float]:
        return [x for line in self.lines for x in (*(p.x for p in line.points), *(x for x, _ in line.curve))]

    @property
    def ys(self) -> list[float]:
        return [y for line in self.lines for y in (*(p.y for p in line.points), *(y for _, y in line.curve))]


@dataclass(frozen=True)
class Panel:
    """rows_LC: shares in [0, 1], the first row at the top. row_tips: one a row."""

    name: str
    group: str
    rows_LC: tuple[tuple[float, ...], ...]
    row_tips: tuple[str, ...]


@dataclass(frozen=True)
class HeatChart:
    """Panels beside each other: a row a layer, the stronger the colour the larger the share.

    marks: along x, each (how far across, label). ends: what the palest and the strongest colour stand for.
    """

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    marks: tuple[tuple[float, str], ...] = ()
    ends: tuple[str, str] = ("0%", "100%")


Chart = LineChart | HeatChart


def marks_of(columns: int) -> tuple[tuple[float, str], ...]:
    """Of columns that are counted: at most nine numbers, each over the middle of its own.

    >>> marks_of(3)
    ((0.16666666666666666, '0'), (0.5, '1'), (0.8333333333333334, '2'))
    """
    return tuple(((i + 0.5) / columns, str(i)) for i in range(0, columns, -(-columns // 9)))


def covers(chart: LineChart) -> list[int]:
    """Of each line, on how many of those before it its curve lies, so that all but the last would be hidden."""
    low, high = span(chart.ys, log=chart.log_y) if chart.ys else (0.0, 1.0)
    near = 0.01 * (high - low)
    curves = [dict(line.curve) for line in chart.lines]
    return [sum(_lies_on(curve, other, near) for other in curves[:i]) for i, curve in enumerate(curves)]


def _lies_on(curve: dict[float, float], other: dict[float, float], near: float) -> bool:
    shared = curve.keys() & other.keys()
    return 2 * len(shared) > len(curve) and all(abs(curve[x] - other[x]) <= near for x in shared)


def table_of(chart: Chart) -> list[list[object]]:
    """What the figure shows as numbers: a header, and a row for each."""
    if isinstance(chart, HeatChart):
        cells = [
            [panel.name, row, column, share]
            for panel in chart.panels
            for row, shares in enumerate(panel.rows_LC)
            for column, share in enumerate(shares)
        ]
        return [["panel", chart.y_label, chart.x_label, "share"], *cells]
    numbers: list[list[object]] = [["name", "kind", chart.x_label, chart.y_label]]
    for line in chart.lines:
        numbers += [[line.name, "run", p.x, p.y] for p in line.points]
        numbers += [[line.name, "curve", x, y] for x, y in line.curve]
    return numbers


def csv_of(chart: Chart) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in table_of(chart))
    return written.getvalue()


def _harmless(cell: object) -> object:
    """A stranger's name is text to a spreadsheet, too, and no formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in ("=", "+", "-", "@") else cell


def groups(charts: Iterable[Chart]) -> list[str]:
    """The groups in the charts, known ones first, the others as they come."""
    parts = (part for chart in charts for part in (chart.lines if isinstance(chart, LineChart) else chart.panels))
    found = dict.fromkeys(part.group for part in parts)
    return sorted(found, key=lambda group: _KNOWN.index(group) if group in _KNOWN else len(_KNOWN))


def colour(group: str) -> int:
    """A number below NUM_COLOURS, the same for a group in every figure; 0 is the text's own colour."""
    if group in _KNOWN:
        return _KNOWN.index(group)
    return len(_KNOWN) + sum(group.encode()) % (NUM_COLOURS - len(_KNOWN))


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round numbers within [low, high]: at most eight, at least two where the range has them.

    >>> ticks(0, 1), ticks(9, 220, log=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [10.0, 20.0, 50.0, 100.0, 200.0])
    """
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for mantissas in ((1, 2, 5), (1,)):
            found = [m * 10.0**p for p in powers for m in mantissas if low <= m * 10.0**p <= high]
            if 2 <= len(found) <= 8:
                return found
        if len(found) > 8:
            return found[:: math.ceil(len(found) / 8)]
    raw = (high - low) / 6
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(s * magnitude for s in (1, 2, 5, 10) if s * magnitude >= raw * 0.9999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """The range an axis shows: a little more than the values, never empty."""
    low, high = min(values), max(values)
    if log:
        margin = (high / low) ** 0.05 if high > low else 1.1
        return low / margin, high * margin
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
