"""The paper's claims, each put to the records: holds, does not hold, or can't tell, with intervals
(docs/methods.md, "The paper's claims").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .rows import METRICS, Row, Section, mean_and_interval, p_value, paired, values_needed

HOLDS, FAILS, OPEN = "holds", "does not hold", "can't tell"

#: seeds without which nothing is said to hold or not to: two that agree by chance have a narrow interval
FEWEST = 3
#: a comparison that stands alone is decided below it
LEVEL = 0.05
#: "close to": within so much of the other's metric
CLOSE = 0.05
_ESTABLISHED = ("magnitude", "soft", "hard", "top_v")


@dataclass(frozen=True)
class Evidence:
    """One comparison: the mean paired difference over seeds with its 95% interval; expected: to be below 0.

    adjusted: its p as one of several comparisons (`corrected`); None = it stands alone. level: what its own p has to be
    below, as Holm's rule has it at its place among them.
    """

    what: str
    mean: float
    margin: float
    seeds: int
    adjusted: float | None = None
    level: float = LEVEL

    @property
    def p(self) -> float:
        """Two-sided, of Student's t; corrected for the other comparisons of its claim, where it is one of several."""
        return p_value(self.mean, self.margin, self.seeds) if self.adjusted is None else self.adjusted

    @property
    def verdict(self) -> str:
        if self.seeds < FEWEST or self.p > LEVEL:
            return OPEN
        return HOLDS if self.mean < 0 else FAILS

    def __str__(self) -> str:
        if math.isinf(self.margin):
            return f"{self.what}: {self.mean:+.3f} (one seed: no interval)"
        low, high = self.mean - self.margin, self.mean + self.margin
        few = "" if self.seeds >= FEWEST else f", which are fewer than {FEWEST}"
        told = f"{self.what}: {self.mean:+.3f}, 95% interval [{low:+.3f}, {high:+.3f}] of {self.seeds} seeds{few}"
        told = told if self.adjusted is None else f"{told}, p {self.p:.2g} among all"
        return told if self.verdict != OPEN else f"{told}; {self._needs()}"

    def _needs(self) -> str:
        needed = values_needed(self.mean, self.margin, self.seeds, self.level)
        return (
            "thousands of seeds would not tell" if needed is None else f"about {max(needed, FEWEST)} seeds would tell"
        )


@dataclass(frozen=True)
class Claim:
    """evidence: every comparison that the claim makes of these records, each expected to be below 0."""

    section: str
    claim: str
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> str:
        """It holds where every comparison does, and fails where one does."""
        verdicts = {each.verdict for each in self.evidence}
        return FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else OPEN


def of_section(found: Section) -> list[Claim]:
    """The claims that these records say anything about."""
    if not found.metrics:
        return []
    made = [
        (f"random is close to (within {CLOSE:.0%} of) the established methods", _random(found)),
        ("magnitude is worst", _magnitude(found)),
        ("gum is at least as good as top_v", _gum(found)),
        ("gum's advantage is largest at the lowest keep ratio", _gum_low(found)),
        ("gum's uniqueness is the highest", _unique(found)),
        ("distillation narrows the gap between the best and the worst method", _narrower(found)),
        ("distillation makes top_v and gum worse at 75 and 50%", _worse(found)),
    ]
    return [Claim(found.title, text, corrected(evidence)) for text, each in made if (evidence := tuple(each))]


def corrected(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979): all comparisons of a claim together
    are wrong at most once in twenty."""
    order = sorted(range(len(evidence)), key=lambda i: evidence[i].p)
    adjusted, largest = list(evidence), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(evidence) - rank) * evidence[i].p))
        adjusted[i] = replace(evidence[i], adjusted=largest, level=LEVEL / (len(evidence) - rank))
    return tuple(adjusted) if len(evidence) > 1 else tuple(evidence)


def _loss(found: Section) -> Callable[[Row], float | None]:
    """Less is better, and differences are relative: log perplexity, -log of a score.

    A score of 0 counts as a thousandth of the best one, or the worst methods would be left out.
    """
    key = found.metrics[0]
    if METRICS[key][1]:
        return lambda row: None if (measured := row.metrics.get(key)) is None else math.log(measured)
    least = 1e-3 * max(row.metrics.get(key, 0) for row in found.rows)

    def value(row: Row) -> float | None:
        measured = row.metrics.get(key)
        return -math.log(max(measured, least)) if measured is not None and least > 0 else None

    return value


def _compare(
    found: Section, what: str, a: Sequence[Row], b: Sequence[Row], value: Callable[[Row], float | None], *,
    allowed: float = 0.0,
) -> Iterator[Evidence]:  # fmt: skip
    if differences := paired(a, b, value):
        mean, margin = mean_and_interval(differences)
        yield Evidence(what, mean - allowed, margin, len(differences))


def _name(found: Section) -> str:
    return f"log {METRICS[found.metrics[0]][0]}"


def _random(found: Section) -> Iterator[Evidence]:
    for keep in found.keeps:
        for other in _ESTABLISHED:
            what = f"{_name(found)}, random - {other} - {math.log1p(CLOSE):.3f}, keep {keep:g}"
            allowed = math.log1p(CLOSE)
            yield from _compare(
                found, what, found.of("random", keep), found.of(other, keep), _loss(found), allowed=allowed
            )


def _magnitude(found: Section) -> Iterator[Evidence]:
    for keep in found.keeps:
        for other in ("random", "soft", "hard", "top_v", "gum"):
            what = f"{_name(found)}, {other} - magnitude, keep {keep:g}"
            yield from _compare(found, what, found.of(other, keep), found.of("magnitude", keep), _loss(found))


def _gum(found: Section) -> Iterator[Evidence]:
    for keep in found.keeps:
        what = f"{_name(found)}, gum - top_v, keep {keep:g}"
        yield from _compare(found, what, found.of("gum", keep), found.of("top_v", keep), _loss(found))


def _gum_low(found: Section) -> Iterator[Evidence]:
    keeps = found.keeps
    if len(keeps) < 2:
        return
    low, high = (_gains(found, keep) for keep in (keeps[-1], keeps[0]))
    shared = [low[seed] - high[seed] for seed in low if seed in high]
    if shared:
        # an advantage that is not there can't be largest
        what = f"{_name(found)}, gum - top_v, keep {keeps[-1]:g}"
        yield from _compare(found, what, found.of("gum", keeps[-1]), found.of("top_v", keeps[-1]), _loss(found))
        mean, margin = mean_and_interval(shared)
        what = f"(gum - top_v) at keep {keeps[-1]:g} - the same at {keeps[0]:g}, {_name(found)}"
        yield Evidence(what, mean, margin, len(shared))


def _gains(found: Section, keep: float) -> dict[int, float]:
    value = _loss(found)
    gum, top_v = ({r.seed: v for r in found.of(m, keep) if (v := value(r)) is not None} for m in ("gum", "top_v"))
    return {seed: gum[seed] - top_v[seed] for seed in gum if seed in top_v}


def _unique(found: Section) -> Iterator[Evidence]:
    for keep in found.keeps:
        for other in ("random", *_ESTABLISHED):
            what = f"uniqueness, {other} - gum, keep {keep:g}"
            yield from _compare(found, what, found.of(other, keep), found.of("gum", keep), lambda row: row.uniqueness)


def _narrower(found: Section) -> Iterator[Evidence]:
    value = _loss(found)
    methods = [m for m, distil in found.names if distil and (m, False) in found.names]
    for keep in found.keeps if len(methods) > 1 else []:
        changes = []
        for seed in sorted({row.seed for row in found.rows}):
            gaps = []
            for distil in (True, False):
                values = [value(r) for m in methods for r in found.of(m, keep, distil) if r.seed == seed]
                known = [v for v in values if v is not None]
                gaps += [max(known) - min(known)] if len(known) == len(methods) else []
            changes += [gaps[0] - gaps[1]] if len(gaps) == 2 else []
        if changes:
            mean, margin = mean_and_interval(changes)
            yield Evidence(f"best to worst, distilled - not, {_name(found)}, keep {keep:g}", mean, margin, len(changes))


def _worse(found: Section) -> Iterator[Evidence]:
    for keep in (k for k in found.keeps if k in (0.75, 0.5)):
        for method in ("top_v", "gum"):
            what = f"{_name(found)}, {method} alone - distilled, keep {keep:g}"
            yield from _compare(found, what, found.of(method, keep), found.of(method, keep, True), _loss(found))
