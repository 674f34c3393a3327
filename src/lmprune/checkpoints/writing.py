"""Write a file or a folder completely, or not at all: it is made in a room of its own (`rooms`) beside its place."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UserError
from .rooms import LOCK, OLD, claim, room

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2  # of Linux's renameat2
#: what says that this file system, or this system, can't
_CANT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}

Identity = tuple[int, int]


@dataclass(frozen=True)
class Destination:
    """Where something will be written. was: what was there when it was looked at, which may be replaced; None: nothing.

    amiss: what of that, by now, forbids it to be replaced; None where all is well.
    """

    path: Path
    was: Identity | None
    amiss: Callable[[Path], str | None] = lambda _: None

    @classmethod
    def of(cls, out: Path | str, amiss: Callable[[Path], str | None] = lambda _: None) -> Destination:
        path = resolved(Path(out))
        return cls(path, _identity(path), amiss)


@contextmanager
def written_aside(out: Destination | Path, *, folder: bool = True) -> Iterator[Path]:
    """A path that takes the place of `out` when the block ends well, and vanishes when it does not.

    out: a Destination, or the path of what may be replaced as it is now; a file by that path alone is always replaced.
    folder: whether it is a fresh folder; else a file that the block has to make.
    Raises: UserError for what the disk refuses; `out` is then as it was. Where something else is there by then it is
    left alone, and what was made is kept beside it.
    """
    place = out if isinstance(out, Destination) else Destination.of(out)
    ours = not (folder or isinstance(out, Destination))  # a file of a folder that is ours, and nobody else's
    try:
        with room(place.path.parent, str(place.path)) as aside:
            new = aside / ("new" if folder else f"new{place.path.suffix}")
            if folder:
                new.mkdir()
            yield new
            if not folder and new.is_file():  # safetensors lets only the owner read what it writes
                new.chmod((aside / LOCK).stat().st_mode)
            if ours:
                new.replace(place.path)
            else:
                _put_there(new, place, aside)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"can't write {place.path}: {reason}; nothing was left there") from error


def _put_there(new: Path, place: Destination, aside: Path) -> None:
    """What can't be there is kept beside it. Raises: UserError then."""
    try:
        why = _takes_place(new, place, aside)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        why = "something is mounted there"
    if why is None:
        return
    beside = _free(place.path)
    while not _moved(new, beside):
        beside = _free(place.path)
    raise UserError(f"{place.path} is left alone: {why}; what was made is in {beside}")


def _takes_place(new: Path, place: Destination, aside: Path) -> str | None:
    """There is no moment at which neither the old nor the new is there, where the system can exchange two names.

    Returns: why it must not be there; None where it is.
    """
    if _moved(new, place.path):
        return None
    why = "it was not there before" if _identity(place.path) != place.was else place.amiss(place.path)
    if why is None and _exchanged(new, place.path):
        if _identity(new) == place.was:
            return None
        _exchanged(new, place.path)  # somebody was quicker than us
        why = "it was not there before"
    elif why is None:
        if new.is_dir():
            place.path.rename(aside / OLD)  # from where it comes back if we are killed now
        new.rename(place.path)
    return why


def _moved(new: Path, out: Path) -> bool:
    """Whether `out` was free, or an empty folder, and is the new one now."""
    try:
        if new.is_dir():
            new.rename(out)
        elif not _renamed(new, out, _NOREPLACE):
            os.link(new, out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            return False
        raise
    return True


def _exchanged(one: Path, other: Path) -> bool:
    return _renamed(one, other, _EXCHANGE)


def _renamed(one: Path, other: Path, flags: int) -> bool:
    """Rename as Linux can. Returns False where it can't; raises OSError as `rename` does."""
    if (rename := getattr(_libc, "renameat2", None)) is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags) == 0:
        return True
    if (number := ctypes.get_errno()) in _CANT:
        return False
    raise OSError(number, os.strerror(number), str(other))


_libc = ctypes.CDLL(None, use_errno=True)


def _free(path: Path) -> Path:
    number = 2
    while os.path.lexists(path.with_name(f"{path.name}-{number}")):
        number += 1
    return path.with_name(f"{path.name}-{number}")


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def claimed(out: Destination | Path) -> Iterator[None]:
    """For the length of a `with` block no other command works for that place. Raises: UserError where one does.

    So two of them don't find out at the end that one was for nothing.
    """
    place = out.path if isinstance(out, Destination) else resolved(out)
    with ExitStack() as held:
        try:
            ours = held.enter_context(claim(place))
        except OSError as error:
            raise UserError(f"can't write {place}: {error.strerror}; choose another --out") from None
        if not ours:
            raise UserError(f"another command is at work on {place}; let it end, stop it, or choose another --out")
        yield


def put(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, by name, into a folder that is there."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def resolved(out: Path) -> Path:
    """Raises: UserError for a name that leads nowhere."""
    try:
        return out.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, half a character
        why = getattr(error, "strerror", None) or error
        raise UserError(f"can't write {out}: {why}; choose another --out") from None


def prove(out: Path, option: str = "--out") -> None:
    """Whether a file or a folder of that name can be made there, tried before long work. Raises: UserError."""
    out = resolved(out)
    try:
        if out.exists():
            beside, name = out.parent, None
        else:
            beside = next(place for place in out.parents if place.exists())
            name = out.relative_to(beside)
        if not beside.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{beside} is no folder")
        if not os.access(beside, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{beside} is not writable")
        with room(beside) as tried:
            if name is not None:
                (tried / name).mkdir(parents=True)
    except (OSError, ValueError) as error:  # the second: a name that the system can't spell
        reason = getattr(error, "strerror", None) or "the system can't spell that name"
        raise UserError(f"can't write {out}: {reason}; choose another {option}") from None


def check_folder(out: Path, what: str, amiss: Callable[[Path], str | None], *, force: bool) -> Destination:
    """Refuse an output folder before long work: one that is taken, or, with `force`, that `--force` must not replace.

    what: what commands write there, with its article. amiss: what tells that a folder is no such thing, or holds more.
    Raises: UserError for a file, a mount point, what is or holds the home or the working directory, what can't be
    written to, a folder that holds something (without `force`), and, with `force`, for anything that is not `what`.
    """
    out = resolved(out)
    if os.path.ismount(out):  # no folder can take its place
        raise UserError(f"{out} is a mount point, which can't be replaced; {_inside(out)}")
    prove(out)
    if out.exists() and any(place.is_relative_to(out) for place in (Path.home().resolve(), Path.cwd().resolve())):
        raise UserError(f"{out} is or holds the home or the working directory, which is never replaced; {_inside(out)}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; expected a folder that is empty or does not exist yet: choose another --out")
    if not out.exists() or not any(out.iterdir()):
        return Destination(out, None)
    if not force:
        kind = what.split()[-1]
        raise UserError(f"{out} is not empty; choose another --out, or replace the {kind} there with --force")
    if why := amiss(out):
        raise UserError(f"{out} is not {what} ({why}), and --force replaces nothing else; choose another --out")
    return Destination(out, _identity(out), amiss)


def _inside(out: Path) -> str:
    return f"choose a folder inside it: --out {out / 'NAME'}"


def check_file(
    out: Path, *, force: bool, option: str = "--out", amiss: Callable[[Path], str | None] = lambda _: None
) -> Destination:
    """The same of a file. amiss: what a file there is, where `force` must not replace it. Raises: UserError."""
    out = resolved(out)
    if os.path.ismount(out):
        raise UserError(f"{out} is a mount point, which can't be replaced; choose another {option}")
    prove(out)
    if out.is_dir() or (out.exists() and not force):
        raise UserError(f"{out} exists; choose another {option}, or replace the file there with --force")
    if out.exists() and (why := amiss(out)):
        raise UserError(f"{out} is {why}, and --force replaces nothing else; choose another {option}")
    return Destination(out, _identity(out), amiss)


def begins(with_: str, kind: str) -> Callable[[Path], str | None]:
    """For `check_file`: a file of a kind is known by what it begins with."""

    def amiss(file: Path) -> str | None:
        with file.open("rb") as content:
            return None if content.read(len(with_)) == with_.encode() else f"not {kind}"

    return amiss


def check_not_read(out: Path, *sources: str | None) -> None:
    """Raises: UserError where what a run reads lies in `out`, is it, or has links that lead there: --force would
    replace it."""
    out = resolved(out)
    for source in filter(None, sources):
        place = resolved(Path(source))
        with suppress(OSError):
            if place.exists() and place.is_relative_to(out):
                raise UserError(f"{out} holds {source}, which this run reads; choose another --out")
            if place.is_dir() and any(Path(os.path.realpath(entry)).is_relative_to(out) for entry in place.iterdir()):
                raise UserError(f"{out} holds files of {source}, which this run reads; choose another --out")
