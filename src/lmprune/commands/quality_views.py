"""What people see of zero-shot tasks and of the damage by kind of text; and which view each evaluation has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..report import quality
from ..report.quality import QualityTable
from .console import Views, table
from .measured_views import evaluation, task


def zero_shot(record: Mapping[str, Any]) -> Views:
    return _shown(record, quality.zero_shot(record))


def texts(record: Mapping[str, Any]) -> Views:
    return _shown(record, quality.texts(record))


def _shown(record: Mapping[str, Any], found: QualityTable) -> Views:
    against = f", against {record['baseline']}" if "baseline" in record else ""
    *remarks, last = found.remarks
    return [
        record["model"] + against,
        table(found.columns, found.rows),
        *remarks,
        f"{last}, {record['seconds']:.0f} s",
    ]


#: what `eval` measured -> how it is shown
EVALUATED: Mapping[str, Callable[[Mapping[str, Any]], Views]] = {
    "text": evaluation, "task": task, "zero_shot": zero_shot, "texts": texts,
}  # fmt: skip


def of_evaluation(record: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Views]:
    """The view of a record of `eval`, by what is in it."""
    marks = {"tasks": "zero_shot", "texts": "texts", "items": "task"}
    return EVALUATED[next((way for mark, way in marks.items() if mark in record), "text")]
