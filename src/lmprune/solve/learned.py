"""Scores that are trained with the model (movement pruning): at once there is nothing to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..progress import Stages
from ..sites.place import Place, block_by_block
from .solver import Solution, Solver


@dataclass(frozen=True)
class Learned(Solver):
    """threshold: who stays is decided by a threshold on all scores, not by their ranks (`gradual.soft`)."""

    threshold: bool = False

    @property
    def name(self) -> str:
        return "movement"

    def reads_text(self, *, chosen: bool = False) -> bool:
        return False

    def solve(self, *_what: Any, **_how: Any) -> Solution:
        raise AssertionError("learned scores are there after a training only, see methods.must_train")

    def carry_out(
        self, model: Any, sites: Sequence[Place], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        for place, site in block_by_block(sites):
            site.keep(kept[place])
