"""A folder with texts of several kinds: KIND.SPLIT.txt, or KIND.SPLIT.jsonl of texts or of conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import files
from .files import SUFFIXES
from .holdout import BLOCK, blocks
from .records import Record, Records, render


def in_folder(folder: Path, split: str) -> dict[str, Path]:
    """Kind -> its file, in the order of their names. Raises: UserError where there is none of that split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*.{split}.*")):
        kind = path.name.removesuffix(f".{split}{path.suffix}")
        if path.is_file() and kind != path.name and path.suffix in SUFFIXES:
            if kind in found:
                raise UserError(f"{folder} has {found[kind].name} and {path.name}; keep one file of each kind")
            found[kind] = path
    if not found:
        raise UserError(f"no KIND.{split}.txt or KIND.{split}.jsonl in {folder}{files.missing(folder)}")
    return found


def is_kind(folder: Path, name: str) -> bool:
    """Whether the folder has its training split, which says what its kinds are."""
    return any((folder / f"{name}.train{suffix}").is_file() for suffix in SUFFIXES)


def load(path: Path, tokenizer: Any) -> Records:
    """The texts of a file; conversations (`messages`) as the tokenizer's chat template has them (see `as_texts`)."""
    chats = path.suffix == ".jsonl" and "messages" in next(iter(files.rows(path)), ("", {}))[1]
    return as_texts(files.load(path, None, chat_template=chats), tokenizer)


def as_texts(found: Records, tokenizer: Any) -> Records:
    """Each conversation in the model's own template; where it has none, what was said, a paragraph each."""
    if all(isinstance(record, str) for record in found.records):
        return found
    if getattr(tokenizer, "chat_template", None) is None:
        note = f"the tokenizer has no chat template: {found.name} is read as plain paragraphs"
        return replace(found, records=list(map(_plain, found.records)), notes=(*found.notes, note))
    return replace(found, records=render(found.records, tokenizer))


def _plain(record: Record) -> str:
    return record if isinstance(record, str) else "\n\n".join(message["content"] for message in record) + "\n\n"


def pieces(documents: Iterable[str]) -> list[str]:
    """Documents that are short, and of long ones blocks of BLOCK characters or a little more: what a share of a text
    is drawn from, so that one long document does not fill it."""
    found = []
    for document in documents:
        for block in blocks(document):
            found += [block[at : at + 2 * BLOCK] for at in range(0, len(block), 2 * BLOCK)]
    return found


def digest(documents: Sequence[str]) -> str:
    return hashlib.sha256("".join(documents).encode()).hexdigest()
