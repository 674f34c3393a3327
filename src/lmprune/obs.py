"""`obs`: second-order pruning, block by block (METHODS section 5).

Each block is pruned on what the pruned blocks before it really put out: its second moments are taken at the seam, the
solver in `criteria.second_order` picks the neurons and refits the reader, and the block is run again, pruned, to give
the next block its input. Memory holds the model, the hidden states of the calibration tokens, and one block's F².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blockwise import Blocks
from .criteria.second_order import Elimination, LeastSquares, eliminate
from .curvature import output_curvature
from .ffn import FFN
from .selection import Scope, num_kept, select
from .statistics import Progress


@dataclass(frozen=True)
class ObsSettings:
    """sequential: each block sees what the pruned blocks before it put out; False = one dense pass (plain OBS).

    end_loss: the choice of neurons knows which directions of a layer's output the end loss cares about.
    rel_damp: the ridge of the least squares, relative to the mean diagonal of the second moments.
    gradient_tokens: how many of the calibration tokens are read backwards too.
    """

    sequential: bool = True
    end_loss: bool = True
    rel_damp: float = 1e-3
    gradient_tokens: int = 8192


PLAIN = ObsSettings(sequential=False, end_loss=False)


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
    stages: Callable[[str], Progress | None] = lambda _name: None,
) -> list[Tensor]:
    """Choose, cut and refit all layers in place; the kept indices of each (K_l,), sorted.

    input_ids: calibration text (sequences, T). keep, scope, multiple_of, seed: see `selection.select`.
    Under global scope a first, dense pass gives each layer's error curve, and the cheapest removals of all layers
    decide the widths; the neurons themselves are chosen in the second pass.
    """
    metrics: list[Tensor | None] = [None] * len(ffns)
    if settings.end_loss:
        few = input_ids[: max(settings.gradient_tokens // input_ids.shape[1], 1)]
        metrics = [*output_curvature(model, ffns, few, progress=stages("gradients of the end loss"))]

    def order(ffn: FFN, problem: LeastSquares, until: int) -> Elimination:
        return eliminate(problem, until=until, metric_DD=metrics[ffn.layer], seed=seed)

    if scope == "local":
        counts = [num_kept(ffn.width, keep, multiple_of=multiple_of) for ffn in ffns]
    else:
        dense = layer_problems(
            model, ffns, input_ids, sequential=False, rel_damp=settings.rel_damp, progress=stages("error curves")
        )
        scores = [order(ffn, problem, 1).scores() for ffn, problem in dense]
        counts = [len(kept) for kept in select(scores, keep, scope=scope, multiple_of=multiple_of, seed=seed)]

    kept: list[Tensor] = []
    for ffn, problem in layer_problems(
        model, ffns, input_ids, sequential=settings.sequential, rel_damp=settings.rel_damp, progress=stages("pruning")
    ):
        kept.append(order(ffn, problem, counts[ffn.layer]).kept)
        cut(ffn, kept[-1], problem)
    return kept


@torch.no_grad()
def obs_refit(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    kept: Sequence[Tensor],
    *,
    settings: ObsSettings = ObsSettings(),
    stages: Callable[[str], Progress | None] = lambda _name: None,
) -> None:
    """Cut all layers in place to neurons that were chosen before, by any method, and refit the readers."""
    for ffn, problem in layer_problems(
        model, ffns, input_ids, sequential=settings.sequential, rel_damp=settings.rel_damp, progress=stages("refitting")
    ):
        cut(ffn, kept[ffn.layer], problem)


def cut(ffn: FFN, kept: Tensor, problem: LeastSquares) -> None:
    """Cut the layer and give it the least-squares reader (and bias) of the neurons that stay."""
    reader = problem.refit(kept)
    ffn.keep(kept)
    ffn.set_reader(reader[: len(kept)], reader[len(kept)] if problem.pinned else None)


def layer_problems(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    *,
    sequential: bool,
    rel_damp: float,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Iterator[tuple[FFN, LeastSquares]]:
    """Each layer, in order, with its least-squares problem; the caller may cut the layer before asking for the next.

    sequential: what the next block sees comes from the layer as the caller left it, rather than as it was.
    """
    blocks = Blocks(model, [ffn.block for ffn in ffns])
    device = next(model.parameters()).device
    hidden = [blocks.inputs(batch_BT.to(device)) for batch_BT in input_ids.split(batch_size)]
    for layer, ffn in enumerate(ffns):
        with _watched(ffn) as moment:
            for i, states_BTD in enumerate(hidden):
                out_BTD = blocks.run(layer, states_BTD)
                if not sequential:
                    hidden[i] = out_BTD
        yield ffn, moment.problem(ffn, rel_damp=rel_damp)
        if sequential and layer + 1 < len(ffns):
            for i, states_BTD in enumerate(hidden):
                hidden[i] = blocks.run(layer, states_BTD)
        if progress:
            progress(layer + 1, len(ffns))


class SeamMoment:
    """Uncentred second moments of one layer's neuron outputs, with a row of ones where the reader has a bias."""

    def __init__(self, ffn: FFN):
        self.pinned = int(ffn.reader_bias() is not None)
        size = ffn.width + self.pinned
        self.num_tokens = 0
        self.sum = torch.zeros(size, size, dtype=torch.float64)

    def add(self, h_NF: Tensor) -> None:
        h_NF = h_NF.float()
        width = h_NF.shape[1]
        self.num_tokens += len(h_NF)
        self.sum[:width, :width] += (h_NF.T @ h_NF).cpu()
        if self.pinned:
            total_F = h_NF.sum(0, dtype=torch.float64).cpu()
            self.sum[width, :width] += total_F
            self.sum[:width, width] += total_F
            self.sum[width, width] += len(h_NF)

    def problem(self, ffn: FFN, *, rel_damp: float) -> LeastSquares:
        """The layer's least-squares problem: reproduce what the dense reader puts out on these very inputs."""
        moment = self.sum / self.num_tokens
        reader_FD = ffn.reader().detach().double().cpu()
        if (bias_D := ffn.reader_bias()) is not None:
            reader_FD = torch.cat([reader_FD, bias_D.detach().double().cpu()[None]])
        return LeastSquares.of(moment, moment @ reader_FD, reader_FD, rel_damp=rel_damp, pinned=self.pinned)


@contextmanager
def _watched(ffn: FFN) -> Iterator[SeamMoment]:
    moment = SeamMoment(ffn)

    def add(_reader: nn.Module, args: tuple[Tensor, ...]) -> None:
        moment.add(args[0].flatten(0, -2))

    handle = ffn.down.register_forward_pre_hook(add)
    try:
        yield moment
    finally:
        handle.remove()
