"""How much the end loss cares about each direction of a layer's output: the metric of `obs`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from .ffn import FFN
from .statistics import Progress, backward, gradients_from_embeddings, undisturbed


def output_curvature(
    model: Any, ffns: Sequence[FFN], input_ids: Tensor, *, rel_damp: float = 1e-3, progress: Progress | None = None
) -> list[Tensor]:
    """E[g gᵀ] (D, D) of each layer, float64, g the gradient of a sequence's summed token losses at `down`'s output.

    With the second moments of the seam it makes the Kronecker-factored (empirical Fisher) curvature of the reader: for
    a change Δ of the output, the loss of a token rises by about ½ Δᵀ E[g gᵀ] Δ.
    input_ids: (sequences, T); a few thousand tokens are enough. rel_damp: a ridge, relative to the mean diagonal.
    """
    num_sequences, seq_len = input_ids.shape
    sums: dict[int, Tensor] = {}

    def watch(layer: int):
        def on_gradient(grad: Tensor) -> None:
            grad_ND = grad.flatten(0, -2).float() * (seq_len - 1)  # of the sum of token losses, not of their mean
            gram_DD = (grad_ND.T @ grad_ND).double().cpu()
            sums[layer] = sums[layer] + gram_DD if layer in sums else gram_DD

        return lambda _reader, _args, out: out.register_hook(on_gradient) and None

    with undisturbed(model), ExitStack() as stack, torch.enable_grad():
        stack.enter_context(gradients_from_embeddings(model))
        for layer, ffn in enumerate(ffns):
            stack.callback(ffn.down.register_forward_hook(watch(layer)).remove)
        for done, batch_BT in enumerate(input_ids.to(next(model.parameters()).device).split(1), start=1):
            backward(model, batch_BT)
            if progress:
                progress(done, num_sequences)
    return [_damped(gram / (num_sequences * (seq_len - 1)), rel_damp) for _, gram in sorted(sums.items())]


def _damped(curvature_DD: Tensor, rel_damp: float) -> Tensor:
    ridge = (rel_damp * curvature_DD.diagonal().mean()).clamp_min(1e-30)
    return curvature_DD + ridge * torch.eye(len(curvature_DD), dtype=torch.float64)
