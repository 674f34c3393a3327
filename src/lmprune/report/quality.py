"""What `lmprune eval` says of zero-shot tasks and of the damage by kind of text, as a table and remarks: for a terminal
and for a card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .numbers import with_error


@dataclass(frozen=True)
class QualityTable:
    """heading: for a card. The first column of `rows` is a name, the others are numbers."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str]


def zero_shot(record: Mapping[str, Any]) -> QualityTable:
    """record: of `lmprune eval --tasks`."""
    against = "baseline" in record
    rows = [
        [
            name, with_error(row["accuracy"], row["se"], 3),
            "" if row["accuracy_norm"] is None else f"{row['accuracy_norm']:.3f}", f"{row['chance']:.3f}",
            *([f"{row['baseline_accuracy']:.3f}", _signed(row["difference"], row["difference_se"])] if against else []),
        ]
        for name, row in record["tasks"].items()
    ]  # fmt: skip
    mean = [with_error(record["mean_accuracy"], record["mean_accuracy_se"], 3), "", f"{record['mean_chance']:.3f}"]
    if against:
        difference = _signed(record["mean_difference"], record["mean_difference_se"])
        mean += [f"{record['baseline_mean_accuracy']:.3f}", difference]
    kept, items = record.get("kept_above_chance"), [row["items"] for row in record["tasks"].values()]
    columns = ["", "accuracy", "by length", "chance", *(["baseline", "difference"] if against else [])]
    remarks = [
        *([] if kept is None else [f"{kept:.0%} of the baseline's distance from chance is kept"]),
        f"{sum(items):,} items, lm-eval {record['lm_eval']} without examples in the prompt, ± one standard error",
    ]
    return QualityTable("Zero-shot tasks", columns, [*rows, ["mean", *mean]], remarks)


def texts(record: Mapping[str, Any]) -> QualityTable:
    """record: of `lmprune eval --texts`."""
    against = "baseline" in record
    seen = [kind for kind, row in record["texts"].items() if row["read_before"]]
    tokens = max(row["tokens"] for row in record["texts"].values())
    columns = ["", "perplexity", *(["baseline", "ratio", "KL", "changed"] if against else [])]
    rows = [_kind(name, row, against=against) for name, row in record["texts"].items()]
    remarks = [
        *(_of_kinds(record) if against else []),
        *([f"NOT held out, the model was fitted to them: {', '.join(seen)}"] if seen else []),
        f"{tokens:,} tokens of each in windows of {record['context']}",
    ]
    return QualityTable("Perplexity by kind of text", columns, rows, remarks)


def _signed(difference: float, error: float | None) -> str:
    return f"{difference:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def _kind(name: str, row: Mapping[str, Any], *, against: bool) -> list[str]:
    if not against:
        return [name, with_error(row["perplexity"], row["perplexity_se"], 2)]
    ratio, ends = row["perplexity_ratio"], row["perplexity_ratio_ci"]
    return [
        name, f"{row['perplexity']:.2f}", f"{row['baseline_perplexity']:.2f}",
        f"{ratio:.2f}" + (f" ({ends[0]:.2f}–{ends[1]:.2f})" if ends else ""),
        _within(row["kl"], row["kl_ci"], ".3f"),
        _within(row["first_choice_changed"], row["first_choice_changed_ci"], ".1%"),
    ]  # fmt: skip


def _within(value: float, ends: Sequence[float] | None, form: str) -> str:
    """With half of its interval, where there is one."""
    return f"{value:{form}}" + (f" ± {ends[1] - value:{form}}" if ends else "")


def _of_kinds(record: Mapping[str, Any]) -> list[str]:
    mean, error = record["mean_log_ratio"], record["mean_log_ratio_se"]
    return [
        f"mean logarithm of the ratios {with_error(mean, error, 3)}: {math.exp(mean):.3f} times the baseline's "
        f"perplexity; worst on {record['worst']}",
        "changed: tokens for which another one comes first now; 95% intervals over windows",
    ]
