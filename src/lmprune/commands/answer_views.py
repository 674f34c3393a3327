"""What people see of a model's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ..report.answers import how, one_line, summary
from .console import Views


def answers(found: Mapping[str, Any] | None) -> Views:
    """Prompt by prompt, what was said before and after. found: `answers` of a record."""
    if found is None:
        return []
    shown = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for item in found["items"]:
        shown.add_row("", Text(one_line(item["prompt"]), style="bold"))
        shown.add_row("before", Text(one_line(item["before"])))
        shown.add_row("after", Text(one_line(item["after"])))
    return ["", f"Answers ({how(found)}):", shown, "", summary(found)]
