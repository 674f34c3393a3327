"""The source of CPython's own library, which is on every machine: real code without a network."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from pathlib import Path

from ..errors import UserError, unknown
from .records import Records

SPLITS = ("train", "validation")
_VALIDATION_SHARE = 1 / 4
#: shorter ones are little more than imports
_SHORTEST = 500
#: what is not part of the library proper, or not there everywhere
_APART = frozenset(("test", "tests", "idlelib", "idle_test", "lib2to3", "pydoc_data", "site-packages", "dist-packages"))


def load(split: str) -> Records:
    """Each file one document. A top-level module, with all that is in its folder, is in one split."""
    if split not in SPLITS:
        raise unknown("python-code split", split, SPLITS)
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not _APART & set(path.relative_to(root).parts)]
    held_out: dict[str, bool] = {}  # what two modules have alike (Debian's build settings) is in one split
    for path in paths:
        held_out.setdefault(path.read_text(encoding="utf-8", errors="replace"), _is_held_out(path, root))
    held = split == "validation"
    texts = [text for text, out in held_out.items() if out == held and len(text) >= _SHORTEST]
    if not texts:
        raise UserError(f"no source of Python's library in {root}; name another source than python-code")
    version = platform.python_version()
    return Records(f"python-code {split} (Python {version})", texts, {"python": version, "library": "source"})


def _is_held_out(path: Path, root: Path) -> bool:
    module = path.relative_to(root).parts[0].removesuffix(".py")
    return hashlib.sha256(module.encode()).digest()[0] < _VALIDATION_SHARE * 256
