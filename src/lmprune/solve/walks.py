"""A walk along the sites that solves the least-squares problem of each, and may go on where an earlier run ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checkpoints.block_files import finish_again, seal_of, stages_blocks
from ..checkpoints.journal import Stage, stage_of
from ..checkpoints.shelf import Tensors
from ..progress import Progress, Stages
from ..sites.address import Address
from ..sites.pages import done_with, here
from ..sites.site import Site, by_layer
from .elimination import Elimination, LeastSquares, eliminate
from .targets import Skip, layer_problems

if TYPE_CHECKING:
    from .obs import Metrics, ObsSettings

#: what a site's reader has become, in what is kept of it
_READER, _BIAS = "reader", "bias"


@dataclass(frozen=True)
class Probe:
    """What units are taken away on for a try: calibration text (sequences, T), the metrics of the end loss, and how."""

    model: Any
    sites: Sequence[Site]
    input_ids: Tensor
    metrics: Metrics
    settings: ObsSettings
    seed: int

    def gone(self, site: Site, problem: LeastSquares, until: int) -> Elimination:
        """The units that go until so many are left."""
        return eliminate(problem, until=until, metric_DD=self.metrics[site.address], seed=self.seed)

    def mask(self, site: Site, problem: LeastSquares, until: int) -> None:
        """As `cut` cuts, with zeros in the reader where units go."""
        if until < site.count or problem.drifted:
            site.set_reader(*problem.masked(self.gone(site, problem, until).kept))


def each(
    model: Any, sites: Sequence[Site], input_ids: Tensor, settings: ObsSettings, stages: Stages, name: str,
    solve: Callable[[Site, LeastSquares], Tensors], *, rewrites: bool = True, last: bool = False,
    without: Mapping[int, Skip] = {},
) -> dict[Address, Tensors]:  # fmt: skip
    """What `solve` finds of each site along the walk of that name.

    without: see `layer_problems`. rewrites: it changes the site's reader, and cuts it down to `kept`, where it finds
    that. last: nobody changes a block any more after this walk. Of a run that goes on, the sites of the blocks
    that were done become what they were, and are not solved again.
    """
    stage, found = stage_of(model, name), dict[Address, Tensors]()
    blocks = {site.layer: site.block for site in sites}
    last = last and stages_blocks(sites[0].block)
    for group in (group for group in by_layer(sites) if group[0].layer < stage.done):
        for site in group:
            found[site.address] = known = dict(stage.found[str(site.address)])
            if rewrites:
                _again(site, known)
        if last:
            finish_again(group[0].block, stage.found[_block(group[0].layer)])

    def ended(layer: int) -> None:
        if last and layer in blocks:
            done_with(blocks[layer])
            if stage.lasts:
                stage.found[_block(layer)] = seal_of(blocks[layer])

    for site, problem in problems(
        model, sites, input_ids, settings, stages(name), stage=stage, without=without, ended=ended
    ):
        found[site.address] = solve(site, problem)
        del problem  # before the next is stated, which is as large
        if stage.lasts:
            stage.found[str(site.address)] = {**found[site.address], **({} if last or not rewrites else _reader(site))}
    return found


def _again(site: Site, known: dict[str, Tensor]) -> None:
    """Cut as it was, if it was; its reader is among what is known, or comes with the block."""
    here(site.block)
    if "kept" in known:
        site.keep(known["kept"])
    if _READER in known:
        site.set_reader(known.pop(_READER), known.pop(_BIAS, None))


def _block(layer: int) -> str:
    """What is kept under this name is what the block's file is known by."""
    return f"block.{layer}"


def _reader(site: Site) -> dict[str, Tensor]:
    bias = site.reader_bias()
    return {_READER: site.reader(), **({} if bias is None else {_BIAS: bias})}


def problems(
    model: Any, sites: Sequence[Site], input_ids: Tensor, settings: ObsSettings, progress: Progress | None,
    known: Mapping[Address, LeastSquares] = {}, stage: Stage | None = None, without: Mapping[int, Skip] = {},
    ended: Callable[[int], None] = lambda _layer: None,
) -> Iterator[tuple[Site, LeastSquares]]:  # fmt: skip
    """`layer_problems` as the settings have them."""
    return layer_problems(
        model, sites, input_ids,
        sequential=settings.sequential, compensation=settings.compensation,
        rel_damp=settings.rel_damp, per_neuron=settings.per_neuron, known=known, stage=stage, without=without,
        ended=ended, progress=progress,
    )  # fmt: skip


def cut(site: Site, kept: Tensor, problem: LeastSquares) -> None:
    """Cut the site and give it the least-squares reader (and bias) of the units that stay; without any it is gone.

    Where all stay and nothing is to be made up for, the solution is the reader as it is: rounding must not change it.
    """
    if len(kept) == site.count and not problem.drifted:
        return
    if not len(kept):
        site.keep(kept)
        return
    reader = problem.refit(kept)
    site.keep(kept)
    site.set_reader(reader[: site.width], reader[site.width] if problem.pinned else None)
