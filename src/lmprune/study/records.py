"""results.jsonl: one self-contained JSON object a line for every run that ended, well or not. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..foreign import HEX, NUMBER, json_of, misfit
from ..report.rows import METRICS

RESULTS_FILE = "results.jsonl"
RECORD_FORMAT = 1
_ITEM = {"prompt": str, "before": str, "after": str}
_ANSWERS = {
    "items": [{**_ITEM, "agreement": NUMBER}], "agreement": NUMBER, "tokens": int, "chat_template": bool,
    "max_new_tokens": int, "repetitive": {"before": int, "after": int},
}  # fmt: skip
_SPEEDS = {"speedup_prefill": NUMBER, "speedup_decode": NUMBER}
#: what a report reads of a record
_SHAPE = {
    "id": str, "study": str, "error": str, "commit": str, "seconds": {str: NUMBER}, "peak_memory_mb": NUMBER,
    "versions": {str: str},
    "config": {"model": str, "task": str, "method": str, "criterion": str, "keep": NUMBER, "seed": int, "distil": bool},
    "eval": {**dict.fromkeys(METRICS, NUMBER), "answers": _ANSWERS},
    "prune": {"params_before": int, "params_after": int, "answers": _ANSWERS}, "finetune": {"params": int},
    "redundancy": {
        **dict.fromkeys(("uniqueness", "sensitivity", "uniqueness_ratio", "sensitivity_ratio"), NUMBER),
        "layers": [{"layer": int, "cos_ranges": [NUMBER]}],
    },
    "zero_shot": {"mean_accuracy": NUMBER}, "bench": {"results": [_SPEEDS]}, "kept": [HEX], "widths_before": [int],
    "training_log": [{"step": int, **dict.fromkeys(("loss", "perplexity", "keep", "penalty"), NUMBER)}],
}  # fmt: skip
_PLACE = ("model", "task", "method", "keep", "seed", "distil")
_NEEDED = ("id", "study", "seconds.total", "versions.lmprune", *(f"config.{name}" for name in _PLACE))


@dataclass(frozen=True)
class Results:
    """records: the latest of each run. broken: lines that are not a record of this format, which were left out."""

    records: tuple[dict[str, Any], ...]
    broken: int = 0

    @property
    def done(self) -> list[dict[str, Any]]:
        """Of the runs that ended well."""
        return [record for record in self.records if record["error"] is None]

    @property
    def latest(self) -> list[dict[str, Any]]:
        """Of those, the last of each place in a table: earlier ones are of a study whose options were edited since."""
        return list({_place(record): record for record in self.done}.values())

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["error"] is not None]

    @property
    def versions(self) -> list[str]:
        """The versions of lmprune that made them, each with its commit where it is known."""
        return sorted({_version(record) for record in self.done})

    def notes(self) -> list[str]:
        """What a reader must know of the records, one sentence each."""
        found = []
        if self.broken:
            lines = "line of the results is" if self.broken == 1 else "lines of the results are"
            found += [f"{self.broken} {lines} not a record of this format and left out"]
        if old := len(self.done) - len(self.latest):
            found += [f"{old} earlier records of runs whose options were changed since are left out"]
        if len(self.versions) > 1:
            found += [f"the records are of different versions of lmprune: {', '.join(self.versions)}"]
        if self.failed:
            found += [f"{len(self.failed)} of {len(self.records)} runs failed"]
            found += [f"failed: {record['id']}: {record['error']}" for record in self.failed]
        return found


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record["config"][name] for name in _PLACE)


def _version(record: Mapping[str, Any]) -> str:
    commit = record.get("commit")
    return record["versions"]["lmprune"] + (f" ({commit[:8]})" if commit else "")


def read(path: Path) -> Results:
    """Raises: UserError where there is no such file; lines that are no records are counted, not fatal."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"no study results at {path}: {error.strerror}") from None
    found: dict[str, dict[str, Any]] = {}
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        record = _parsed(line)
        if record is None:
            broken += 1
        else:
            found.pop(record["id"], None)
            found[record["id"]] = record  # in the order in which they were written last
    return Results(tuple(found.values()), broken)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = _of_neurons(json_of(line))
        whole = record["format"] == RECORD_FORMAT and misfit(record, _SHAPE) is None
        whole = whole and all(lacking(record, path) is False for path in _NEEDED) and "error" in record
        whole = whole and (record["error"] is not None or (record.get("eval") is not None and _fits_together(record)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole else None


def _of_neurons(record: dict[str, Any]) -> dict[str, Any]:
    """Without `kept` where units of other kinds are among it, as they were until 27 November 2026."""
    kept, widths = record.get("kept") or [], record.get("widths_before") or []
    return {**record, "kept": [], "widths_before": []} if len(kept) > len(widths) else record


def _fits_together(record: Mapping[str, Any]) -> bool:
    """Whether what reports put beside each other belongs together: layers, and their neurons."""
    measured = [record["eval"], *(record.get("training_log") or [])]
    kept, widths = record.get("kept") or [], record.get("widths_before") or []
    layers = (record.get("redundancy") or {}).get("layers") or []
    answers = [told["answers"] for name in ("eval", "prune") if (told := record.get(name) or {}).get("answers")]
    return (
        all((told.get("perplexity") or 1) > 0 for told in measured)
        and (not kept or len(kept) == len(widths))
        and all(0 < width <= 4 * len(digits) for digits, width in zip(kept, widths, strict=False))
        and all(None not in (layer.get("layer"), layer.get("cos_ranges")) for layer in layers)
        and all(line.get("step") is not None for line in record.get("training_log") or [])
        and all(_ANSWERS.keys() <= answer.keys() and answer["items"] for answer in answers)
        and all(_ITEM.keys() <= item.keys() and None not in item.values() for a in answers for item in a["items"])
    )


def lacking(record: Any, path: str) -> bool:
    """Whether there is nothing at a path like `seconds.total`."""
    for name in path.split("."):
        record = record.get(name) if isinstance(record, Mapping) else None
    return record is None


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record, whole or not at all; a line that an earlier, killed run left unfinished is ended first.

    Raises: UserError for what the disk refuses.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = b"\n" + line
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}; make room, and run the study again") from None
