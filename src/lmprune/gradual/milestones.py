"""Criteria that read text, and `obs`, on a schedule: asked again a few times, on the model as it then is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from ..budget.choosing import kinds_of
from ..budget.keeps import keep_of
from ..budget.selection import Descent
from ..methods import Method
from ..progress import silent
from ..sites.address import Kind
from ..sites.families import FFNSpec
from ..sites.find import find_sites
from ..sites.masks import UnitMasks
from ..sites.site import Site, seams
from .goal import Chooser, Goal
from .schedules import milestone_steps

Found = TypeVar("Found")


class Milestones(Chooser):
    """At each milestone the one-shot method prunes a copy of the model, already cut to the kept neurons.

    What was pruned stays pruned. The copy's refitted readers, if the method refits, go back into the model.
    number: how many milestones there are.
    """

    def __init__(
        self,
        model: Any,
        masks: UnitMasks,
        method: Method,
        calibration: Tensor,
        goal: Goal,
        number: int,
        spec: FFNSpec | None,
    ):
        super().__init__(goal)
        self.model, self.masks, self.method, self.calibration, self.spec = model, masks, method, calibration, spec
        self.steps = milestone_steps(goal.num_steps, number)
        self._scores = [torch.full((mask.count,), torch.nan) for mask in masks]

    def scores(self) -> list[Tensor]:
        """Of each milestone's neurons; those that went keep what they went with."""
        return self._scores

    def state(self) -> dict[str, Tensor]:
        return {f"milestones.{layer}": scores for layer, scores in enumerate(self._scores)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        # states of lmprune before 2026-11-27 have none
        self._scores = [state.get(f"milestones.{layer}", scores) for layer, scores in enumerate(self._scores)]

    def choose(self, step: int, keep: float) -> list[Tensor] | None:
        if step not in self.steps:
            return None
        small, sites = cut_copy(self.model, self.masks, self.masks.kept, self.spec)
        found = self.method.solver_of(self.kinds).solve(
            small, sites, self.calibration, self._keeps(keep), silent,
            scope=self.goal.scope, multiple_of=self.goal.multiple_of, seed=self.goal.seed,
            descent=Descent([mask.count for mask in self.masks], goes_on=step != self.steps[-1]),
        )  # fmt: skip
        for mine, before, scores in zip(self._scores, self.masks.kept, found.scores, strict=True):
            mine[before] = scores.float()
        kept = [before[indices] for before, indices in zip(self.masks.kept, found.kept, strict=True)]
        if self.method.solver.rewrites:
            write_back(self.masks.sites, sites, kept)
        return agreed(kept)

    @property
    def kinds(self) -> list[Kind]:
        """Of the units that are masked."""
        return kinds_of(self.masks.sites)

    def _keeps(self, keep: float) -> dict[Kind, float]:
        """The asked share of each kind. With one ratio `obs` would take it as that of all parameters."""
        return {kind: keep_of(self.goal.at(keep), kind) for kind in self.kinds}


def agreed(found: Found) -> Found:
    """The first process's, on every process: each has computed its own, perhaps on another kind of machine."""
    told = [found]
    return broadcast_object_list(told)[0] if PartialState().num_processes > 1 else found


def cut_copy(model: Any, masks: UnitMasks, kept: Sequence[Tensor], spec: FFNSpec | None) -> tuple[Any, list[Site]]:
    """A copy of the masked model, cut to the neurons `kept`, and its layers."""
    with masks.off():
        small = copy.deepcopy(model)
    sites = seams(find_sites(small, kinds_of(masks.sites), spec), "pruning while a model trains")
    for site, indices in zip(sites, kept, strict=True):
        site.keep(indices)
    return small.eval(), sites


@torch.no_grad()
def write_back(sites: Sequence[Site], cut: Sequence[Site], kept: Sequence[Tensor]) -> None:
    """The cut layers' readers (and biases) into the rows of the whole layers that they were cut to.

    On several processes the first one's go into all.
    """
    for site, small, indices in zip(sites, cut, kept, strict=True):
        site.reader()[site.inputs_of(indices)] = small.reader()
        bias, new_bias = site.reader_bias(), small.reader_bias()
        if bias is not None and new_bias is not None:
            bias.copy_(new_bias)
        if PartialState().num_processes > 1:
            for parameter in site.reader_linear.parameters():
                broadcast(parameter.data)
