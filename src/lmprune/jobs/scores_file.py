"""The file of what units were chosen by, that `--scores-out` asks for."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from ..checkpoints.writing import Destination, check_file, written_aside
from ..errors import UserError
from ..foreign import reading
from ..plan import PrunePlan
from ..sites.address import Address

SCORES = ".safetensors"


def check_scores_file(file: Path, *, planned: bool, force: bool) -> Destination:
    """Raises: UserError, before the work, where the scores of a pruning can't be written to `file`."""
    if planned:
        raise UserError("drop --scores-out, or --plan: a plan says which neurons stay, and not by what scores")
    if file.suffix != SCORES:
        raise UserError(f"a file of scores ends in {SCORES}, got {file}")
    return check_file(file, force=force, option="--scores-out", amiss=_no_scores)


def _no_scores(file: Path) -> str | None:
    try:
        with reading(file), safe_open(file, "pt") as opened:
            found = [Address.parse(name) for name in opened.keys()]  # noqa: SIM118 - no mapping
    except UserError:
        found = []
    return None if found else "no file of scores"


def write_scores(plan: PrunePlan, place: Destination) -> None:
    """The scores by layer, `neurons.0`, `neurons.1`, …; `prune(scores=load_file(file))` takes them again."""
    with written_aside(place, folder=False) as partial_file:
        save_file(plan.named_scores(), partial_file)
