"""Text from a file: the whole file is one document, or each line of a .jsonl one record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from .records import Records, pick

SUFFIXES = (".txt", ".raw", ".tokens", ".md", ".jsonl")


def parse(source: str) -> tuple[Path, str | None] | None:
    """(path, field) of a source that names a file by its ending, else None.

    >>> parse("chats.jsonl:dialogue")[1], parse("org/name")
    ('dialogue', None)
    """
    if (match := re.fullmatch(r"(.+\.jsonl):(\w+)", source)) is not None:
        return Path(match[1]), match[2]
    return (Path(source), None) if Path(source).suffix in SUFFIXES else None


def read_text(path: Path) -> str:
    """The file's text, newlines as they are. Raises: UserError where it can't be read, is not UTF-8 or is empty."""
    try:
        text = path.read_bytes().decode("utf-8")  # read_text would turn \r\n into \n
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} can't be decoded; convert it first") from None
    if not text.strip():
        raise UserError(f"{path} is empty")
    return text


def load(path: Path, field: str | None, *, chat_template: bool) -> Records:
    """field: the one to read from each line of a .jsonl; None = `text` (or `messages` with a chat template)."""
    text = read_text(path)
    provenance = {"file": str(path), "split": "the whole file"}
    if path.suffix != ".jsonl":
        return Records(str(path), [text], provenance)
    records = [
        pick(_parse_line(line, where), field, chat_template=chat_template, where=where)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and (where := f"{path}, line {number}")
    ]
    return Records(f"{path}:{field}" if field else str(path), records, provenance)


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno}); expected an object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with a text field, got {type(row).__name__}")
    return row
