"""What is kept of pruning a model block by block until its result is written: `--resume` goes on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.begun import PRUNING, SETTINGS, Begun, place_of
from ..checkpoints.block_files import stage_blocks
from ..checkpoints.journal import Journal, keep
from ..checkpoints.rooms import room
from ..checkpoints.writing import resolved
from ..errors import Interrupted
from ..progress import Teller
from ..sites.pages import pages_of
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


@contextmanager
def staging(model: Any, kept: Kept | None, out: Path, dtype: torch.dtype | None) -> Iterator[None]:
    """For the length of a `with` block what is done with of a model that is read block by block is written beside `out`
    at once: where a run keeps the rest, or in a room that goes. dtype: that it is saved in, see `checkpoint.save`."""
    if pages_of(model) is None:
        yield
        return
    with nullcontext(kept.path) if kept else room(resolved(out).parent, str(out)) as folder:
        stage_blocks(model, folder / "blocks", dtype)
        yield


def kept_before(out: Path, options: Mapping[str, Any], *, walks: bool) -> Kept | None:
    """What a run is to be told of before it opens a model: one that may be read block by block, or that another run
    for the same place was stopped. walks: it will go along the blocks."""
    return Kept(out, options) if walks or (place_of(out, PRUNING) / SETTINGS).is_file() else None
