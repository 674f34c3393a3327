"""Answers before and after, as text: for terminals, cards and pages. found: `answers` of a record (docs/json.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import spelt_out
from ..markdown import fenced


def summary(found: Mapping[str, Any]) -> tuple[str, str]:
    """How alike they are, and whether they repeat themselves: a sentence each."""
    number, loops = len(found["items"]), found["repetitive"]
    told = "No answer repeats itself."
    if any(loops.values()):
        told = f"Of {number} answers {loops['before']} before and {loops['after']} after repeat themselves."
    same = f"{found['agreement']:.0%} of the {found['tokens']} tokens said before are the first choice after, too."
    return same, told


def block(found: Mapping[str, Any]) -> str:
    """Every prompt and what was said, as a fenced block of Markdown that nothing in it can end."""
    lines = [
        line
        for item in found["items"]
        for line in (
            "",
            one_line(item["prompt"]),
            f"  before: {one_line(item['before'])}",
            f"  after:  {one_line(item['after'])}",
        )
    ]
    return fenced("\n".join(lines[1:]), "text")


def how(found: Mapping[str, Any]) -> str:
    """How they came about, in a clause."""
    template = "by the model's chat template" if found["chat_template"] else "continued as text"
    return f"greedy, {template}, at most {found['max_new_tokens']} tokens"


def one_line(text: str) -> str:
    return spelt_out(" ".join(text.split()))
