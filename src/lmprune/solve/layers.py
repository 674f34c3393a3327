"""Layers at once: score them, choose, and let the readers of those that stay make up for what is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..budget.keeps import Keep, keep_of
from ..budget.selection import num_kept, select
from ..checkpoints.journal import stage_of
from ..checkpoints.shelf import Tensors
from ..checkpoints.shim import is_gone
from ..progress import Stages, silent
from ..scores.layers import LAYER_RULES, LayerRule, score_layers
from ..sites.address import LAYER_KINDS, Address, Kind, SeamKind
from ..sites.layers import Layers, check_left
from ..sites.site import Site
from .elimination import LeastSquares
from .obs import ObsSettings
from .solver import Selection, Solution, Solver
from .walks import cut, each


@dataclass(frozen=True)
class Dropped(Solver):
    """criterion: a name in `LAYER_RULES`. settings: how the readers of what stays are refitted; None = they are not."""

    criterion: str
    settings: ObsSettings | None = None

    @property
    def name(self) -> str:
        return self.criterion

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return LAYER_KINDS

    @property
    def rule(self) -> LayerRule:
        return LAYER_RULES[self.criterion]

    def reads_text(self, *, chosen: bool = False) -> bool:
        return self.settings is not None or (self.rule.score is not None and not chosen)

    def remarks(self, sites: Sequence[Any]) -> list[str]:
        place = sites[0]
        if self.settings is None or len(place.blocks) < 2 or _readers(place, {"layers": {0}}):
            return []
        return [
            f"nothing is refitted, so that this is what {self.criterion} does: in this family a norm stands between "
            "what a branch puts out and the stream"
        ]

    def solve(
        self,
        model: Any,
        sites: Sequence[Any],
        input_ids: Tensor | None,
        keep: Keep,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        scores, kept, stage = [], [], stage_of(model, "scores of layers")
        for step, place in enumerate(sites):
            ratio, name = keep_of(keep, place.address.kind), str(place.address)
            until, progress = num_kept(place.count, ratio), stages(f"scoring {place.address.kind}")
            if step >= stage.done:
                found = score_layers(self.rule, model, place, input_ids, until, seed=how["seed"], progress=progress)
                stage.found[name] = {"scores": found}
                stage.end(dict)
            scores.append(stage.found[name]["scores"])
            kept += select(scores[-1:], ratio, scope="local", seed=how["seed"])
        self.carry_out(model, sites, input_ids, kept, stages)
        return Solution(kept, scores)

    def carry_out(
        self, model: Any, sites: Sequence[Any], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        check_left(sites, kept)
        if self.settings is not None:
            assert input_ids is not None
            refit_without(model, sites, input_ids, kept, settings=self.settings, stages=stages)
        for place, units in zip(sites, kept, strict=True):
            place.keep(units)


@torch.no_grad()
def refit_without(
    model: Any,
    places: Sequence[Layers],
    input_ids: Tensor,
    kept: Sequence[Tensor],
    *,
    settings: ObsSettings,
    stages: Stages = silent,
) -> None:
    """Refit the readers of what stays, block by block, to bring the stream back to the dense model's without what goes,
    which is not yet cut.

    kept: sorted, (K,), one a place. Where a norm stands between a reader and the stream, nothing is refitted.
    """
    gone: dict[Kind, set[int]] = {
        place.address.kind: _gone(place, units) for place, units in zip(places, kept, strict=True)
    }
    readers = _readers(places[0], gone)
    if not readers:
        return
    without = {layer: partial(_switched_off, places, kept, layer) for layer in set().union(*gone.values())}

    def refit(site: Site, problem: LeastSquares) -> Tensors:
        cut(site, whole := torch.arange(site.count), problem)
        return {"kept": whole}

    each(model, readers, input_ids, replace(settings, sequential=True), stages, "refitting", refit, without=without)


def _gone(place: Layers, kept: Tensor) -> set[int]:
    """The blocks whose unit goes."""
    return set(place.members) - {place.members[unit] for unit in kept.tolist()}


def _switched_off(places: Sequence[Layers], kept: Sequence[Tensor], layer: int) -> Callable[[], None]:
    """Skip what goes of a block; what comes back ends it."""
    stack = ExitStack()
    for place, units in zip(places, kept, strict=True):
        if layer in _gone(place, units):
            stack.callback(place.without([place.members.index(layer)]))
    return stack.close


def _readers(place: Layers, gone: Mapping[Kind, set[int]]) -> list[Site]:
    """What each branch that stays puts out by, from the first gap on, as a site without writers: only its reader is
    rewritten."""
    kinds: tuple[tuple[SeamKind, Any, Kind], ...] = (
        ("heads", place.spec.attention, "attentions"),
        ("neurons", place.spec.ffn, "ffns"),
    )
    found = []
    first = min(set().union(*gone.values()), default=len(place.blocks))
    for layer, block in list(enumerate(place.blocks))[first:]:
        for kind, branch, whole in kinds:
            if layer in {*gone.get("layers", ()), *gone.get(whole, ())} or is_gone(block, branch.home):
                continue
            last = block.get_submodule(branch.last)
            if isinstance(last, nn.Linear) or hasattr(last, "nf"):
                found.append(Site(Address(kind, layer), block, (), last, what=branch.last))
    return found
