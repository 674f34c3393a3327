"""The folder of a training run that is under way: what it was asked for, its saved states, its log.

It stands beside the checkpoint that the run will write, and goes when that is written. A saved state counts only once
its last file, the mark, is there: a run that is killed while it saves goes on from the state before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.begun import TRAINING, Begun, place_of
from ..foreign import NUMBER, json_of, misfit, reading, text_of
from . import manifest

MARK = manifest.MARK
_DIGITS = 16
#: a JSON object a line, in the run's folder and then in the checkpoint's
TRAINING_LOG = "training_log.jsonl"


class RunFolder(Begun):
    """out: where the run's checkpoint will be. The rest, and what is raised, as `Begun` has it."""

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool = False, force: bool = False):
        super().__init__(place_of(out, TRAINING), settings, resume=resume, force=force)
        self.log = self.path / TRAINING_LOG
        #: where a model that is pruned before it is trained waits for a resumed run
        self.cut = self.path / "cut"
        #: sentences on saved states that were damaged, once `rewind` has looked
        self.notes: list[str] = []

    @property
    def can_go_on(self) -> bool:
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

    def _states(self) -> list[Path]:
        return list(self.path.glob("checkpoint-*"))


def step_of(state: Path) -> int:
    """The steps that were done when the state was saved."""
    number = state.name.split("-")[1]
    return int(number) if number.isdecimal() and len(number) < _DIGITS else -1
