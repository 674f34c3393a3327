"""What a figure shows, before anybody draws it: plain values, read by `svg` and by `raster` alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: groups that always have the same colour, in this order; others take the colours that are left
_KNOWN = ("dense", "random", "magnitude", "soft", "hard", "top_v", "gum", "anti_gum", "obs", "activation")
NUM_COLOURS = 12


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
    """Panels beside each other: a row a layer, the stronger the colour the larger the share."""

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]


Chart = LineChart | HeatChart


def groups(charts: Iterable[Chart]) -> list[str]:
    """The groups in the charts, known ones first."""
    found = {part.group for chart in charts for part in (chart.lines if isinstance(chart, LineChart) else chart.panels)}
    return sorted(found, key=lambda group: (_KNOWN.index(group) if group in _KNOWN else len(_KNOWN), group))


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
