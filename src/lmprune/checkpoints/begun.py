"""The folder of a run that is under way, beside what it will write: what it was asked for, and what is done of it.

It goes when the result is there, and stays where the run was killed or stopped, which then goes on with `--resume`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from ..errors import UserError, shown
from ..foreign import clipped, json_file
from .rooms import discard
from .writing import prove, written_aside

_SHORT = 200
LOCK, SETTINGS, INPUTS = "lock", "settings.json", "inputs.json"
#: what such a folder is called after what it writes, a training's and that of pruning at once
TRAINING, PRUNING = "training", "pruning"


class Begun:
    """path: `place_of` what the run writes. settings: all that its result depends on.

    resume: take up the run that is there. force: replace it. Nothing is written yet: see `begun`.
    Raises: UserError where there is nothing to resume, where the run there was asked for with other settings, and where
    there is a run that nobody said to resume or to replace.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool = False, force: bool = False):
        self.path, self.resume = path, resume
        self._settings = self.path / SETTINGS
        self._asked: dict[str, Any] = json.loads(json.dumps(settings))
        prove(self.path)
        if resume:
            self._check_same()
        elif self._settings.is_file() and not force:
            raise UserError(f"an unfinished run is in {self.path}; go on with --resume, or throw it away with --force")

    @property
    def can_go_on(self) -> bool:
        """Whether a resumed run would find more than its settings."""
        return False

    def _check_same(self) -> None:
        if not self._settings.is_file():
            raise UserError(f"there is no run to resume in {self.path}; leave out --resume")
        now, before = self._asked, json_file(self._settings, "damaged", "throw the run away with --force")
        differing = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
        if differing:
            told = ", ".join(
                f"{n.replace('_', '-')} (was {_said(before.get(n))}, is now {_said(now.get(n))})" for n in differing
            )
            raise UserError(clipped(f"the run in {self.path} had other settings: {told}; resume it with its own"))

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The folder is there and nobody else's for the length of a `with` block, and stays after it.

        But an error that leaves nothing in it to go on from takes it along.
        Raises: UserError where it can't be written, or another run is at work in it.
        """
        process = PartialState()
        with self._locked() if process.is_main_process else nullcontext():
            if process.is_main_process and not self.resume:
                self._clear()
                self._write(self._settings, json.dumps(self._asked, indent=1))
            process.wait_for_everyone()
            try:
                yield
            except BaseException:
                if process.is_main_process and not self.can_go_on:
                    self.remove()
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The system's own lock, so that it goes with a process that is killed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"a run is at work in {self.path}; let it end, stop it, or choose another --out") from None
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def check_there(self) -> None:
        """Raises: UserError where somebody has removed the folder since it was begun."""
        if not (self.path / LOCK).is_file():
            raise UserError(f"{self.path} was removed while the run was at work in it; begin it again")

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """A run goes on with what it began with. inputs: what each of them is known by.

        Raises: UserError where one is another than before, though its name and the settings are the same.
        """
        file = self.path / INPUTS
        if not (self.resume and file.is_file()):
            self._write(file, json.dumps(inputs, indent=1))
            return
        before = json_file(file, "damaged", "throw the run away with --force")
        if changed := [name for name, value in inputs.items() if before.get(name) != value]:
            raise UserError(
                f"the run in {self.path} began with another {changed[0]}, which has changed since under the same name; "
                "put it back, or begin again with --force"
            )

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()

    def finish(self) -> None:
        """The run's checkpoint is written: the folder goes, and every process waits for that."""
        process = PartialState()
        if process.is_main_process:
            self.remove()
        process.wait_for_everyone()

    def remove(self) -> None:
        discard(self.path)

    @staticmethod
    def _write(file: Path, text: str) -> None:
        with written_aside(file, folder=False) as aside:
            aside.write_text(text, encoding="utf-8")


def _said(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < _SHORT else shown(value)


def forget(out: Path, *kinds: str) -> None:
    """Remove the folders of runs whose result is there; not while somebody works in one."""
    for run in (place_of(out, kind) for kind in kinds):
        if (run / SETTINGS).is_file():
            with suppress(Timeout, OSError), FileLock(run / LOCK, timeout=0):
                discard(run)


def unfinished(out: Path) -> bool:
    """Whether a run that would write `out` was stopped, and can be resumed."""
    return any((place_of(out, kind) / SETTINGS).is_file() for kind in (TRAINING, PRUNING))


def place_of(out: Path, kind: str) -> Path:
    """kind: TRAINING or PRUNING."""
    out = out.expanduser().resolve()
    return out.with_name(f"{out.name}.{kind}")
