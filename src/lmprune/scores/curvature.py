"""How much the end loss cares about each direction of a module's output: the metric of `obs`."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..checkpoints.rooms import scratch
from ..precision import full_products, in_float64
from ..progress import Progress
from ..sites.pages import pages_of
from ..sites.site import Site
from ..sites.walk import Blocks
from .passes import backward, backward_by_blocks, gradients_from_embeddings, undisturbed


def output_curvature(
    model: Any, sites: Sequence[Site], input_ids: Tensor, *, rel_damp: float = 1e-3, progress: Progress | None = None
) -> Matrices:
    """`curvature_after` each site's reader, by the site's place; of a model that is read block by block they are on the
    disk, one of them as large as a part of the block."""
    readers = [site.reader_linear for site in sites]
    into = Shelf() if pages_of(model) else None
    return curvature_after(model, readers, input_ids, rel_damp=rel_damp, into=into, progress=progress)


class Shelf:
    """Matrices that lie on the disk by their numbers, until nobody knows of them any more."""

    def __init__(self) -> None:
        life = ExitStack()
        self.folder, self.numbers = life.enter_context(scratch("curvature")), dict[int, Path]()
        weakref.finalize(self, life.close)

    def __setitem__(self, number: int, values: Tensor) -> None:
        self.numbers[number] = self.folder / f"{number}.safetensors"
        save_file({"values": values}, self.numbers[number])

    def __getitem__(self, number: int) -> Tensor:
        return load_file(self.numbers[number])["values"]


#: by the places of modules
Matrices = dict[int, Tensor] | Shelf


def curvature_after(
    model: Any,
    modules: Sequence[nn.Module],
    input_ids: Tensor,
    *,
    rel_damp: float = 1e-3,
    into: Matrices | None = None,
    progress: Progress | None = None,
) -> Matrices:
    """s · E[ĝ ĝᵀ] (D, D), float64, of each module by its place: which directions of its output the end loss minds.

    g is the gradient of a sequence's summed token losses there, ĝ = g / ‖g‖ and s the median of ‖g‖² (a mean over
    sequences of it). With the second moments of a reader's input it makes a Kronecker-factored empirical Fisher of the
    reader: a change Δ of a token's output raises the loss by about ½ Δᵀ (s E[ĝ ĝᵀ]) Δ. Every token counts alike: in
    E[g gᵀ] itself the few tokens with the largest gradients decide, and the choice got worse with it
    (docs/lab_notes.md).
    input_ids: (sequences, T); a few thousand tokens are enough. rel_damp: a ridge, relative to the mean diagonal.
    into: what the matrices are put into as they are complete; a dictionary if None.
    """
    num_sequences, seq_len = input_ids.shape
    sums: dict[int, Tensor] = {}
    seen: Counter[int] = Counter()
    found: Matrices = {} if into is None else into

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
            if seen[place] == num_sequences:  # one at a time is read
                found[place] = _damped(sums.pop(place).cpu() / (num_sequences * (seq_len - 1)), rel_damp)

        return lambda _module, _args, out: out.register_hook(on_gradient) and None

    def attach(stack: ExitStack) -> None:
        for place, module in enumerate(modules):
            stack.callback(module.register_forward_hook(watch(place)).remove)

    device = next(model.parameters()).device
    batches = input_ids.to(device).split(1)
    with undisturbed(model), ExitStack() as stack, torch.enable_grad():
        if (pages := pages_of(model)) is not None:
            backward_by_blocks(Blocks(model, pages.blocks), batches, attach, progress=progress)
        else:
            stack.enter_context(gradients_from_embeddings(model))
            attach(stack)
            for done, batch_BT in enumerate(batches, start=1):
                backward(model, batch_BT)
                if progress:
                    progress(done, num_sequences)
    return found


def _damped(curvature_DD: Tensor, rel_damp: float) -> Tensor:
    ridge = (rel_damp * curvature_DD.diagonal().mean()).clamp_min(1e-30)
    return curvature_DD + ridge * torch.eye(len(curvature_DD), dtype=torch.float64)
