"""The folder of a run that is under way, beside what it will write: what it was asked for, and what is done of it.

It goes when the result is there, and stays where the run was killed or stopped, which then goes on with `--resume`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from ..errors import UserError, shown
from ..foreign import clipped, json_file
from .rooms import PREFIX, discard
from .rooms import remove as remove_all
from .writing import prove, resolved, written_aside

_SHORT = 200
LOCK, SETTINGS, INPUTS = "lock", "settings.json", "inputs.json"
#: what runs keep in their folder, beside the walks of a journal; all else is somebody's own
_KEPT = re.compile(
    rf"{LOCK}|settings\.json|inputs\.json|training_log\.jsonl|best\.safetensors|steps|checkpoint-\d+|cut|begun|levels|blocks"
    rf"|{re.escape(PREFIX)}.*"
)
_OF_A_WALK = frozenset({"found", "states"})
#: what such a folder is called after what it writes, a training's and that of pruning at once
TRAINING, PRUNING = "training", "pruning"


class Begun:
    """path: `place_of` what the run writes. settings: all that its result depends on.

    resume: take up the run that is there. force: replace it. Nothing is written yet: see `begun`.
    Raises: UserError where there is nothing to resume, where the run there was asked for with other settings, where
    there is a run that nobody said to resume or to replace, and where the folder holds what is no run's.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool = False, force: bool = False):
        self.path, self.resume = path, resume
        self._settings = self.path / SETTINGS
        self._asked: dict[str, Any] = json.loads(json.dumps(settings))
        prove(self.path)
        if name := _strange(self.path):
            raise UserError(
                f"{self.path}, where the run would keep its state, holds {name}, which is none of a run's; "
                "move it, or choose another --out"
            )
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
        _empty(self.path, but=LOCK)

    def finish(self) -> None:
        """The run's checkpoint is written: the folder goes, and every process waits for that."""
        process = PartialState()
        if process.is_main_process:
            self.remove()
        process.wait_for_everyone()

    def remove(self) -> None:
        _discard(self.path)

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
                _discard(run)


def _strange(run: Path) -> str | None:
    """What in a run's folder is none of a run's."""
    try:
        entries = sorted(run.iterdir())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"can't write {run}: {error.strerror}; choose another --out") from None
    return next((entry.name for entry in entries if not _is_kept(entry)), None)


def _is_kept(entry: Path) -> bool:
    if _KEPT.fullmatch(entry.name):
        return True
    return entry.is_dir() and not entry.is_symlink() and {each.name for each in entry.iterdir()} <= _OF_A_WALK


def _empty(run: Path, but: str = "") -> None:
    """Remove what is a run's, its settings last: what is left of it meanwhile is still known as one."""
    entries = [entry for entry in run.iterdir() if entry.name != but and _is_kept(entry)]
    for entry in sorted(entries, key=lambda entry: entry.name == SETTINGS):
        remove_all(entry)


def _discard(run: Path) -> None:
    """A run's folder, but for what somebody has put there meanwhile."""
    if _strange(run):
        _empty(run)
    else:
        discard(run)


def unfinished(out: Path) -> bool:
    """Whether a run that would write `out` was stopped, and can be resumed."""
    return any((place_of(out, kind) / SETTINGS).is_file() for kind in (TRAINING, PRUNING))


def place_of(out: Path, kind: str) -> Path:
    """kind: TRAINING or PRUNING."""
    out = resolved(out)
    return out.with_name(f"{out.name}.{kind}")
