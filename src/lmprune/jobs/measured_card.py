"""`lmprune eval --to-card`: what was measured of a checkpoint, as a section of its model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.card import public
from ..checkpoints.sources import resolve
from ..checkpoints.writing import written_aside
from ..errors import UserError
from ..foreign import reading, text_of
from ..markdown import code, inline
from ..report import quality
from ..report.quality import QualityTable

CARD = "README.md"
#: the section that comes last
_LICENCE = "## Licence"


def card_of(model: str) -> Path:
    """The card of a checkpoint on this disk. Raises: UserError where there is none, or it is no text."""
    found = resolve(model)
    file = Path(str(found)) / CARD
    if found.on_hub or found.gguf or not file.is_file():
        raise UserError(
            f"--to-card adds to the {CARD} of a folder on this disk, and {model} is none with such a file; leave it out"
        )
    _text(file)
    return file


def _text(file: Path) -> str:
    with reading(f"{file} can't be read as text", "leave out --to-card"):
        return text_of(file)


def add(file: Path, record: Mapping[str, Any]) -> None:
    """Add what `record`, of `lmprune eval --tasks` or `--texts`, says, or put it in the place of what an earlier one
    said. Raises: UserError where the card can't be read or written; it is as it was then."""
    card = _text(file)
    made = quality.zero_shot(record) if "tasks" in record else quality.texts(record)
    with written_aside(file, folder=False) as aside:
        aside.write_text(with_section(card, made.heading, body(made, record.get("baseline"))), encoding="utf-8")


def with_section(card: str, heading: str, told: str) -> str:
    """The card with a section of this heading: where it had one, else before the licence, else at the end.

    >>> with_section("# x\\n\\n## Licence\\n\\nMIT.\\n", "Speed", "Fast.")
    '# x\\n\\n## Speed\\n\\nFast.\\n\\n## Licence\\n\\nMIT.\\n'
    """
    section = f"## {heading}\n\n{told}\n"
    old = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    if old:
        before, after = card[: old.start()], card[old.end() :]
    else:
        at = card.rfind(f"\n{_LICENCE}\n") + 1 or len(card)
        before, after = card[:at], card[at:]
    before = before.rstrip("\n") + "\n\n" if before.strip() else ""
    return before + section + (f"\n{after}" if after else "")


def body(made: QualityTable, baseline: str | None) -> str:
    """A table of Markdown, and what is to be said of it."""
    against = [f"Against {code(public(baseline))}."] if baseline else []
    numbers = " | ".join(["---:"] * (len(made.columns) - 1))
    lines = [_row(made.columns), f"| --- | {numbers} |", *map(_row, made.rows)]
    return "\n\n".join([*against, "\n".join(lines), inline("; ".join(made.remarks)) + "."])


def _row(cells: Any) -> str:
    return "| " + " | ".join(map(inline, cells)) + " |"
