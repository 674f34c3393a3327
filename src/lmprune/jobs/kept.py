"""What is kept of pruning a model block by block until its result is written: `--resume` goes on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints.begun import PRUNING, SETTINGS, Begun, place_of
from ..checkpoints.journal import Journal, keep
from ..errors import Interrupted
from ..progress import Teller
from .reproduce import result_settings


class Kept(Begun):
    """The folder of one run. options: the command's; --resume of what has kept nothing begins."""

    def __init__(self, out: Path, options: Mapping[str, Any]):
        path = place_of(out, PRUNING)
        resume = bool(options.get("resume")) and (path / SETTINGS).is_file()
        super().__init__(path, result_settings(options), resume=resume, force=options["force"])

    @property
    def can_go_on(self) -> bool:
        return not Journal(self.path).empty

    @contextmanager
    def keeping(self, model: Any, terminal: Teller) -> Iterator[None]:
        """For the length of a `with` block what is worked out of the model lasts."""
        try:
            with self.begun():
                keep(model, Journal(self.path, terminal.note))
                yield
        except KeyboardInterrupt:
            if not self.can_go_on:
                raise
            raise Interrupted("interrupted; go on with the same command and --resume") from None
        except BaseException:
            if self.can_go_on:
                terminal.note(f"what was done is kept in {self.path}; the same command with --resume goes on there")
            raise


def kept_before(out: Path, options: Mapping[str, Any], *, walks: bool) -> Kept | None:
    """What a run is to be told of before it opens a model: one that may be read block by block, or that another run
    for the same place was stopped. walks: it will go along the blocks."""
    return Kept(out, options) if walks or (place_of(out, PRUNING) / SETTINGS).is_file() else None
