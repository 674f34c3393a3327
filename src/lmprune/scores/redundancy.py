"""How much a model's neurons repeat each other, and how much the loss cares about them (docs/methods.md,
"Sensitivity" and "Uniqueness").

Second moments are exact, over all tokens, and taken block by block: memory is one layer's (F, F), not the model's.
Axes: N tokens, T tokens of a sequence, F neurons of a layer, K examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..precision import full_products, in_float64, precise
from ..progress import Progress, Stages, silent
from ..sites.site import Site
from ..sites.walk import Blocks, list_of
from .passes import undisturbed
from .statistics import collect

#: two neurons are alike from this cosine on
ALIKE = 0.8
#: |cos| from 0 to 1 is told in so many ranges
NUM_RANGES = 10
#: a neuron is dead whose mean square output is this small beside its layer's: rounding, not firing
_DEAD = 1e-12
#: rows of the cosines looked at together, so that what is derived from them stays small beside (F, F)
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class LayerRedundancy:
    """What one layer's neurons have in common; tensors are on the CPU.

    redundant_F: bool; some later neuron of the layer has cos >= ALIKE with it. Of a cluster, the last one is unique.
    nearest_F: fp64, the largest cos with another neuron (-1 where there is no other).
    dead_F: bool; it never fired. Its cosines count as 0.
    cos_ranges: the share of live neurons that have a |cos| in [0, .1), …, [.9, 1] with another live one (figure 3).
    clusters: neurons linked by cos >= ALIKE, largest cluster first, ascending within.
    peak_tokens_FK: int64, where it fired hardest: places in the flattened input ids, one a sequence, hardest first.
    sensitivity_F: fp64, mean over sequences of |Σ_θ θ·∂L/∂θ|; None where it was not asked for.
    layer: its number in the model, some of whose layers may be without feed-forward neurons.
    """

    redundant_F: Tensor
    nearest_F: Tensor
    dead_F: Tensor
    cos_ranges: tuple[float, ...]
    clusters: tuple[tuple[int, ...], ...]
    peak_tokens_FK: Tensor
    sensitivity_F: Tensor | None = None
    layer: int = 0

    @property
    def width(self) -> int:
        return len(self.redundant_F)

    @property
    def uniqueness(self) -> float:
        """1 - the share of redundant neurons."""
        return 1 - int(self.redundant_F.sum()) / self.width

    @property
    def sensitivity(self) -> float:
        """The sum over the layer's neurons."""
        assert self.sensitivity_F is not None, "sensitivity was not measured"
        return self.sensitivity_F.sum().item()


@dataclass(frozen=True)
class Redundancy:
    """What `measure` found in a text of so many tokens, layer by layer and for the model."""

    layers: tuple[LayerRedundancy, ...]
    num_tokens: int

    @property
    def uniqueness(self) -> float:
        """1 - the share of redundant neurons among all of the model's."""
        return 1 - sum(int(x.redundant_F.sum()) for x in self.layers) / sum(x.width for x in self.layers)

    @property
    def sensitivity(self) -> float:
        """The sum over the model's neurons."""
        return sum(x.sensitivity for x in self.layers)


def measure(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    *,
    num_peaks: int = 0,
    stages: Stages = silent,
) -> Redundancy:
    """Sensitivity and uniqueness: one forward and backward pass, and one forward pass block by block.

    Arguments: see `similarities`. Raises: UserError where sums are not finite, or there is too little text.
    """
    felt = collect(model, sites, input_ids, needs=frozenset({"sensitivity"}), progress=stages("sensitivity"))
    seen = similarities(model, sites, input_ids, num_peaks=num_peaks, progress=stages("similarity"))
    layers = [
        replace(found, sensitivity_F=stats.per_sequence("sensitivity")) for found, stats in zip(seen, felt, strict=True)
    ]
    return Redundancy(tuple(layers), input_ids.numel())


def uniqueness(model: Any, sites: Sequence[Site], input_ids: Tensor) -> float:
    """The model's uniqueness alone, without gradients. input_ids: (sequences, T)."""
    return Redundancy(tuple(similarities(model, sites, input_ids)), input_ids.numel()).uniqueness


def similarities(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    *,
    num_peaks: int = 0,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Iterator[LayerRedundancy]:
    """Each layer in order, without its sensitivity; the model is left as it was found, training mode too.

    input_ids: (sequences, T) int64, no padding.
    num_peaks: how many tokens a neuron are remembered that fire it hardest. batch_size: sequences at once.
    Raises: UserError where a layer's outputs are not finite.
    """
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise UserError(f"tokens to measure on must be of shape (sequences, T), got {tuple(input_ids.shape)}")
    with undisturbed(model):
        blocks = Blocks(model, [*list_of(model, sites[0].block)])
        site_of = {site.layer: site for site in sites}
        device = next(model.parameters()).device
        hidden = [blocks.inputs(batch_BT.to(device)) for batch_BT in input_ids.split(batch_size)]
        for layer in range(last := sites[-1].layer + 1):
            seen = _Seen(input_ids.shape[1], num_peaks)
            with ExitStack() as stack:
                if layer in site_of:
                    stack.callback(site_of[layer].tap(seen.add))
                for i, states_BTD in enumerate(hidden):
                    hidden[i] = blocks.run(layer, states_BTD)
            if layer in site_of:
                yield seen.result(layer)
            if progress:
                progress(layer + 1, last)


class _Seen:
    """Sums over the tokens of one layer, and the tokens that fired each neuron hardest."""

    def __init__(self, seq_len: int, num_peaks: int):
        self.seq_len, self.num_peaks = seq_len, num_peaks
        self.num_tokens = 0
        self.moment_FF = torch.zeros(())
        self.peaks_KF, self.tokens_KF = torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.long)

    def add(self, h: Tensor) -> None:
        """h: (B, T, F), or (B·T, F) in families that flatten before the FFN."""
        h_NF = h.to(precise(h)).flatten(0, -2)
        with full_products():
            moment_FF = in_float64(h_NF.T @ h_NF)
        self.moment_FF = self.moment_FF.add_(moment_FF) if self.num_tokens else moment_FF
        if self.num_peaks:
            self._add_peaks(h_NF.view(-1, self.seq_len, h_NF.shape[1]).abs())
        self.num_tokens += len(h_NF)

    def _add_peaks(self, size_BTF: Tensor) -> None:
        peaks_BF, places_BF = (x.cpu() for x in size_BTF.max(1))
        places_BF += self.num_tokens + self.seq_len * torch.arange(len(places_BF))[:, None]
        peaks = torch.cat([self.peaks_KF, peaks_BF]) if self.num_tokens else peaks_BF
        places = torch.cat([self.tokens_KF, places_BF]) if self.num_tokens else places_BF
        self.peaks_KF, best_KF = peaks.topk(min(self.num_peaks, len(peaks)), dim=0)
        self.tokens_KF = places.gather(0, best_KF)

    def result(self, layer: int) -> LayerRedundancy:
        if not self.moment_FF.isfinite().all():
            cure = "check the checkpoint's weights, or use a wider dtype (--dtype float32)"
            raise UserError(f"layer {layer}: neurons put out NaN or infinite values; {cure}")
        return replace(compare(self.moment_FF.cpu(), self.tokens_KF.T), layer=layer)


def compare(moment_FF: Tensor, peak_tokens_FK: Tensor | None = None) -> LayerRedundancy:
    """What the uncentred second moments Σ_n h_j h_k of one layer's neurons say; `moment_FF` is overwritten."""
    cos_FF, dead_F = cosines(moment_FF)
    width = len(cos_FF)
    redundant_F = torch.zeros(width, dtype=torch.bool)
    nearest_F = torch.full((width,), -1.0, dtype=cos_FF.dtype)
    in_range = torch.zeros(NUM_RANGES, dtype=torch.float64)
    alike_FF = torch.zeros(width, width, dtype=torch.bool)
    for rows in torch.arange(width).split(_ROWS_AT_ONCE):
        cos_RF = cos_FF[rows]
        other_RF = rows[:, None] != torch.arange(width)
        nearest_F[rows] = cos_RF.where(other_RF, -1).amax(1)
        alike_FF[rows] = (cos_RF >= ALIKE) & other_RF
        redundant_F[rows] = (alike_FF[rows] & (torch.arange(width) > rows[:, None])).any(1)
        range_RF = (cos_RF.abs() * NUM_RANGES).long().clamp_max(NUM_RANGES - 1)
        counted_RF = other_RF & ~dead_F & ~dead_F[rows, None]
        in_range += torch.stack([((range_RF == r) & counted_RF).any(1).sum() for r in range(NUM_RANGES)])
    live = max(width - int(dead_F.sum()), 1)
    peak_tokens_FK = torch.zeros(width, 0, dtype=torch.long) if peak_tokens_FK is None else peak_tokens_FK
    return LayerRedundancy(
        redundant_F, nearest_F, dead_F, tuple((in_range / live).tolist()), _clusters(alike_FF), peak_tokens_FK
    )


def cosines(moment_FF: Tensor) -> tuple[Tensor, Tensor]:
    """(cos_FF in place of the uncentred second moments, dead_F): a neuron that never fired has no direction, so 0."""
    square_F = moment_FF.diagonal().clone()
    dead_F = square_F <= _DEAD * square_F.mean()
    scale_F = square_F.rsqrt().masked_fill(dead_F, 0)
    return moment_FF.mul_(scale_F[:, None]).mul_(scale_F).clamp_(-1, 1), dead_F


def _clusters(alike_FF: Tensor) -> tuple[tuple[int, ...], ...]:
    """Connected components of two neurons or more: every neuron takes the least number that it can reach."""
    width = len(alike_FF)
    label_F = torch.arange(width)
    before_F = label_F + 1
    while not label_F.equal(before_F):
        before_F = label_F
        label_F = label_F.expand(width, width).where(alike_FF, width).amin(1).minimum(label_F)
        label_F = label_F[label_F]
    found = [(label_F == label).nonzero().flatten().tolist() for label in label_F.unique().tolist()]
    return tuple(sorted((tuple(c) for c in found if len(c) > 1), key=lambda c: (-len(c), c)))
