"""SAMSum (Gliwa et al., 2019): a chat in, its summary out."""

from __future__ import annotations

from pathlib import Path

from .records import Pair, PairData
from .splits import Home, filled_field, open_split, text_field

HOME = Home(
    "knkarthick/samsum",  # a copy: the authors' own, Samsung/samsum, is gone
    {
        "train": ("train.jsonl", "train.json", "train.csv"),
        "validation": ("validation.jsonl", "val.json", "validation.csv"),
        "test": ("test.jsonl", "test.json", "test.csv"),
    },
)
SEPARATOR = "\nSummary:"


def load(split: str, data_dir: Path | None) -> PairData:
    """Dialogue + SEPARATOR, then the summary. Records whose dialogue is empty (train has one) are left out."""
    found = open_split("samsum", HOME, split, data_dir)
    pairs, dropped = [], 0
    for where, row in found.rows:
        # `datasets` reads an empty field of the hub's .csv as None
        dialogue = "" if row.get("dialogue", "") is None else text_field(row, "dialogue", where).strip()
        summary = filled_field(row, "summary", where).strip()
        if dialogue:
            pairs.append(Pair(dialogue + SEPARATOR, " " + summary))
        else:
            dropped += 1
    notes = (f"{dropped} of {len(pairs) + dropped} records of {found.name} have an empty dialogue and were left out",)
    return PairData(found.name, pairs, found.provenance, notes if dropped else ())
