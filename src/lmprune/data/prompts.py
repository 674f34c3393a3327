"""What models are asked, so that a person can read the answers: some built in, or a file of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import files
from .beginning import Beginning
from .records import pick, render

BUILT_IN = "built in"
#: for models with a chat template: short questions, each of another kind
QUESTIONS = (
    "What is the capital of France?",
    "Give me three tips for sleeping better.",
    "Explain in two sentences why the sky is blue.",
    "How do I open a file in Python?",
)
#: for all others: beginnings of texts
BEGINNINGS = (
    "The capital of France is",
    "Water boils when it is heated because",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n",
)
_SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Prompts:
    """name: BUILT_IN, or the file. texts: what is asked."""

    name: str
    texts: tuple[str, ...]


def load(file: Path) -> Prompts:
    """A prompt a line of a text file; of a `.jsonl` the field `prompt` of each line. Raises: UserError."""
    if file.suffix not in _SUFFIXES:
        raise UserError(f"{file} is no file of prompts; expected {', '.join(_SUFFIXES)}: a prompt a line")
    if file.suffix == ".jsonl":
        rows = [pick(row, "prompt", chat_template=False, where=where) for where, row in files.rows(file)]
        texts = [str(row) for row in rows]
    else:
        texts = files.read_text(file).split("\n")  # splitlines also cuts at other separators
    told = tuple(text.strip() for text in texts if text.strip())
    if not told:
        raise UserError(f"there is no prompt in {file}")
    return Prompts(str(file), told)


def built_in(tokenizer: Any) -> Prompts:
    return Prompts(BUILT_IN, QUESTIONS if has_template(tokenizer) else BEGINNINGS)


def has_template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """What the model reads of each: a chat template writes what a text begins with itself. Raises: UserError."""
    if has_template(tokenizer):
        return [*tokenizer(render(texts, tokenizer, ask=True), add_special_tokens=False).input_ids]
    begin = Beginning.of(tokenizer).ids
    return [[*begin, *ids] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]
