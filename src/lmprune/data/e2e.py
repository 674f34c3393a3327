"""E2E NLG (Novikova et al., 2017): what is to be said of a restaurant in, a sentence or two out."""

from __future__ import annotations

from pathlib import Path

from .records import Pair, PairData
from .splits import PARQUET, Home, filled_field, open_split

HOME = Home(
    "tuetschek/e2e_nlg",
    {"train": ("trainset.csv",), "validation": ("devset.csv",), "test": ("testset_w_refs.csv",)},
    revision=PARQUET,
)
SEPARATOR = "\nText:"


def load(split: str, data_dir: Path | None) -> PairData:
    """A pair for each reference; the references of one meaning representation share their context."""
    found = open_split("e2e", HOME, split, data_dir)
    meaning, text = ("mr", "ref") if found.file else ("meaning_representation", "human_reference")
    pairs = [
        Pair(filled_field(row, meaning, where).strip() + SEPARATOR, " " + filled_field(row, text, where).strip())
        for where, row in found.rows
    ]
    return PairData(found.name, pairs, found.provenance)
