"""Result records as rows of plain values, grouped into the sections of a report: one a model and task."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath

DENSE = "dense"
#: the mean over lm-eval's tasks, of a record's `zero_shot`; all other metrics are of its `eval`
ZERO_SHOT = "mean_accuracy"

#: key in the eval record -> (what it is called, whether less is better); a section's main metric is the first it has
METRICS: Mapping[str, tuple[str, bool]] = {
    "logical_form": ("logical form", False),
    "exact_match": ("exact match", False),
    "execution": ("execution", False),
    "first_choices": ("first choices right", False),
    "rougeL": ("ROUGE-L", False),
    "rouge1": ("ROUGE-1", False),
    "rouge2": ("ROUGE-2", False),
    "bleu": ("BLEU", False),
    "perplexity": ("perplexity", True),
    ZERO_SHOT: ("zero-shot accuracy", False),
}

#: two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom; beyond them by its expansion
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

#: of a normal distribution, four fifths lie above minus so much
_FOUR_IN_FIVE = 0.8416
_MOST = 1000


@dataclass(frozen=True)
class Row:
    """One run that ended well. keep: as asked. params: of the model as it is now; None where no command told."""

    id: str
    model: str
    task: str
    method: str
    keep: float
    seed: int
    distil: bool
    params: int | None
    metrics: Mapping[str, float]
    uniqueness: float | None
    sensitivity: float | None
    uniqueness_ratio: float | None
    sensitivity_ratio: float | None
    speed: Mapping[str, float]
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The method as legends show it."""
        return self.method + (" + distil" if self.distil else "")

    @property
    def dense(self) -> bool:
        return self.method == DENSE

    @property
    def answers(self) -> Mapping[str, Any] | None:
        """Its answers beside the dense model's: as it was measured, else as it was pruned."""
        told = (self.record.get(command) or {} for command in ("eval", "prune"))
        return next((found for each in told if (found := each.get("answers"))), None)

    def value(self, key: str) -> float | None:
        """A metric, or one of the numbers above, by its name."""
        return self.metrics[key] if key in self.metrics else getattr(self, key, None)


@dataclass(frozen=True)
class Section:
    """All runs of one model on one task."""

    model: str
    task: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.task}"

    @property
    def metrics(self) -> list[str]:
        return [key for key in METRICS if any(key in row.metrics for row in self.rows)]

    @property
    def keeps(self) -> list[float]:
        """Keep ratios of the pruned runs, from the largest."""
        return sorted({row.keep for row in self.rows if not row.dense}, reverse=True)

    @property
    def names(self) -> list[tuple[str, bool]]:
        """(method, distil) in the order of the study, the dense reference apart."""
        return list(dict.fromkeys((row.method, row.distil) for row in self.rows if not row.dense))

    def of(self, method: str, keep: float | None = None, distil: bool = False) -> list[Row]:
        return [r for r in self.rows if (r.method, r.distil) == (method, distil) and keep in (None, r.keep)]


def sections(records: Sequence[Mapping[str, Any]]) -> list[Section]:
    """records: of runs that ended well, in the order of the study."""
    names = _names({record["config"]["model"] for record in records})
    found: dict[tuple[str, str], list[Row]] = {}
    for record in records:
        row = _row(record, names[record["config"]["model"]])
        found.setdefault((row.model, row.task), []).append(row)
    return [Section(model, task, tuple(rows)) for (model, task), rows in found.items()]


def _names(models: set[str]) -> dict[str, str]:
    """What each model is called: the last part of its path, or all of it where two have the same last part."""
    times = Counter(Path(model).name for model in models)
    return {model: model if times[Path(model).name] > 1 else Path(model).name for model in models}


def _asked(record: Mapping[str, Any]) -> dict[str, Any]:
    told = record.get("zero_shot") or {}
    return {ZERO_SHOT: told[ZERO_SHOT]} if ZERO_SHOT in told else {}


def _row(record: Mapping[str, Any], model: str) -> Row:
    config, measured = record["config"], {**record["eval"], **_asked(record)}
    redundancy, prune = record.get("redundancy") or {}, record.get("prune") or {}
    dense = config["method"] == DENSE
    return Row(
        id=record["id"],
        model=model,
        task=config["task"],
        method=config["method"],
        keep=config["keep"],
        seed=config["seed"],
        distil=config["distil"],
        params=prune.get("params_after") or (record.get("finetune") or {}).get("params"),
        metrics={key: float(measured[key]) for key in METRICS if isinstance(measured.get(key), int | float)},
        uniqueness=redundancy.get("uniqueness"),
        sensitivity=redundancy.get("sensitivity"),
        uniqueness_ratio=1.0 if dense else redundancy.get("uniqueness_ratio"),
        sensitivity_ratio=1.0 if dense else redundancy.get("sensitivity_ratio"),
        speed=_speed(record),
        record=record,
    )


def _speed(record: Mapping[str, Any]) -> dict[str, float]:
    """`prefill` and `decode`: the dense model's time over this one's, the two measured in turn by `lmprune bench`."""
    measured = (record.get("bench") or {}).get("results") or []
    return {kind: measured[1][f"speedup_{kind}"] for kind in ("prefill", "decode")} if len(measured) == 2 else {}


def with_dense_params(found: Section) -> dict[str, int]:
    """Parameters of each run by id; a dense model's are those that pruning started from."""
    before = [(row.record.get("prune") or {}).get("params_before") for row in found.rows]
    dense = next((number for number in before if number), None)
    sizes = {row.id: row.params or (dense if row.dense else None) for row in found.rows}
    return {run: size for run, size in sizes.items() if size}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95% interval by Student's t); infinite from one value.

    >>> mean_and_interval([1.0, 3.0])
    (2.0, 12.706)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, _quantile(len(values)) * statistics.stdev(values) / math.sqrt(len(values))


def _quantile(number: int) -> float:
    """Of Student's t, of so many values, for a 95% interval (beyond the table by Abramowitz and Stegun, 26.7.5).

    >>> round(_quantile(17), 2), round(_quantile(31), 2), round(_quantile(10**9), 2)
    (2.12, 2.04, 1.96)
    """
    freedom, z = number - 1, 1.959964
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def p_value(mean: float, margin: float, number: int) -> float:
    """Two-sided, of Student's t, that a mean of `number` values with this half of its 95% interval is 0 really.

    >>> round(p_value(1.0, 1.0, 3), 3), p_value(1.0, math.inf, 1), p_value(0.5, 0.0, 3)
    (0.05, 1.0, 0.0)
    """
    if math.isinf(margin):
        return 1.0
    if margin == 0:
        return float(mean == 0)
    return _two_sided(mean / margin * _quantile(number), number - 1)


def _two_sided(t: float, freedom: int) -> float:
    return float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def values_needed(mean: float, margin: float, number: int, level: float) -> int | None:
    """How many values would tell, four times in five, that the mean is not 0, were it and their spread what `number`
    values show; None where that takes more than a thousand. level: what p has to be below.

    The noncentral t of many values is taken to be normal, a standard error wide around what is expected of it.

    >>> values_needed(1.0, 1.5, 3, 0.05), values_needed(0.001, 1.5, 3, 0.05), values_needed(1.0, math.inf, 1, 0.05)
    (5, None, None)
    """
    if math.isinf(margin) or margin == 0 or mean == 0:
        return None
    by_one = abs(mean) / margin * _quantile(number) / math.sqrt(number)  # the mean in standard deviations

    def tells(n: int) -> bool:
        t = by_one * math.sqrt(n) - _FOUR_IN_FIVE
        return t > 0 and _two_sided(t, n - 1) <= level

    found = 2 + bisect_left(range(2, _MOST), True, key=tells)
    return found if found < _MOST else None


def paired(a: Sequence[Row], b: Sequence[Row], value: Callable[[Row], float | None]) -> list[float]:
    """a - b of the runs that share a seed; where they share none, there is nothing to compare."""
    ours, theirs = ({row.seed: value(row) for row in rows} for rows in (a, b))
    differences = []
    for seed, mine in ours.items():
        other = theirs.get(seed)
        if mine is not None and other is not None:
            differences += [mine - other]
    return differences
