"""What a saved state is made of, to the bit: written when the disk has all of it, and looked at before it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..checkpoints.sealed import to_disk
from ..errors import UserError
from ..foreign import json_file

#: a state without it was never whole
MARK = "lmprune_complete"


def seal(state: Path) -> None:
    """Declare a state whole: what a power cut leaves of it later is either this, or no state."""
    files = {str(file.relative_to(state)): file for file in sorted(state.rglob("*")) if file.is_file()}
    for file in files.values():
        to_disk(file)
    told = {name: {"bytes": file.stat().st_size, "sha256": digest_of(file)} for name, file in files.items()}
    aside = state / f"{MARK}.new"
    aside.write_text(json.dumps(told, indent=1), encoding="utf-8")
    to_disk(aside)
    aside.rename(state / MARK)
    to_disk(state)


def damage(state: Path) -> str | None:
    """What of a state is not as it was sealed; None where all is, or where an earlier version said nothing of it."""
    if not (state / MARK).stat().st_size:
        return None
    try:
        told = json_file(state / MARK, "damaged")
        for name, about in told.items():
            file = state / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != about["bytes"] or digest_of(file) != about["sha256"]:
                return f"{name} has changed"
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return f"{MARK} can't be read"
    return None


def digest_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
