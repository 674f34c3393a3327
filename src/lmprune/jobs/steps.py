"""A folder of commands that were carried out one after the other, a line for each: `lmprune run` and `lmprune sweep` go
on in theirs where they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..checkpoints.begun import unfinished
from ..checkpoints.rooms import PREFIX
from ..checkpoints.writing import written_aside
from ..errors import SaidBefore, UserError
from ..foreign import json_of, misfit, reading, text_of
from ..progress import Teller
from ..study.children import end_with

#: exit codes of commands that ended in a sentence
_SENTENCES = (2, 130)


@dataclass(frozen=True)
class Steps:
    """What is done in a folder. records: its file, a line with `name`, `command` and `record` for each. what: whose
    folder it is, such as a "run". cure: how to write somewhere else."""

    records: Path
    what: str
    cure: str

    @property
    def folder(self) -> Path:
        return self.records.parent

    def check(self, mark: str) -> None:
        """mark: a file that tells such a folder; one that was killed when it began may not have it yet.

        Raises: UserError where the folder is something else.
        """
        place = self.folder
        if not place.exists():
            return
        names = {entry.name for entry in place.iterdir()} if place.is_dir() else {place.name}
        begun = {name for name in names if name.startswith(PREFIX)} | {self.records.name}
        if not (place.is_dir() and ((place / mark).is_file() or names <= begun)):
            raise UserError(f"{place} is there already, and no {self.what}'s folder; {self.cure}")

    def read(self) -> list[dict[str, Any]]:
        """Raises: UserError where a line is no step."""
        if not self.records.is_file():
            return []
        with reading(f"{self.records} is damaged", "start again with --force"):
            found = [json_of(line) for line in text_of(self.records).splitlines()]
            if misfit(found, [{"name": str, "command": [str], "record": dict}]) or not all(
                None not in (step.get("name"), step.get("command"), step.get("record")) for step in found
            ):
                raise ValueError("a line of it is no step")
        return found

    def write(self, done: Iterable[Mapping[str, Any]]) -> None:
        with written_aside(self.records, folder=False) as aside:
            aside.write_text("".join(json.dumps(each) + "\n" for each in done), encoding="utf-8")

    def check_same(self, before: Mapping[str, Any], command: Sequence[str]) -> None:
        """Raises: UserError where a step was asked for otherwise when it was done."""
        if before["command"] != list(command):
            raise UserError(
                f"{self.folder} holds a {self.what} in which {before['name']} was asked for with "
                f"{_other(before['command'], command)}; {self.cure}, or start again with --force"
            )

    def tell(self, terminal: Teller, done: Sequence[str], number: int) -> None:
        """What of so many steps was done before."""
        if len(done) == number:
            terminal.note(f"that {self.what} has ended, all of it in {self.folder}: there is nothing to resume")
        elif done:
            terminal.note(f"{len(done)} of {number} steps were done before: {', '.join(done)}")

    def check_begun(self, resume: bool) -> None:
        """Raises: UserError where somebody wants to go on with what is not there."""
        if resume and not self.records.is_file():
            raise UserError(f"there is no {self.what} to resume in {self.folder}; leave out --resume")


def _other(before: Sequence[str], now: Sequence[str]) -> str:
    """The options that one command has and another has not."""
    theirs = {f"{a} {b}" for a, b in pairwise(now)}
    found = [said for a, b in pairwise(before) if a.startswith("--") and (said := f"{a} {b}") not in theirs]
    return ", ".join(found) or "fewer options"


def going_on(out: Path, *, force: bool, ours: bool) -> list[str]:
    """What a command that writes `out` has to be told where it was begun before: a training goes on, and what lies
    there makes room if it is ours."""
    if unfinished(out) and not force:
        return ["--resume"]
    return ["--force"] if force or ours else []


def record_of(words: Sequence[str]) -> tuple[int, dict[str, Any] | None]:
    """The exit code of a command in a process of its own, and its record where that is 0; what it says on the way is
    seen as it says it."""
    line = [sys.executable, "-m", "lmprune", *words, "--json"]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, preexec_fn=partial(end_with, os.getpid()))
    try:
        out, _ = child.communicate()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    return child.returncode, None if child.returncode else json.loads(out)


def failed(code: int, name: str, then: str) -> UserError:
    """What is to be said of a command that ended without a record. name: as it begins the sentence; then: how to go on.

    One that refused something, or was interrupted, has said so itself; one that was killed could not.
    """
    if code < 0:
        return UserError(f"{name} was killed by {signal.Signals(-code).name}; was there memory? {then}")
    told = f"{name} ended with exit code {code}, and said why above; {then}"
    return SaidBefore(told, code) if code in _SENTENCES else UserError(told)
