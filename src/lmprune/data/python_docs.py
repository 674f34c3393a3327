"""Python's language reference, which ships with every CPython (`pydoc_data.topics`): real text without a network."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping

from ..errors import unknown
from .records import Records

SPLITS = ("train", "validation")
_VALIDATION_SHARE = 1 / 3
#: Shorter paragraphs (headings, phrases) may be alike by chance.
_PARAGRAPH = 60


def load(split: str) -> Records:
    """Each topic one document, by name. train is for calibration, validation (a third) for evaluation."""
    from pydoc_data.topics import topics

    if split not in SPLITS:
        raise unknown("python-docs split", split, SPLITS)
    version = platform.python_version()
    chosen = split_topics(topics)[split]
    return Records(f"python-docs {split} (Python {version})", [topics[t] for t in chosen], {"python": version})


def split_topics(topics: Mapping[str, str]) -> dict[str, list[str]]:
    """Sorted names of the topics of each split.

    Topics repeat each other (`compound` holds `for`, `if`, …), so those that share a paragraph stay together: nothing
    evaluated has been calibrated on. The groups come in the order of a hash; validation takes each that still fits
    into a third of the text.
    """
    groups = sorted(_groups(topics), key=lambda group: hashlib.sha256(group[0].encode()).digest())
    room = _VALIDATION_SHARE * sum(map(len, topics.values()))
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group in groups:
        length = sum(len(topics[name]) for name in group)
        splits["validation" if length <= room else "train"] += group
        room -= length if length <= room else 0
    return {split: sorted(names) for split, names in splits.items()}


def paragraphs(text: str) -> set[str]:
    """The paragraphs long enough to tell a text by."""
    return {p for part in text.split("\n\n") if len(p := part.strip()) >= _PARAGRAPH}


def _groups(topics: Mapping[str, str]) -> list[list[str]]:
    """Sorted names of the topics that share paragraphs, directly or through others."""
    groups: list[tuple[set[str], set[str]]] = []
    for name, text in topics.items():
        names, shared = {name}, paragraphs(text)
        apart = []
        for group in groups:
            if group[1] & shared:
                names, shared = names | group[0], shared | group[1]
            else:
                apart.append(group)
        groups = [*apart, (names, shared)]
    return [sorted(names) for names, _ in groups]
