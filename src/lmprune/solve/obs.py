"""`obs`: second-order pruning, block by block (docs/methods.md, "obs").

Each block is pruned on what the pruned blocks before it really put out: its second moments are taken at the seam, the
solver in `elimination` picks the neurons and refits the reader, and what the block puts out, pruned, is the next
block's input. Memory holds the model, the hidden states of the calibration tokens, what enters one reader, and F².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from ..budget.budget import Spending
from ..budget.choosing import alike, choose, counts_of
from ..budget.keeps import Keep
from ..budget.selection import Descent, Scope
from ..checkpoints.journal import stage_of
from ..checkpoints.shelf import Tensors
from ..freed import give_back
from ..processes import of_first
from ..progress import Phase, Stages, silent
from ..scores.curvature import Matrices, output_curvature
from ..sites.address import Address, Kind
from ..sites.place import Place
from ..sites.site import Site, seams
from . import duration, memory
from .duration import Pace, Work
from .elimination import Elimination, LeastSquares, eliminate
from .memory import Disk, Held, Memory, Shape
from .second_look import SECOND_LOOK, Look, wanted
from .solver import Selection, Solution, Solver
from .walks import cut, each


@dataclass(frozen=True)
class ObsSettings:
    """sequential: each block sees what the pruned blocks before it put out; False = one dense pass (plain OBS).

    end_loss: the choice of neurons knows which directions of a layer's output the end loss cares about.
    compensation: the share of the pruned prefix's drift from the dense model that each layer is asked to make up for.
    rel_damp, per_neuron: the ridge of the least squares, see `LeastSquares.of`.
    gradient_tokens: how many of the calibration tokens are read backwards too.
    """

    sequential: bool = True
    end_loss: bool = True
    compensation: float = 0.5
    rel_damp: float = 0.2
    per_neuron: bool = True
    gradient_tokens: int = 8192


#: how long a cut reader takes, of its block
_READER_ALONE = 0.2

PLAIN = ObsSettings(sequential=False, end_loss=False, compensation=0.0, rel_damp=1e-3, per_neuron=False)


@dataclass(frozen=True)
class Metrics:
    """See `end_loss_metrics`. places: of the sites' matrices in `found`, which may lie on the disk."""

    places: Mapping[Address, int] = field(default_factory=dict)
    found: Matrices = field(default_factory=Matrices)

    def __getitem__(self, at: Address) -> Tensor | None:
        return self.found[self.places[at]] if self.places else None


@dataclass(frozen=True)
class Obs(Solver):
    """A method's solver: the choice, the cut and the refit of a block are one."""

    settings: ObsSettings = ObsSettings()
    refits: ClassVar[frozenset[str]] = frozenset({"obs"})
    rewrites: ClassVar[bool] = True
    by_parameters: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "obs"

    def reads_text(self, *, chosen: bool = False) -> bool:
        return True

    def solve(
        self,
        model: Any,
        sites: Sequence[Place],
        input_ids: Tensor | None,
        keep: Keep,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        assert input_ids is not None
        found = seams(sites, self.name)
        done = eliminations(model, found, input_ids, keep, settings=self.settings, stages=stages, **how)
        return Solution([gone.kept for gone in done], [gone.scores() for gone in done])

    @property
    def needs_gradients(self) -> bool:
        return self.settings.end_loss

    def phases(self, work: Work, pace: Pace) -> list[Phase]:
        sites, how, tokens = seams(work.sites, self.name), self.settings, work.tokens
        drift = how.sequential and how.compensation > 0
        kinds = {site.address.kind for site in sites} if how.sequential else {None}
        again = _READER_ALONE if drift and "neurons" in kinds else how.sequential
        passes = len(kinds) + drift + again
        gradients = duration.gradients(pace, sites, work.read(how.gradient_tokens)) if how.end_loss else []
        curves = duration.eliminations("error curves", pace, sites, [1] * len(sites), tokens, passes=1)
        cuts = [SECOND_LOOK, "pruning"] if wanted(work.sites, work.keep, work.scope) else ["pruning"]
        cutting = [duration.eliminations(name, pace, sites, work.kept(), tokens, passes=passes) for name in cuts]
        return [*gradients, *(curves if work.scope == "global" else []), *chain(*cutting)]

    def memory(self, work: Work, shape: Shape) -> Memory | None:
        sites, how = seams(work.sites, self.name), self.settings
        few = work.read(how.gradient_tokens)
        metrics, matrices = memory.curvatures(shape, sites) if how.end_loss else (0.0, 0.0)
        drift = how.sequential and how.compensation > 0
        solving = max(memory.elimination(sites), memory.moments(sites) + memory.forwards(shape, work.seq_len))
        entering = memory.states(shape, work.tokens, 1 + drift)
        walked = entering + (memory.seam(shape, sites, work.tokens) if drift else 0.0)
        looked = memory.readers(shape, sites) if wanted(work.sites, work.keep, work.scope) else 0.0
        parts, disk = [Held(metrics + solving + looked, walked)], Disk()
        if how.end_loss:
            back = memory.backwards(shape, few, work.seq_len)
            parts, disk = [*parts, Held(metrics + back.other, back.states)], memory.way_back(shape, few, matrices)
        return Memory.of(*parts, disk=replace(disk, state=entering) if shape.streamed else disk)

    def check_spends(self, kinds: Iterable[Kind]) -> None:
        """Errors of neurons and of heads are in one unit of measure."""

    def spend(
        self,
        model: Any,
        sites: Sequence[Place],
        input_ids: Tensor | None,
        spending: Spending,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        from .budgeted import Spread, Walk, shares, spread  # which is made of this module's walks

        assert input_ids is not None
        found, settings, seed = seams(sites, self.name), self.settings, how["seed"]
        metrics = end_loss_metrics(model, found, input_ids, settings, stages)
        few, judged = shares(input_ids, spending.tokens)
        walk = Walk(model, found, few, metrics, settings, seed)
        stage = stage_of(model, "search")
        if not stage.done:
            searched = of_first(spread(walk, spending, judged, multiple_of=how["multiple_of"], stages=stages))
            stage.found["spread"] = searched.kept()
            stage.end(dict)
        chosen = Spread.of(stage.found["spread"])
        done = obs_to_counts(
            model, found, input_ids, chosen.counts, metrics=metrics, seed=seed, settings=settings, stages=stages
        )
        return Solution([gone.kept for gone in done], [gone.scores() for gone in done], chosen.log)

    def carry_out(
        self, model: Any, sites: Sequence[Place], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        assert input_ids is not None
        obs_refit(model, seams(sites, self.name), input_ids, kept, settings=self.settings, stages=stages)


def obs(model: Any, sites: Sequence[Site], input_ids: Tensor, keep: Keep, **how: Any) -> list[Tensor]:
    """What `eliminations` does, and the kept units of each site (K,), sorted."""
    return [found.kept for found in eliminations(model, sites, input_ids, keep, **how)]


@torch.no_grad()
def eliminations(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    keep: Keep,
    *,
    scope: Scope = "local",
    multiple_of: int = 1,
    seed: int = 0,
    descent: Descent | None = None,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> list[Elimination]:
    """Choose, cut and refit all sites in place; what went from each in which order, and what stayed.

    input_ids: calibration text (sequences, T). keep, scope, multiple_of, seed, descent: see `selection.select`.
    Under global scope a first, dense pass gives each layer's error curve, and the cheapest removals of all layers
    decide how many each keeps, of several kinds the cheapest for their parameters (`choosing.counts_of`), with a second
    look at heads (`second_look`); the units themselves are chosen in the last pass.
    """
    metrics = end_loss_metrics(model, sites, input_ids, settings, stages)
    how: dict[str, Any] = {"metrics": metrics, "seed": seed, "settings": settings, "stages": stages}
    widths: dict[str, Any] = {"multiple_of": multiple_of, "seed": seed, "descent": descent}
    if scope == "local":
        kept = choose(sites, alike(sites), keep, scope=scope, **widths)
        counts = [len(units) for units in kept]
    else:
        errors = error_curves(model, sites, input_ids, **how)
        counts = counts_of(sites, errors, keep, **widths)
        if wanted(sites, keep, scope):
            counts = Look(model, sites, input_ids, **how).counts(errors, counts, keep, multiple_of)
    return obs_to_counts(model, sites, input_ids, counts, **how)


@torch.no_grad()
def error_curves(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    *,
    metrics: Metrics | None = None,
    seed: int = 0,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> list[Tensor]:
    """Scores (U,) that compare across sites, from one dense pass: what the error grows by as each unit goes.

    metrics: the dense model's `end_loss_metrics`, where they were taken already.
    """
    metrics = metrics or end_loss_metrics(model, sites, input_ids, settings, stages)

    def curve(site: Site, problem: LeastSquares) -> Tensors:
        return {"scores": eliminate(problem, until=1, metric_DD=metrics[site.address], seed=seed).scores()}

    dense = replace(settings, sequential=False)
    curves = each(model, sites, input_ids, dense, stages, "error curves", curve, rewrites=False)
    return [curves[site.address]["scores"] for site in sites]


@torch.no_grad()
def obs_to_counts(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    counts: Sequence[int],
    *,
    metrics: Metrics | None = None,
    seed: int = 0,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> list[Elimination]:
    """Like `eliminations`, to given numbers of units, one a site. metrics: see `error_curves`."""
    metrics = metrics or end_loss_metrics(model, sites, input_ids, settings, stages)
    until = {site.address: count for site, count in zip(sites, counts, strict=True)}

    def prune(site: Site, problem: LeastSquares) -> Tensors:
        metric_DD = metrics[site.address]
        found = eliminate(problem, until=until[site.address], metric_DD=metric_DD, seed=seed)
        cut(site, found.kept, problem)
        return {"gone": found.gone, "cost": found.cost, "kept": found.kept}

    done = each(model, sites, input_ids, settings, stages, "pruning", prune, last=True)
    return [Elimination(*(done[site.address][name] for name in ("gone", "cost", "kept"))) for site in sites]


def end_loss_metrics(
    model: Any, sites: Sequence[Site], input_ids: Tensor, settings: ObsSettings, stages: Stages = silent
) -> Metrics:
    """How much the end loss cares about each direction of each reader's output, (D, D); None = all alike."""
    if not settings.end_loss:
        return Metrics()
    few = input_ids[: max(settings.gradient_tokens // input_ids.shape[1], 1)]
    found = output_curvature(model, sites, few, progress=stages("gradients of the end loss"))
    give_back()  # what a sequence's way back held, in the blocks' small tensors
    return Metrics({site.address: place for place, site in enumerate(sites)}, found)


@torch.no_grad()
def obs_refit(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    kept: Sequence[Tensor],
    *,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> None:
    """Cut all sites in place to units that were chosen before, by any method, and refit the readers.

    kept: sorted indices, one tensor a site.
    """
    chosen = {site.address: units for site, units in zip(sites, kept, strict=True)}

    def refit(site: Site, problem: LeastSquares) -> Tensors:
        cut(site, chosen[site.address], problem)
        return {"kept": chosen[site.address]}

    each(model, sites, input_ids, settings, stages, "refitting", refit, last=True)
