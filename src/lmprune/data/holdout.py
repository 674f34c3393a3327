"""A share of a user's own file that is kept for evaluation: what has no splits of its own gets some."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

from ..errors import UserError
from .records import Records

#: characters of a block, at least: what a text without records is cut into, at the ends of lines
BLOCK = 4096

Unit = TypeVar("Unit")


def check_share(share: float) -> float:
    """`share` as given, if it is one. Raises: UserError."""
    if not 0 < share < 1:
        raise UserError(f"--holdout takes a share between 0 and 1, such as 0.1, got {share:g}")
    return share


def held_out(units: Sequence[Unit], share: float, key: Callable[[Unit], Any], name: str) -> list[bool]:
    """Of each unit, whether it is held out: those with the smallest digests, so that equal ones (by `key`) are on one
    side, and neither their order nor a seed matters. Raises: UserError where a side would be empty."""
    check_share(share)
    digests = [hashlib.sha256(json.dumps(key(unit)).encode()).digest() for unit in units]
    last = sorted(digests)[math.ceil(share * len(digests)) - 1]
    held = [digest <= last for digest in digests]
    if all(held):
        raise UserError(
            f"{name} can't be divided: it has {len(set(digests))} different records or blocks of {BLOCK:,} characters; "
            "evaluate on another file instead of --holdout"
        )
    return held


def split_name(split: str, share: float) -> dict[str, str | float]:
    """What a provenance says of a part."""
    part = f"all but the held-out {share:g}" if split == "train" else f"the held-out {share:g}"
    return {"split": part, "holdout": share}


def part(found: Records, split: str, share: float) -> Records:
    """train: the rest of what was read, else the held-out share, in the order of the file."""
    wanted = split != "train"
    if len(found.records) == 1 and isinstance(found.records[0], str):
        units: Sequence[Any] = blocks(found.records[0])
        sides = held_out(units, share, str, found.name)
        runs = groupby(zip(units, sides, strict=True), lambda pair: pair[1])
        records: list[Any] = ["".join(unit for unit, _ in run) for side, run in runs if side == wanted]
    else:
        sides = held_out(found.records, share, lambda record: record, found.name)
        records = [record for record, side in zip(found.records, sides, strict=True) if side == wanted]
    told = split_name(split, share)
    return replace(
        found, name=f"{found.name}, {told['split']}", records=records, provenance={**found.provenance, **told}
    )


def blocks(text: str) -> list[str]:
    """The text in blocks of whole lines, BLOCK characters or a little more each; joined they are the text again."""
    found, block = [], ""
    for line in text.splitlines(keepends=True):
        block += line
        if len(block) >= BLOCK:
            found.append(block)
            block = ""
    return [*found, block] if block else found
