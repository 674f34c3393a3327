"""Commands where something is short, or changes under them: a row for each kind.

What is expected: one sentence and exit code 2, what was at --out before still there; or the same result as undisturbed.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torture_commands import COMMANDS, FORCED, OF_SEVERAL, a_while_later, clear, result, rooms_in
from torture_forks import AS_ALWAYS, LOG, How, ended, forked, fresh, outlived

#: free kilobytes of a disk that is full
_LITTLE = 8


@dataclass(frozen=True)
class Trial:
    """A command about to be tried: its words, the folder, what it makes undisturbed, the seconds that it takes, and how
    many files it opens."""

    name: str
    words: tuple[str, ...]
    folder: Path
    whole: Mapping[str, bytes]
    seconds: float
    opened: int


#: carries a trial out: how the command ended, and what is wrong with that beyond what is seen of every trial
Shortage = Callable[[Trial], tuple[int, list[str]]]


def under(trial: Trial, how: How = AS_ALWAYS, *, begin: Callable[..., int] = forked) -> tuple[int, list[str]]:
    pid = begin(trial.words, trial.folder, how)
    code = ended(pid)
    return code, [f"orphan {found}" for found in outlived(pid)]


def limited(which: int, value: Callable[[], int]) -> How:
    return How(limit=lambda: resource.setrlimit(which, (value(), value())))


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _descriptors() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 1


# -- disks


@contextmanager
def disk(trial: Trial, free: int) -> Iterator[tuple[Trial, Path]]:
    """The trial with its output on a file system of its own, where its earlier result stands and so many kilobytes are
    free."""
    place = trial.folder / "disk"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", "size=200m", "tmpfs", str(place))
    try:
        for path in trial.folder.glob("out*"):
            shutil.copytree(path, place / path.name) if path.is_dir() else shutil.copy2(path, place / path.name)
        used = sum(-(-file.stat().st_size // 4096) * 4 + 4 for file in place.rglob("*"))
        _mount("-o", f"remount,size={used + free}k", str(place))
        words = tuple(f"disk/{word}" if word.startswith("out") else word for word in trial.words)
        yield replace(trial, words=words), place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def full(trial: Trial, share: float) -> tuple[int, list[str]]:
    """A disk that has room for a share of what is written."""
    needed = sum(len(content) for content in trial.whole.values()) // 1024
    with disk(trial, _LITTLE + int(share * needed)) as (there, place):
        before = result(place)
        code, faults = under(there)
        return code, faults + ([] if code == 0 else _amiss(trial, place, before))


def read_only(trial: Trial) -> tuple[int, list[str]]:
    with disk(trial, 100_000) as (there, place):
        before = result(place)
        _mount("-o", "remount,ro", str(place))
        code, faults = under(there)
        _mount("-o", "remount,rw", str(place))
        return code, faults + ([] if code == 0 else _amiss(trial, place, before, rooms=False))


def _amiss(trial: Trial, place: Path, before: Mapping[str, bytes], *, rooms: bool = True) -> list[str]:
    """rooms: whether they could be removed."""
    now = result(place)  # which may have a run's folder beside, that it can be gone on with
    lost = trial.name not in OF_SEVERAL and any(now.get(name) != content for name, content in before.items())
    return [*["what was there before is not"] * lost, *(f"left over: {name}" for name in rooms_in(place) if rooms)]


def temporary(trial: Trial) -> tuple[int, list[str]]:
    """Temporary files have no room."""
    place = trial.folder / "temporary"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={_LITTLE}k", "tmpfs", str(place))
    try:
        return under(trial, How(env={"TMPDIR": str(place)}))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


# -- others


def two_writers(trial: Trial) -> tuple[int, list[str]]:
    """One of them writes, the other hears of it before its work."""
    clear(trial.folder)
    words = COMMANDS[trial.name]
    first = forked(words, trial.folder)
    time.sleep(0.3 * trial.seconds)
    second = forked(words, trial.folder, How(beside=True))
    codes = ended(first), ended(second)
    faults = [f"orphan {found}" for pid in (first, second) for found in outlived(pid)]
    if 0 not in codes:
        faults.append(f"nobody wrote: {codes}")
    return max(codes), faults


def odd_name(trial: Trial, name: str) -> tuple[int, list[str]]:
    """Where it writes has a name that few have."""
    words = tuple(word.replace("out", name, 1) if word.startswith("out") else word for word in trial.words)
    code, faults = under(replace(trial, words=words))
    made = [path for path in trial.folder.iterdir() if path.name.startswith(name)]
    if code == 0 and not made:
        faults.append("it wrote somewhere else")
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return code, faults


def changed(trial: Trial, path: str, content: bytes | None) -> tuple[int, list[str]]:
    """An input is removed, or another, from one of the files on that the command opens."""
    file = trial.folder / path
    before = file.read_bytes()

    def change() -> None:
        aside = file.with_suffix(".aside")
        if content is None:
            file.unlink()
        else:
            aside.write_bytes(content)
            aside.rename(file)

    at = random.Random(f"{trial.name}:{path}:{content}").randrange(1, trial.opened + 1)
    try:
        return under(trial, How(meanwhile=(at, change)))
    finally:
        file.write_bytes(before)


def private(trial: Trial) -> tuple[int, list[str]]:
    """Nobody else reads what is written; what was there before stays as it was."""

    def files() -> dict[int, Path]:
        return {file.stat().st_ino: file for path in trial.folder.glob("out*") for file in (path, *path.rglob("*"))}

    before = files()
    code, faults = under(trial, How(limit=lambda: os.umask(0o077)))
    seen = [str(file) for number, file in files().items() if file.stat().st_mode & 0o077 and number not in before]
    return code, faults + [f"others may read {name}" for name in seen[:1] if trial.name in FORCED and code == 0]


#: a word in the name says to which commands alone it is done
SHORTAGES: Mapping[str, Shortage] = {
    "a full disk": partial(full, share=0),
    "half a disk": partial(full, share=0.5),
    "a disk that is read-only": read_only,
    "no room for temporary files": temporary,
    "files of 1 kB": partial(under, how=limited(resource.RLIMIT_FSIZE, lambda: 1_000)),
    "files of 20 kB": partial(under, how=limited(resource.RLIMIT_FSIZE, lambda: 20_000)),
    "2 more descriptors": partial(under, how=limited(resource.RLIMIT_NOFILE, lambda: _descriptors() + 2)),
    "8 more descriptors": partial(under, how=limited(resource.RLIMIT_NOFILE, lambda: _descriptors() + 8)),
    "10 MB more": partial(under, how=limited(resource.RLIMIT_AS, lambda: _memory() + 10 * 2**20)),
    "100 MB more": partial(under, how=limited(resource.RLIMIT_AS, lambda: _memory() + 100 * 2**20)),
    "700 MB, imports and all": partial(under, how=limited(resource.RLIMIT_AS, lambda: 700 * 2**20), begin=fresh),
    "no home": partial(under, how=How(env={"HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere/cache"})),
    "a cache that is a file": partial(under, how=How(env={"XDG_CACHE_HOME": "/etc/passwd", "HF_HOME": "/etc/passwd"})),
    "umask 077": private,
    "a full stdout": partial(under, how=How(stdout="/dev/full")),
    "two writers": two_writers,
    "a name of 200 letters": partial(odd_name, name="x" * 200),
    "a name of 250 letters": partial(odd_name, name="x" * 250),
    "a name in no alphabet": partial(odd_name, name="o\udc80\n \u202e$(x)"),
    "a name that is an option": partial(odd_name, name="-o"),
    "the text is removed": partial(changed, path="cats.txt", content=None),
    "the model is removed": partial(changed, path="m/model.safetensors", content=None),
    "the model is cut short": partial(changed, path="m/model.safetensors", content=b"\x08\0\0\0"),
    "the model's config is another": partial(changed, path="m/config.json", content=b"{}"),
}  # fmt: skip


def fits(name: str, shortage: str) -> bool:
    """Whether a shortage says anything of a command: where its words have no place for it, it does not."""
    words = COMMANDS[name]
    if "name" in shortage or "disk" in shortage:
        return any(word.startswith("out") for word in words)
    if "model" in shortage:
        return "m" in words
    return "cats.txt" in words if "text" in shortage else True


def tried(shortage: str, trial: Trial) -> dict[str, Any]:
    """One command in one shortage, where its earlier result stands; `faults` is empty where all is well."""
    name, folder, whole = trial.name, trial.folder, trial.whole
    _restore(folder, whole, name)
    if name not in FORCED and name != "report":
        clear(folder)
    before = result(folder)
    words = (*COMMANDS[name], "--force") if name in FORCED else COMMANDS[name]
    code, faults = SHORTAGES[shortage](replace(trial, words=words))
    said = (folder / LOG).read_text(errors="replace")
    if name in OF_SEVERAL:  # what was done of it is kept, and gone on with
        ended(forked(COMMANDS[name], folder))
        before = whole
    if differing := [n for n in {**before, **whole} if result(folder).get(n) not in (before.get(n), whole.get(n))]:
        faults.append(f"damaged: {differing[:3]}")
    if not _in_a_sentence(code, said, failing=name == "study"):
        faults.append(f"more than a sentence: exit code {code}: {said[-400:]}")
    if "MB" in shortage:  # without memory there may be none to clean up with
        a_while_later(folder)
        ended(forked(("clean", "."), folder))
    return {"ended": code, "faults": [*faults, *(f"left over: {room}" for room in rooms_in(folder))]}


def _restore(folder: Path, whole: Mapping[str, bytes], name: str) -> None:
    """The earlier result, if a trial has done away with it."""
    if result(folder) != whole:
        clear(folder)
        assert ended(forked(COMMANDS[name], folder)) == 0, (folder / LOG).read_text()


def _in_a_sentence(code: int, said: str, *, failing: bool) -> bool:
    """failing: whether exit code 1 says that a part of it failed, in its records."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    good: Sequence[int] = (0, 1) if failing else (0,)
    return "Traceback" not in said and ((code in good and not errors) or (code == 2 and len(errors) == 1))
