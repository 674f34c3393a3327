"""Write a file or a folder completely, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UserError


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


def put(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, by name, into a folder that is there."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def check_folder(out: Path, what: str, is_one: Callable[[Path], bool], *, force: bool) -> None:
    """Refuse an output folder before long work: one that is taken, or, with `force`, that `--force` must not replace.

    what: what commands write there, with its article. is_one: whether a folder is such a thing, and nothing else.
    Raises: UserError for a file, what can't be written to, a folder that holds something (without `force`), and, with
    `force`, for anything that is not `what`, or holds the home or the working directory.
    """
    out = out.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; expected a folder that is empty or does not exist yet")
    beside = next((place for place in out.parents if place.exists()), out)
    if not beside.is_dir() or not os.access(beside, os.W_OK | os.X_OK):
        why = "is not writable" if beside.is_dir() else "is no folder"
        raise UserError(f"can't write {out}: {beside} {why}; choose another --out")
    if not out.exists() or not any(out.iterdir()):
        return
    if not force:
        kind = what.split()[-1]
        raise UserError(f"{out} is not empty; choose another --out, or replace the {kind} there with --force")
    if any(place.is_relative_to(out) for place in (Path.home().resolve(), Path.cwd().resolve())):
        raise UserError(f"{out} holds the home or the working directory, which --force does not replace")
    if not is_one(out):
        raise UserError(f"{out} is not {what}, and --force replaces nothing else; choose another --out")


def check_not_read(out: Path, *sources: str | None) -> None:
    """Raises: UserError where what a run reads lies in `out`, or is it: --force would replace it."""
    out = out.expanduser().resolve()
    for source in filter(None, sources):
        place = Path(source).expanduser().resolve()
        if place.exists() and place.is_relative_to(out):
            raise UserError(f"{out} holds {source}, which this run reads; choose another --out")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
