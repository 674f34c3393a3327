"""WikiText: articles of Wikipedia, from a folder of the original files or from the hub."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from ..errors import UserError, unknown
from . import hub
from .files import missing, read_text
from .records import Records

HUB_ID = "Salesforce/wikitext"
#: `raw` is the text as written; `tokens` has rare words replaced by <unk>.
VARIANTS = {"raw": "wikitext-103-raw-v1", "tokens": "wikitext-103-v1"}
_FILE_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_TITLE = re.compile(r" = (?!= ).*(?<! =) = \n?")


def load(variant: str | None, split: str, data_dir: Path | None, num_tokens: int | None) -> Records:
    """Articles of one split. variant: raw or tokens; None = raw, or in a folder without it, tokens.

    data_dir: a folder with wiki.{train,valid,test}.{raw,tokens}; None = WikiText-103 from the hub, streamed and
    stopped when there is ample text for `num_tokens`.
    """
    if variant is not None and variant not in VARIANTS:
        raise unknown("WikiText variant", variant, VARIANTS)
    if split not in _FILE_SPLITS:
        raise unknown("split", split, _FILE_SPLITS)
    return (
        _from_hub(variant or "raw", split, num_tokens) if data_dir is None else _from_folder(variant, split, data_dir)
    )


def articles(text: str) -> list[str]:
    """Cut at title lines; joined, the articles are the text again.

    A title is a line ` = Title = ` with one `=` on each side and blank lines around it: without that rule, table
    legends (` = Points ; A = `) in the running text would be titles (29 in WikiText-2's train split).

    >>> articles(" \\n = A = \\n \\n text \\n \\n = = Section = = \\n \\n more \\n \\n = B = \\n \\n text \\n")[1]
    ' = B = \\n \\n text \\n'
    """
    lines = re.split(r"(?<=\n)", text)  # not splitlines, which also cuts at other separators than \n
    padded = ["", *lines, ""]
    starts = [
        i
        for i, line in enumerate(lines)
        if _TITLE.fullmatch(line) and not padded[i].strip() and not padded[i + 2].strip()
    ]
    bounds = [0, *starts[1:], len(lines)]
    return ["".join(lines[start:stop]) for start, stop in pairwise(bounds)]


def _from_folder(variant: str | None, split: str, data_dir: Path) -> Records:
    stem = data_dir / f"wiki.{_FILE_SPLITS[split]}"
    wanted = list(VARIANTS) if variant is None else [variant]
    there = [v for v in wanted if stem.with_name(f"{stem.name}.{v}").is_file()]
    if not there:
        names = " or ".join(f"{stem.name}.{v}" for v in wanted)
        raise UserError(
            f"no {names} in {data_dir}{missing(data_dir)}; --data-dir takes a folder with WikiText's original files"
        )
    path = stem.with_name(f"{stem.name}.{there[0]}")
    note = "" if there[0] == wanted[0] else f"; there is no {stem.name}.{wanted[0]}"
    name = f"wikitext:{there[0]} {split} ({path}{note})"
    return Records(name, articles(read_text(path)), {"file": str(path), "variant": there[0]})


def _from_hub(variant: str, split: str, num_tokens: int | None) -> Records:
    config = VARIANTS[variant]
    cure = "pass --data-dir with a folder that holds wiki.{train,valid,test}.{raw,tokens}"
    dataset = hub.find(HUB_ID, config, split, cure=cure)
    lines, length = [], 0
    for row in dataset.rows():
        lines.append(row["text"] or " \n")  # the hub's copy empties the blank lines of the original files
        length += len(lines[-1])
        if length >= hub.characters(num_tokens):
            break
    name = f"wikitext:{variant} {split} (hub: {HUB_ID} {config})"
    return Records(name, articles("".join(lines)), {**dataset.provenance, "variant": variant})
