"""What people see of a model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ..errors import spelt_out
from ..report.answers import how, one_line, summary
from .console import Views


def answers(found: Mapping[str, Any] | None) -> Views:
    """Prompt by prompt, what was said before and after. found: `answers` of a record."""
    if found is None:
        return []
    rows = [[one_line(item[name]) for name in ("prompt", "before", "after")] for item in found["items"]]
    return ["", f"Answers ({how(found)}):", *side_by_side(["before", "after"], rows), "", *summary(found)]


def side_by_side(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Views:
    """names: of those who answer. rows: a prompt and its answers."""
    shown = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for prompt, *said in rows:
        shown.add_row("", Text(spelt_out(prompt, keep="\n\t"), style="bold"))
        for name, text in zip(names, said, strict=True):
            shown.add_row(Text(name), Text(spelt_out(text, keep="\n\t")))
    return [shown] if rows else []
