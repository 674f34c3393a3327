"""The rows of one split of a data set that has a home on the hub and known file names in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from . import files, hub
from .records import names

SPLITS = ("train", "validation", "test")
#: Where the hub keeps its own copies of data sets that used to be scripts, which `datasets` no longer runs.
PARQUET = "refs/convert/parquet"


@dataclass(frozen=True)
class Home:
    """hub_id, revision: where on the hub. files: split -> the names that its file may have in a folder."""

    hub_id: str
    files: Mapping[str, tuple[str, ...]]
    revision: str | None = None


@dataclass(frozen=True)
class Split:
    """name: for people. rows: (place, row), the place for errors. file: None where the rows come from the hub."""

    name: str
    rows: Iterator[tuple[str, dict[str, Any]]]
    provenance: Mapping[str, str | int]
    file: Path | None = None


def check_split(split: str) -> None:
    """Raises: UserError for none of the three that every source has but the hub's, which name their own."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)


def open_split(source: str, home: Home, split: str, data_dir: Path | None) -> Split:
    """data_dir: None = the hub. Raises: UserError for an unknown split, a missing file, a hub that can't be reached."""
    check_split(split)
    names = home.files[split]
    if data_dir is None:
        cure = f"pass --data-dir with a folder that holds {' or '.join(names)}"
        dataset = hub.find(home.hub_id, None, split, revision=home.revision, cure=cure)
        rows = ((f"data set {home.hub_id}, row {number}", row) for number, row in enumerate(dataset.rows(), 1))
        return Split(f"{source} {split} (hub: {home.hub_id})", rows, dataset.provenance)
    there = [path for name in names if (path := data_dir / name).is_file()]
    if not there:
        raise UserError(
            f"no {' or '.join(names)} in {data_dir}{files.missing(data_dir)}: {source} has its split {split} there"
        )
    return Split(f"{source} {split} ({there[0]})", files.rows(there[0]), {"file": str(there[0])}, there[0])


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """The text in one field of a row, its lines ended by \\n. Raises: UserError where it is missing or no text."""
    if name not in row:
        raise UserError(f"{where}: no field {name!r}; it has: {names(row)}")
    if not isinstance(row[name], str):
        raise UserError(f"{where}: field {name!r} holds {type(row[name]).__name__}, expected a text")
    return row[name].replace("\r\n", "\n")


def filled_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """A `text_field` with something in it. Raises: UserError also where it is empty."""
    if not (text := text_field(row, name, where)).strip():
        raise UserError(f"{where}: field {name!r} is empty; give it a text, or leave that record out")
    return text
