"""`obs` for neurons inside experts: each expert's reader is refitted on the tokens that go to the expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ..budget.choosing import alike, choose
from ..budget.keeps import Keep
from ..checkpoints.block_files import finish_again, seal_of
from ..checkpoints.journal import stage_of
from ..checkpoints.shelf import Tensors
from ..checkpoints.states import Numbered, States, listed, states_of
from ..errors import UserError
from ..progress import Stages
from ..scores.curvature import curvature_after
from ..sites.address import Kind
from ..sites.expert_neurons import ExpertNeurons
from ..sites.pages import done_with, here
from ..sites.site import Site
from ..sites.walk import Blocks, list_of
from .elimination import LeastSquares, eliminate
from .moments import Moments
from .obs import ObsSettings
from .solver import Selection, Solution, Solver
from .walks import cut

_BATCH = 4


@dataclass(frozen=True)
class InExperts(Solver):
    """What an expert is asked to reproduce is what its dense reader makes of the tokens that go to it now; the drift of
    the stream is left to the layers that see every token."""

    settings: ObsSettings
    refits: ClassVar[frozenset[str]] = frozenset({"obs"})
    rewrites: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "obs"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("expert_neurons",)

    def reads_text(self, *, chosen: bool = False) -> bool:
        return True

    def solve(
        self,
        model: Any,
        sites: Sequence[Any],
        input_ids: Tensor | None,
        keep: Keep,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        assert input_ids is not None
        if how["scope"] != "local":
            raise UserError("obs compares no neurons of different layers' experts; use scope local for expert_neurons")
        chosen = choose(sites, alike(sites), keep, **how)
        until = [len(units) // site.parts for site, units in zip(sites, chosen, strict=True)]
        metrics = self._metrics(model, sites, input_ids, stages)

        def prune(place: int, seams: Sequence[Site], problems: Iterable[LeastSquares]) -> Tensors:
            gone, width = [], seams[0].width
            for seam, problem in zip(seams, problems, strict=True):
                found = eliminate(problem, until=until[place], metric_DD=metrics.get(place), seed=how["seed"])
                gone.append(found)
                cut(seam, found.kept, problem)
            kept = torch.cat([one.kept + expert * width for expert, one in enumerate(gone)])
            return {"kept": kept, "scores": torch.cat([one.scores() for one in gone])}

        found = self._each(model, sites, input_ids, stages, "pruning", prune)
        return Solution([one["kept"] for one in found], [one["scores"] for one in found])

    def carry_out(
        self, model: Any, sites: Sequence[Any], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        assert input_ids is not None

        def refit(place: int, seams: Sequence[Site], problems: Iterable[LeastSquares]) -> Tensors:
            for seam, problem, units in zip(seams, problems, sites[place].split(kept[place]), strict=True):
                cut(seam, units, problem)
            return {"kept": kept[place]}

        self._each(model, sites, input_ids, stages, "refitting", refit)

    def _metrics(
        self, model: Any, sites: Sequence[ExpertNeurons], input_ids: Tensor, stages: Stages
    ) -> Mapping[int, Tensor]:
        """How much the end loss cares about each direction of what a layer's experts put out together, (D, D)."""
        if not self.settings.end_loss:
            return {}
        stacked, number = [site.stacked for site in sites], max(self.settings.gradient_tokens // input_ids.shape[1], 1)
        return curvature_after(model, stacked, input_ids[:number], progress=stages("gradients of the end loss"))

    @torch.no_grad()
    def _each(
        self, model: Any, sites: Sequence[ExpertNeurons], input_ids: Tensor, stages: Stages, name: str,
        solve: Callable[[int, Sequence[Site], Iterable[LeastSquares]], Tensors],
    ) -> list[Tensors]:  # fmt: skip
        """What `solve` finds of each place along the walk of that name, given its number, its experts as sites, which
        it cuts, and their problems. Of a run that goes on, what was done is as it was (see `walks.each`)."""
        listed_blocks, stage, progress = list_of(model, sites[0].block), stage_of(model, name), stages(name)
        blocks, device = Blocks(model, list(listed_blocks)), next(model.parameters()).device
        batches = [batch_BT.to(device) for batch_BT in input_ids.split(_BATCH)]
        blocks.learn(batches)
        hidden = states_of(model, listed(stage.state, device) if stage.state else map(blocks.inputs, batches))
        found, place_of = dict[int, Tensors](), {site.address.layer: place for place, site in enumerate(sites)}
        for place in (place for layer, place in place_of.items() if layer < stage.done):
            found[place] = _again(sites[place], stage.found[str(sites[place].address)])
        for layer in range(stage.done, len(blocks.blocks)):
            here(blocks.blocks[layer])
            after = None
            if (place := place_of.get(layer)) is not None:
                site, seams = sites[place], sites[place].seams()
                seen, after = _seen(site, seams, partial(_through, blocks, layer, hidden))
                problems = (  # one at a time is there
                    moments.problem(seam, rel_damp=self.settings.rel_damp, per_neuron=self.settings.per_neuron)
                    for seam, moments in zip(seams, seen, strict=True)
                )
                found[place] = solve(place, seams, problems)
                site.put(seams)
            hidden = after if after and not self.settings.sequential else _through(blocks, layer, hidden)
            if place is not None:
                done_with(block := sites[place].block)
                if stage.lasts:
                    stage.found[str(sites[place].address)] = {**found[place], **seal_of(block)}
            stage.end(partial(Numbered, {"": hidden}))
            if progress:
                progress(layer + 1, len(blocks.blocks))
        return [found[place] for place in range(len(sites))]


def _through(blocks: Blocks, layer: int, hidden: States) -> States:
    return states_of(blocks.model, (blocks.run(layer, states_BTD) for states_BTD in hidden))


def _seen(site: ExpertNeurons, seams: Sequence[Site], run: Callable[[], States]) -> tuple[list[Moments], States]:
    """What enters each expert's reader as the layer runs, and what comes out of that. An expert that no token goes to
    has the moments of noise: no neuron is better."""
    seen = [Moments(seam) for seam in seams]
    with site.opened(seams), ExitStack() as stack:
        for seam, moments in zip(seams, seen, strict=True):
            stack.callback(seam.reader_linear.register_forward_pre_hook(_into(moments)).remove)
        after = run()
    for seam, moments in zip(seams, seen, strict=True):
        if not moments.weight:
            moments.add(torch.eye(seam.width, device=seam.reader().device))
    return seen, after


def _again(site: ExpertNeurons, known: Tensors) -> Tensors:
    """Do to the place what was done to it in an earlier run, and return what was found then."""
    here(site.block)
    seams = site.seams()
    for seam, units in zip(seams, site.split(known["kept"]), strict=True):
        seam.keep(units)
    site.put(seams)
    finish_again(site.block, known)
    return known


def _into(moments: Moments) -> Any:
    def hook(_reader: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.add(args[0].flatten(0, -2))

    return hook
