"""Write a file or a folder completely, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import UserError


@contextmanager
def written_aside(out: Path, *, folder: bool = True) -> Iterator[Path]:
    """A path beside `out` that takes its place when the block ends well, and vanishes when it does not.

    folder: whether it is a fresh folder; else a file that the block has to make.
    Raises: UserError for what the disk refuses; `out` is then as it was.
    """
    partial, replaced = (out.with_name(f".{out.name}.{what}-{os.getpid()}") for what in ("partial", "replaced"))
    try:
        (partial if folder else partial.parent).mkdir(parents=True, exist_ok=not folder)
        yield partial
        if not out.exists():
            partial.rename(out)
            return
        out.rename(replaced)
        try:
            partial.rename(out)
        except BaseException:
            replaced.rename(out)
            raise
        _remove(replaced)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"can't write {out}: {reason}; nothing was left there") from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
