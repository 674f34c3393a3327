"""`obs`: second-order pruning, block by block (METHODS section 5).

Each block is pruned on what the pruned blocks before it really put out: its second moments are taken at the seam, the
solver in `criteria.second_order` picks the neurons and refits the reader, and the block is run again, pruned, to give
the next block its input. Memory holds the model, the hidden states of the calibration tokens, and one block's F².
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..budget.selection import Scope, num_kept, select
from ..progress import Progress, Stages, silent
from ..scores.curvature import output_curvature
from ..sites.ffn import FFN
from .elimination import LeastSquares, eliminate
from .targets import layer_problems


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


#: one a layer, see `end_loss_metrics`
Metrics = Sequence[Tensor | None]

PLAIN = ObsSettings(sequential=False, end_loss=False, compensation=0.0, rel_damp=1e-3, per_neuron=False)


@torch.no_grad()
def obs(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    keep: float,
    *,
    scope: Scope = "local",
    multiple_of: int = 1,
    seed: int = 0,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> list[Tensor]:
    """Choose, cut and refit all layers in place; the kept indices of each (K_l,), sorted.

    input_ids: calibration text (sequences, T). keep, scope, multiple_of, seed: see `selection.select`.
    Under global scope a first, dense pass gives each layer's error curve, and the cheapest removals of all layers
    decide the widths; the neurons themselves are chosen in the second pass.
    """
    metrics = end_loss_metrics(model, ffns, input_ids, settings, stages)
    how: dict[str, Any] = {"metrics": metrics, "seed": seed, "settings": settings, "stages": stages}
    if scope == "local":
        widths = [num_kept(ffn.width, keep, multiple_of=multiple_of) for ffn in ffns]
    else:
        scores = error_curves(model, ffns, input_ids, **how)
        widths = [len(kept) for kept in select(scores, keep, scope=scope, multiple_of=multiple_of, seed=seed)]
    return obs_to_widths(model, ffns, input_ids, widths, **how)


@torch.no_grad()
def error_curves(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    *,
    metrics: Metrics | None = None,
    seed: int = 0,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> list[Tensor]:
    """Scores (F_l,) that compare across layers, from one dense pass: what the error grows by as each neuron goes.

    metrics: the dense model's `end_loss_metrics`, where they were taken already.
    """
    metrics = metrics or end_loss_metrics(model, ffns, input_ids, settings, stages)
    dense = _problems(model, ffns, input_ids, replace(settings, sequential=False), stages("error curves"))
    return [eliminate(problem, until=1, metric_DD=metrics[ffn.layer], seed=seed).scores() for ffn, problem in dense]


@torch.no_grad()
def obs_to_widths(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    widths: Sequence[int],
    *,
    metrics: Metrics | None = None,
    seed: int = 0,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> list[Tensor]:
    """Like `obs`, to given widths, one a layer. metrics: see `error_curves`."""
    metrics = metrics or end_loss_metrics(model, ffns, input_ids, settings, stages)
    kept: list[Tensor] = []
    for ffn, problem in _problems(model, ffns, input_ids, settings, stages("pruning")):
        found = eliminate(problem, until=widths[ffn.layer], metric_DD=metrics[ffn.layer], seed=seed)
        kept.append(found.kept)
        cut(ffn, found.kept, problem)
    return kept


def end_loss_metrics(
    model: Any, ffns: Sequence[FFN], input_ids: Tensor, settings: ObsSettings, stages: Stages = silent
) -> Metrics:
    """How much the end loss cares about each direction of each layer's output, (D, D); None = all alike."""
    if not settings.end_loss:
        return [None] * len(ffns)
    few = input_ids[: max(settings.gradient_tokens // input_ids.shape[1], 1)]
    return [*output_curvature(model, ffns, few, progress=stages("gradients of the end loss"))]


@torch.no_grad()
def obs_refit(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    kept: Sequence[Tensor],
    *,
    settings: ObsSettings = ObsSettings(),
    stages: Stages = silent,
) -> None:
    """Cut all layers in place to neurons that were chosen before, by any method, and refit the readers."""
    for ffn, problem in _problems(model, ffns, input_ids, settings, stages("refitting")):
        cut(ffn, kept[ffn.layer], problem)


def _problems(
    model: Any, ffns: Sequence[FFN], input_ids: Tensor, settings: ObsSettings, progress: Progress | None
) -> Iterator[tuple[FFN, LeastSquares]]:
    return layer_problems(
        model, ffns, input_ids,
        sequential=settings.sequential, compensation=settings.compensation,
        rel_damp=settings.rel_damp, per_neuron=settings.per_neuron, progress=progress,
    )  # fmt: skip


def cut(ffn: FFN, kept: Tensor, problem: LeastSquares) -> None:
    """Cut the layer and give it the least-squares reader (and bias) of the neurons that stay.

    Where all stay and nothing is to be made up for, the solution is the reader as it is: rounding must not change it.
    """
    if len(kept) == ffn.width and not problem.drifted:
        return
    reader = problem.refit(kept)
    ffn.keep(kept)
    ffn.set_reader(reader[: len(kept)], reader[len(kept)] if problem.pinned else None)
