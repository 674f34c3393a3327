"""`obs` for neurons inside experts: each expert's reader is refitted on the tokens that go to the expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ..budget.choosing import alike, choose
from ..budget.keeps import Keep
from ..errors import UserError
from ..progress import Progress, Stages
from ..scores.curvature import curvature_after
from ..sites.address import Kind
from ..sites.expert_neurons import ExpertNeurons
from ..sites.site import Site
from ..sites.walk import Blocks, list_of
from .elimination import eliminate
from .obs import ObsSettings
from .solver import Selection, Solution, Solver
from .targets import Moments
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
        kept, scores = [], []
        for place, site, seams, seen in self._seen(model, sites, input_ids, stages("pruning")):
            gone = []
            for seam, moments in zip(seams, seen, strict=True):
                problem = moments.problem(seam, rel_damp=self.settings.rel_damp, per_neuron=self.settings.per_neuron)
                gone.append(eliminate(problem, until=until[place], metric_DD=metrics[place], seed=how["seed"]))
                cut(seam, gone[-1].kept, problem)
            kept.append(torch.cat([one.kept + expert * site.width for expert, one in enumerate(gone)]))
            scores.append(torch.cat([one.scores() for one in gone]))
            site.put(seams)
        return Solution(kept, scores)

    def carry_out(
        self, model: Any, sites: Sequence[Any], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        assert input_ids is not None
        for place, site, seams, seen in self._seen(model, sites, input_ids, stages("refitting")):
            for seam, moments, units in zip(seams, seen, site.split(kept[place]), strict=True):
                problem = moments.problem(seam, rel_damp=self.settings.rel_damp, per_neuron=self.settings.per_neuron)
                cut(seam, units, problem)
            site.put(seams)

    def _metrics(
        self, model: Any, sites: Sequence[ExpertNeurons], input_ids: Tensor, stages: Stages
    ) -> list[Tensor | None]:
        """How much the end loss cares about each direction of what a layer's experts put out together, (D, D)."""
        if not self.settings.end_loss:
            return [None] * len(sites)
        stacked, number = [site.stacked for site in sites], max(self.settings.gradient_tokens // input_ids.shape[1], 1)
        found = curvature_after(model, stacked, input_ids[:number], progress=stages("gradients of the end loss"))
        return [found[place] for place in range(len(sites))]

    @torch.no_grad()
    def _seen(
        self, model: Any, sites: Sequence[ExpertNeurons], input_ids: Tensor, progress: Progress | None
    ) -> Iterator[tuple[int, ExpertNeurons, list[Site], list[Moments]]]:
        """Each place by its number, its experts as sites, and what enters their readers; the caller may cut it before
        it asks for the next. An expert that no token goes to has the moments of noise: no neuron is better."""
        found = list_of(model, sites[0].block)
        blocks, device = Blocks(model, list(found)), next(model.parameters()).device
        hidden = [blocks.inputs(batch_BT.to(device)) for batch_BT in input_ids.split(_BATCH)]
        place_of = {site.address.layer: place for place, site in enumerate(sites)}
        for layer in range(len(found)):
            after = None
            if (place := place_of.get(layer)) is not None:
                seams = sites[place].seams()
                seen = [Moments(seam) for seam in seams]
                with sites[place].opened(seams), ExitStack() as stack:
                    for seam, moments in zip(seams, seen, strict=True):
                        stack.callback(seam.reader_linear.register_forward_pre_hook(_into(moments)).remove)
                    after = [blocks.run(layer, states_BTD) for states_BTD in hidden]
                for seam, moments in zip(seams, seen, strict=True):
                    if not moments.weight:
                        moments.add(torch.eye(seam.width, device=seam.reader().device))
                yield place, sites[place], seams, seen
            if self.settings.sequential or after is None:
                after = [blocks.run(layer, states_BTD) for states_BTD in hidden]
            hidden = after
            if progress:
                progress(layer + 1, len(found))


def _into(moments: Moments) -> Any:
    def hook(_reader: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.add(args[0].flatten(0, -2))

    return hook
