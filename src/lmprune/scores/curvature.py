"""How much the end loss cares about each direction of a module's output: the metric of `obs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.journal import stage_of
from ..checkpoints.shelf import Tensors
from ..precision import full_products, in_float64
from ..processes import Share
from ..progress import Progress
from ..sites.pages import pages_of
from ..sites.site import Site
from ..sites.walk import Blocks
from .passes import backward, backward_by_blocks, gradients_from_embeddings, undisturbed


def output_curvature(
    model: Any, sites: Sequence[Site], input_ids: Tensor, *, rel_damp: float = 1e-3, progress: Progress | None = None
) -> Matrices:
    """`curvature_after` each site's reader, by the site's place."""
    readers = [site.reader_linear for site in sites]
    return curvature_after(model, readers, input_ids, rel_damp=rel_damp, progress=progress)


@dataclass(frozen=True)
class Matrices(Mapping[int, Tensor]):
    """By the places of modules. found: where they lie, of a model that is read block by block on the disk: one of them
    is as large as a part of the block."""

    found: MutableMapping[str, Tensors] = field(default_factory=dict)

    def __getitem__(self, place: int) -> Tensor:
        return self.found[str(place)]["values"]

    def put(self, place: int, values: Tensor) -> None:
        self.found[str(place)] = {"values": values}

    def __iter__(self) -> Iterator[int]:
        return map(int, self.found)

    def __len__(self) -> int:
        return len(self.found)


def curvature_after(
    model: Any,
    modules: Sequence[nn.Module],
    input_ids: Tensor,
    *,
    rel_damp: float = 1e-3,
    progress: Progress | None = None,
) -> Matrices:
    """s · E[ĝ ĝᵀ] (D, D), float64, of each module by its place: which directions of its output the end loss minds.

    g is the gradient of a sequence's summed token losses there, ĝ = g / ‖g‖ and s the median of ‖g‖² (a mean over
    sequences of it). With the second moments of a reader's input it makes a Kronecker-factored empirical Fisher of the
    reader: a change Δ of a token's output raises the loss by about ½ Δᵀ (s E[ĝ ĝᵀ]) Δ. Every token counts alike: in
    E[g gᵀ] itself the few tokens with the largest gradients decide, and the choice got worse with it
    (docs/lab_notes.md).
    input_ids: (sequences, T); a few thousand tokens are enough. rel_damp: a ridge, relative to the mean diagonal.
    """
    share, (num_sequences, seq_len) = Share(input_ids), input_ids.shape
    sums: dict[int, Tensor] = {}
    seen: Counter[int] = Counter()
    stage = stage_of(model, "curvature")
    found = Matrices(stage.found)

    def watch(place: int):
        def on_gradient(grad: Tensor) -> None:
            # of the sum of token losses, not of their mean; the last token has none
            grad_ND = grad.flatten(0, -2)[:-1].float() * (seq_len - 1)
            norm_N = grad_ND.norm(dim=1, keepdim=True).clamp_min(1e-30)
            unit_ND = grad_ND / norm_N
            with full_products():
                gram_DD = in_float64(unit_ND.T @ unit_ND) * norm_N.square().median()
            sums[place] = sums[place] + gram_DD if place in sums else gram_DD
            seen[place] += 1
            if seen[place] == len(share.mine):  # one at a time is read
                mean_DD = share.total(sums.pop(place)).cpu() / (num_sequences * (seq_len - 1))
                found.put(place, _damped(mean_DD, rel_damp))

        return lambda _module, _args, out: out.register_hook(on_gradient) and None

    def attach(stack: ExitStack, inside: nn.Module) -> None:
        there = {*inside.modules()}
        for place, module in enumerate(modules):
            if module in there:
                stack.callback(module.register_forward_hook(watch(place)).remove)

    device = next(model.parameters()).device
    batches = share.mine.to(device).split(1)
    with undisturbed(model), ExitStack() as stack, torch.enable_grad():
        if (pages := pages_of(model)) is not None:
            backward_by_blocks(Blocks(model, pages.blocks), batches, attach, stage, progress=progress)
        else:
            stack.enter_context(gradients_from_embeddings(model))
            attach(stack, model)
            for done, batch_BT in enumerate(batches, start=1):
                backward(model, batch_BT)
                if progress:
                    progress(done, len(batches))
    return found


def _damped(curvature_DD: Tensor, rel_damp: float) -> Tensor:
    ridge = (rel_damp * curvature_DD.diagonal().mean()).clamp_min(1e-30)
    return curvature_DD + ridge * torch.eye(len(curvature_DD), dtype=torch.float64)
