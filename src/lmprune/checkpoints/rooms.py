"""Folders to work in, that go with whoever works there: at once where that can clean up, else when the next one comes.

A room has a name that nobody else has, and a file in it that its process has locked. The system takes the lock away
from a process that is killed: a room that can be locked is nobody's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PREFIX = ".lmprune-"
_NAME = re.compile(rf"{re.escape(PREFIX)}(at-)?[0-9a-f]{{16}}")
LOCK = "lock"
#: in a room, what was taken away from where its lock says, to make way for something else
OLD = "old"
#: seconds that a room may be there without a lock: it is just being made
_YOUNG = 5
#: characters that are read of a lock: of a path
_LONGEST = 8192
#: seconds to wait before a claim is tried, and tried again: somebody who sweeps may hold it for a moment
_WAITS = (0.0, 0.02, 0.1)
#: where this process has looked for rooms that are nobody's: once is enough, a training makes many
_swept: set[Path] = set()


@contextmanager
def room(parent: Path, purpose: str = "") -> Iterator[Path]:
    """A folder in `parent` for the length of a `with` block. Raises: OSError.

    purpose: where what is made there will go, for whoever finds the room later.
    """
    parent.mkdir(parents=True, exist_ok=True)
    if parent not in _swept:
        _swept.add(parent)
        sweep(parent)
    found = parent / f"{PREFIX}{secrets.token_hex(8)}"
    try:
        found.mkdir(mode=0o700)
        with (found / "new-lock").open("w", encoding="utf-8", errors="surrogateescape") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # before it has its name: so nobody ever finds it open
            lock.write(purpose)
            lock.flush()
            (found / "new-lock").rename(found / LOCK)
            yield found
    finally:
        _certainly(_empty, found)


@contextmanager
def claim(place: Path) -> Iterator[bool]:
    """Whether what will be written to a place is nobody else's for the length of a `with` block. Raises: OSError."""
    beside = next(folder for folder in place.parents if folder.is_dir())  # no other is made before there is a result
    found = beside / f"{PREFIX}at-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}"
    lock = None
    try:
        lock = next(filter(None, (_locked(found, wait) for wait in _WAITS)), None)
        yield lock is not None
    finally:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that we began may have it, too
            lock.close()
        _certainly(_give_back, found)


def _give_back(found: Path) -> None:
    """A claim's room, unless somebody else has it by now."""
    _is_nobodys(found)
    with suppress(OSError):
        found.rmdir()  # empty where we were interrupted


def _locked(found: Path, wait: float) -> IO[str] | None:
    """The file of a claim's room, where it is ours; None where it is another's, or was removed in between."""
    time.sleep(wait)
    found.mkdir(mode=0o700, exist_ok=True)
    if found.is_symlink():  # to somebody's folder
        raise OSError(errno.ELOOP, f"{found} is a link", str(found))
    try:
        lock = (found / LOCK).open("a", encoding="utf-8")
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), (found / LOCK).stat()):
            return lock
    lock.close()
    return None


def sweep(parent: Path) -> list[Path]:
    """Remove the rooms in a folder that are nobody's, and return them. What had to make way goes back first."""
    found = []
    with suppress(OSError):
        for place in sorted(parent.glob(f"{PREFIX}*")):
            if _NAME.fullmatch(place.name) and place.is_dir() and _is_nobodys(place):
                found.append(place)
    return found


def _is_nobodys(place: Path) -> bool:
    """Whether it was, and is gone now. What its lock says may be anybody's word: what comes back is in this folder."""
    lock_file = place / LOCK
    if place.is_symlink() or lock_file.is_symlink() or (lock_file.exists() and not lock_file.is_file()):
        return False  # none of ours
    try:
        with lock_file.open("r+", encoding="utf-8", errors="surrogateescape") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            home, old = place.parent / Path(lock.read(_LONGEST)).name, place / OLD
            if home != place.parent and old.exists() and not os.path.lexists(home):
                with suppress(ValueError):  # a name that the system can't spell, and so none of ours
                    old.rename(home)
            _empty(place)
    except FileNotFoundError:
        with suppress(OSError):
            if time.time() - place.stat().st_mtime < _YOUNG:
                return False
            remove(place)
    except OSError:  # locked: somebody works there; or it is another user's
        return False
    return not place.exists()


def _empty(place: Path) -> None:
    """The lock goes last: who finds what a killed process did not come to remove sees that it is nobody's."""
    with suppress(OSError):
        for entry in place.iterdir():
            if entry.name != LOCK:
                remove(entry)
    remove(place)


def _certainly(work: Callable[[Path], object], place: Path) -> None:
    """Though somebody be impatient, and interrupt it once."""
    try:
        work(place)
    except KeyboardInterrupt:
        work(place)
        raise


def remove(path: Path) -> None:
    """A file, a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def discard(folder: Path) -> None:
    """Remove a folder so that nobody ever finds half of it: it goes into a room first."""
    try:
        with room(folder.parent) as found:
            folder.rename(found / "gone")
    except OSError:  # there is none, or no room for a room
        remove(folder)


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A room among the system's temporary files, as large as a model perhaps. purpose: for people who look there."""
    with room(Path(tempfile.gettempdir())) as found:
        inside = found / purpose
        inside.mkdir()
        yield inside
