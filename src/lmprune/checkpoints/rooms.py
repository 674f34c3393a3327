"""Folders to work in, that go with whoever works there: at once where that can clean up, else when the next one comes.

A room has a name that nobody else has, and a file in it that its process has locked. The system takes the lock away
from a process that is killed: a room that can be locked is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".lmprune-"
LOCK = "lock"
#: in a room, what was taken away from where its lock says, to make way for something else
OLD = "old"
#: seconds that a room may be there without a lock: it is just being made
_YOUNG = 60


@contextmanager
def room(parent: Path, purpose: str = "") -> Iterator[Path]:
    """A folder in `parent` for the length of a `with` block. Raises: OSError.

    purpose: where what is made there will go, for whoever finds the room later.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    found = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with (found / "new-lock").open("w", encoding="utf-8", errors="surrogateescape") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # before it has its name: so nobody ever finds it open
            lock.write(purpose)
            lock.flush()
            (found / "new-lock").rename(found / LOCK)
            yield found
    finally:
        remove(found)


def sweep(parent: Path) -> list[Path]:
    """Remove the rooms in a folder that are nobody's, and return them. What had to make way goes back first."""
    found = []
    with suppress(OSError):
        for place in sorted(parent.glob(f"{PREFIX}*")):
            if place.is_dir() and not place.is_symlink() and _is_nobodys(place):
                found.append(place)
    return found


def _is_nobodys(place: Path) -> bool:
    """Whether it was, and is gone now."""
    try:
        with (place / LOCK).open("r+", encoding="utf-8", errors="surrogateescape") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            purpose, old = lock.read(), place / OLD
            if purpose and old.exists() and not os.path.lexists(purpose):
                old.rename(purpose)
            remove(place)
    except FileNotFoundError:
        with suppress(OSError):
            if time.time() - place.stat().st_mtime < _YOUNG:
                return False
            remove(place)
    except OSError:  # locked: somebody works there; or it is another user's
        return False
    return not place.exists()


def remove(path: Path) -> None:
    """A file, a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A room among the system's temporary files, as large as a model perhaps. purpose: for people who look there."""
    with room(Path(tempfile.gettempdir())) as found:
        inside = found / purpose
        inside.mkdir()
        yield inside
