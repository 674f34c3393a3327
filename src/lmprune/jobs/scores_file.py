"""The file of what units were chosen by, that `--scores-out` asks for."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from ..checkpoints.writing import check_file, written_aside
from ..errors import UserError
from ..plan import PrunePlan

SCORES = ".safetensors"


def check_scores_file(file: Path, *, planned: bool, force: bool) -> None:
    """Raises: UserError, before the work, where the scores of a pruning can't be written to `file`."""
    if planned:
        raise UserError("drop --scores-out, or --plan: a plan says which neurons stay, and not by what scores")
    if file.suffix != SCORES:
        raise UserError(f"a file of scores ends in {SCORES}, got {file}")
    check_file(file, force=force, option="--scores-out")


def write_scores(plan: PrunePlan, file: Path) -> None:
    """The scores by layer, `neurons.0`, `neurons.1`, …; `prune(scores=load_file(file))` takes them again."""
    with written_aside(file.expanduser().resolve(), folder=False) as partial_file:
        save_file(plan.named_scores(), partial_file)
