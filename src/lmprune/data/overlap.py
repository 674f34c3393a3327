"""Whether a text is one that a model has been fitted to: what is measured there says little of other texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from . import TextData

#: what two readings of one text have in common, beside a file; texts without such a place are known by their digest
#: alone
_PLACES = (("hub_id", "config"), ("python", "source"))
#: what a division of a file depends on
_DIVISIONS = ("holdout", "field", "chat_template")


def read_before(provenance: Mapping[str, Any], fitted: Mapping[str, Any]) -> str | None:
    """What of `fitted`, a plan's provenance, read this text or a part of its split: `calibration`, `training`, …

    provenance: of the text that is about to be read, as `data.load` gives it. A plan that this one came from counts.
    """
    for name, entry in fitted.items():
        if not isinstance(entry, Mapping):
            continue
        if not _is_text(entry):
            if (found := read_before(provenance, entry)) is not None:
                return found
        elif same_text(provenance, entry):
            return name
    return None


def _is_text(entry: Mapping[str, Any]) -> bool:
    return "sha256" in entry and "split" in entry


def same_text(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal digests; or the same split of one source, of which one may have read more than the other; or of a mix a
    part."""
    for text, rest in ((one, other), (other, one)):
        if parts := text.get("parts"):
            return any(same_text(part, rest) for part in parts.values())
    if one["sha256"] == other["sha256"]:
        return True
    place = _place(one)
    if place is None or place != _place(other):
        return False
    divided = "holdout" in one or "holdout" in other
    if divided and any(one.get(how) != other.get(how) for how in _DIVISIONS):
        return True  # two different divisions overlap, and a whole file holds its parts
    return one.get("split") == other.get("split")


def in_common(text: Mapping[str, Any], fitted: Mapping[str, Any]) -> str | None:
    """The source, of a mix the first of its parts, that `fitted` read of this text too."""
    parts = text.get("parts") or {text["source"]: text}
    return next((name for name, part in parts.items() if same_text(part, fitted)), None)


def check_held_out(text: TextData, fitted: TextData, why: str) -> None:
    """Raises: UserError where a model is fitted to the text, or to a part of it. why: it had to be held out."""
    if (name := in_common(text.provenance, fitted.provenance)) is not None:
        raise UserError(f"{name} has no validation split, {why}; keep a share of it with --holdout 0.1")


def _place(text: Mapping[str, Any]) -> tuple[Any, ...] | None:
    if "file" in text:
        return (_one_path(text["file"]),)
    return next((tuple(map(text.get, keys)) for keys in _PLACES if keys[0] in text), None)


def _one_path(file: str) -> str:
    """Of the many that a file has; what can be none, in a plan of somebody's, as it is."""
    try:
        return os.path.realpath(file)
    except ValueError:
        return file


def warning(read: str, name: str) -> str:
    return (
        f"WARNING: {name} is what this model was fitted to ({read}): what is measured there flatters it; "
        "evaluate on other text, or fit with --holdout 0.1 and evaluate with the same"
    )
