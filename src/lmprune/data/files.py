"""Text from a file: the whole file is one document, or each line of a .jsonl one record; and the rows of tables."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..foreign import reading, reason
from .records import Records, pick

SUFFIXES = (".txt", ".raw", ".tokens", ".md", ".jsonl")


def parse(source: str) -> tuple[Path, str | None] | None:
    """(path, field) of a source that names a file by its ending, else None.

    >>> parse("chats.jsonl:dialogue")[1], parse("chats.jsonl:my-field")[1], parse("chats.jsonl:a.b")[1]
    ('dialogue', 'my-field', 'a.b')
    >>> parse("org/name")
    """
    if (match := re.fullmatch(r"(.+?\.jsonl):(.+)", source)) is not None:
        return Path(match[1]), match[2]
    return (Path(source), None) if Path(source).suffix in SUFFIXES else None


def missing(folder: Path) -> str:
    """A part of a message about files that are not in a folder: that the folder is not there either."""
    return "" if folder.is_dir() else " (there is no such folder)"


def check_there(path: Path) -> None:
    """Raises: UserError where nothing is."""
    with _told(path):
        path.stat()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says of a file, in a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The file's text, newlines as they are, without a byte order mark, which is no part of it.

    Raises: UserError where it can't be read, is not UTF-8 or is empty.
    """
    try:
        with _told(path):
            text = path.read_bytes().decode("utf-8-sig")  # read_text would turn \r\n into \n
    except MemoryError as error:
        raise UserError(f"can't read {path}: {reason(error)}") from None
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
    with reading(path):
        records = [pick(row, field, chat_template=chat_template, where=where) for where, row in _lines(path, text)]
    if field is None:
        return Records(str(path), records, provenance)
    return Records(f"{path}:{field}", records, {**provenance, "field": field})


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each row of a .jsonl, a .json that holds one list, or a .csv with a header; place is for errors.

    Raises: UserError for what can't be read, a line that is no object, or a .csv row of another length.
    """
    text = read_text(path)
    kinds = {".csv": _records, ".json": _elements}
    found = kinds.get(path.suffix, _lines)(path, text)
    while True:  # the boundary is around reading, and not around what is done with a row
        with reading(path):
            row = next(found, None)
        if row is None:
            return
        yield row


def _lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse_line(line, where)


def _elements(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        elements = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); expected a list of objects") from None
    except (RecursionError, ValueError) as error:  # a number of more digits than Python reads
        raise UserError(f"{path}: not JSON ({reason(error)}); expected a list of objects") from None
    if not isinstance(elements, list) or not all(isinstance(element, dict) for element in elements):
        raise UserError(f"{path}: expected a list of objects")
    escaped = _escapes_halves(text)
    for number, element in enumerate(elements, 1):
        where = f"{path}, element {number}"
        if escaped:
            _check_characters(element, where)
        yield where, element


def _records(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        for cells in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} fields, but the header names {len(header)}: {', '.join(header)}"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}); is a quotation mark left open?") from None


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno}); expected an object a line") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: not JSON ({reason(error)}); expected an object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, got {type(row).__name__}")
    if _escapes_halves(line):
        _check_characters(row, where)
    return row


def _escapes_halves(text: str) -> bool:
    """Whether JSON may spell half a character, alone or beside its other half."""
    return "\\ud" in text or "\\uD" in text


def _check_characters(value: Any, where: str) -> None:
    """JSON can spell halves of characters alone, which no tokenizer reads. Raises: UserError for one."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise UserError(f"{where}: {half} alone is half a character; write both halves, or leave it out") from None
