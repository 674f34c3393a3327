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

from ..errors import UserError

MARK = "lmprune_complete"


class RunFolder:
    """out: where the run's checkpoint will be."""

    def __init__(self, out: Path):
        out = out.expanduser().resolve()
        self.path = out.with_name(f"{out.name}.training")
        self.log = self.path / "training_log.jsonl"
        self._settings = self.path / "settings.json"

    def begin(self, settings: Mapping[str, Any], *, resume: bool, force: bool) -> None:
        """Make the folder, or take up what is there.

        settings: all that the result depends on. Raises: UserError where there is nothing to resume, where the run
        there was asked for with other settings, and where there is a run that nobody said to resume or to replace.
        """
        settings = json.loads(json.dumps(settings))
        if resume:
            self._check_same(settings)
            return
        if self.path.exists():
            if not force:
                raise UserError(
                    f"an unfinished run is in {self.path}; go on with --resume, or throw it away with --force"
                )
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        self._settings.write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def _check_same(self, settings: Mapping[str, Any]) -> None:
        if not self._settings.is_file():
            raise UserError(f"there is no run to resume in {self.path}; leave out --resume")
        before = json.loads(self._settings.read_text(encoding="utf-8"))
        differing = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if differing:
            told = ", ".join(f"{n} (was {before.get(n)}, is now {settings.get(n)})" for n in sorted(differing))
            raise UserError(f"the run in {self.path} had other settings: {told}; resume it with its own")

    def newest_state(self) -> Path | None:
        """The last complete saved state; what a killed run left incomplete is removed."""
        found = {int(folder.name.split("-")[1]): folder for folder in self.path.glob("checkpoint-*")}
        for step, folder in list(found.items()):
            if not (folder / MARK).exists():
                shutil.rmtree(folder)
                del found[step]
        return found[max(found)] if found else None

    def rewind_log(self, step: int) -> None:
        """Forget what was logged after `step`: those steps will be made again."""
        if self.log.exists():
            kept = [line for line in self.read_log() if line["step"] <= step]
            self.log.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def read_log(self) -> list[dict[str, Any]]:
        """The run's log, one dict a line: `step`, and `loss`, `keep`, `lr`, or `perplexity`."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may have left half a line

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
