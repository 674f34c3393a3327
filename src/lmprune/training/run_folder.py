"""The folder of a training run that is under way: what it was asked for, its saved states, its log.

It stands beside the checkpoint that the run will write, and goes when that is written. A saved state counts only once
its last file, the mark, is there: a run that is killed while it saves goes on from the state before.
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

from ..checkpoints.rooms import discard
from ..checkpoints.writing import prove, written_aside
from ..errors import UserError, shown
from ..foreign import NUMBER, clipped, json_file, json_of, misfit, reading, text_of
from . import manifest

MARK = manifest.MARK
_SHORT, _DIGITS = 200, 16
LOCK, SETTINGS, INPUTS = "lock", "settings.json", "inputs.json"
#: a JSON object a line, in the run's folder and then in the checkpoint's
TRAINING_LOG = "training_log.jsonl"


class RunFolder:
    """out: where the run's checkpoint will be. settings: all that its result depends on.

    resume: take up the run that is there. force: replace it. Nothing is written yet: see `begun`.
    Raises: UserError where there is nothing to resume, where the run there was asked for with other settings, and where
    there is a run that nobody said to resume or to replace.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool = False, force: bool = False):
        self.path = place_of(out)
        self.log = self.path / TRAINING_LOG
        #: where a model that is pruned before it is trained waits for a resumed run
        self.cut = self.path / "cut"
        self.resume = resume
        #: sentences on saved states that were damaged, once `rewind` has looked
        self.notes: list[str] = []
        self._settings = self.path / SETTINGS
        self._asked: dict[str, Any] = json.loads(json.dumps(settings))
        prove(self.path)
        if resume:
            self._check_same()
        elif self._settings.is_file() and not force:
            raise UserError(f"an unfinished run is in {self.path}; go on with --resume, or throw it away with --force")

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

    @property
    def can_go_on(self) -> bool:
        """Whether a resumed run would find more than its settings."""
        return self.cut.exists() or self.newest_state() is not None

    def newest_state(self) -> Path | None:
        """The last complete saved state."""
        complete = {step_of(state): state for state in self._states() if (state / MARK).exists()}
        return complete[max(complete)] if complete else None

    def rewind(self) -> Path | None:
        """Forget what came after the newest complete state, all where there is none, and return that state.

        A state that is not, to the bit, what was saved is left out, which `notes` tell: the one before it is used.
        """
        self.drop_incomplete()
        while (state := self.newest_state()) is not None and (why := manifest.damage(state)):
            self.notes.append(f"the state after step {step_of(state)} is damaged ({why}), and the one before it used")
            shutil.rmtree(state, ignore_errors=True)
        if self.log.exists():
            done = step_of(state) if state else -1
            kept = [line for line in self.read_log() if line["step"] <= done]
            self._write(self.log, "".join(json.dumps(line) + "\n" for line in kept))
        return state

    def drop_incomplete(self) -> None:
        """Remove what a run left behind that ended while it saved."""
        for state in self._states():
            if not (state / MARK).exists():
                shutil.rmtree(state, ignore_errors=True)

    def read_log(self) -> list[dict[str, Any]]:
        """The run's log, one dict a line: `step`, and `loss`, `keep`, `lr`, …, or `perplexity`."""
        if not self.log.exists():
            return []
        with reading(f"{self.log} is damaged", "throw the run away with --force"):
            lines = text_of(self.log).splitlines()
            found = [json_of(line) for line in lines if line.endswith("}")]  # a killed run may have left half a line
            if misfit(found, [{str: NUMBER}]) or not all(type(line.get("step")) is int for line in found):
                raise ValueError("a line of it is no step of a training")
        return found

    def finish(self) -> None:
        """The run's checkpoint is written: the folder goes, and every process waits for that."""
        process = PartialState()
        if process.is_main_process:
            self.remove()
        process.wait_for_everyone()

    def remove(self) -> None:
        discard(self.path)

    def _states(self) -> list[Path]:
        return list(self.path.glob("checkpoint-*"))

    @staticmethod
    def _write(file: Path, text: str) -> None:
        with written_aside(file, folder=False) as aside:
            aside.write_text(text, encoding="utf-8")


def _said(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < _SHORT else shown(value)


def step_of(state: Path) -> int:
    """The steps that were done when the state was saved."""
    number = state.name.split("-")[1]
    return int(number) if number.isdecimal() and len(number) < _DIGITS else -1


def forget(out: Path) -> None:
    """Remove the folder of a run whose result is there; not while somebody works in it."""
    run = place_of(out)
    if not (run / SETTINGS).is_file():
        return
    with suppress(Timeout, OSError), FileLock(run / LOCK, timeout=0):
        discard(run)


def unfinished(out: Path) -> bool:
    """Whether a run that would write `out` was stopped, and can be resumed."""
    return (place_of(out) / SETTINGS).is_file()


def place_of(out: Path) -> Path:
    out = out.expanduser().resolve()
    return out.with_name(f"{out.name}.training")
