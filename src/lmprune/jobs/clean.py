"""What `lmprune clean` does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.rooms import sweep
from ..errors import UserError


def clean(folders: Sequence[Path] | None) -> dict[str, Any]:
    """Remove the rooms that are nobody's: in these folders, or here and among temporary files. Raises: UserError."""
    places = list(folders) if folders else [Path.cwd(), Path(tempfile.gettempdir())]
    for place in places:
        if not place.is_dir():
            raise UserError(f"there is no folder {place}")
    return {"removed": [str(path) for place in places for path in sweep(place)]}
