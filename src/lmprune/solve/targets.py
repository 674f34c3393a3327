"""What each layer is asked to reproduce: its least-squares problem, block by block.

With compensation, two streams of hidden states go through the model side by side, the dense model's and the pruned
one's; what they have drifted apart by the end of a block is, in part, added to what its reader should put out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..progress import Progress
from ..sites.ffn import FFN
from ..sites.walk import Blocks
from .elimination import LeastSquares


def layer_problems(
    model: Any,
    ffns: Sequence[FFN],
    input_ids: Tensor,
    *,
    sequential: bool,
    rel_damp: float,
    per_neuron: bool = False,
    compensation: float = 0.0,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Iterator[tuple[FFN, LeastSquares]]:
    """Each layer, in order, with its least-squares problem; the caller may cut the layer before asking for the next.

    input_ids: calibration text (sequences, T).
    sequential: what the next block sees comes from the layer as the caller left it, rather than as it was.
    rel_damp, per_neuron: the ridge, see `LeastSquares.of`.
    compensation: the share, in [0, 1], of the drift of the residual stream (dense - pruned, after the block) that the
        layer is asked to make up for. 0 asks for what the dense reader puts out on the pruned inputs.
    """
    blocks = Blocks(model, [ffn.block for ffn in ffns])
    device = next(model.parameters()).device
    hidden = [blocks.inputs(batch_BT.to(device)) for batch_BT in input_ids.split(batch_size)]
    gain = residual_gain(blocks, ffns[0], hidden[0]) if sequential and compensation else None
    dense = list(hidden) if gain else None
    apart = False  # whether a reader was changed, so that the two streams differ
    for layer, ffn in enumerate(ffns):
        moments, reader_FD = Moments(ffn), ffn.reader().clone()
        with _tapped(ffn) as tap:
            for i, states_BTD in enumerate(hidden):
                if dense and apart:
                    dense[i] = blocks.run(layer, dense[i])
                out_BTD = blocks.run(layer, states_BTD)
                if dense and gain:
                    dense[i] = dense[i] if apart else out_BTD
                    drift_BTD = (dense[i] - out_BTD) * (compensation / gain) if apart else None
                    moments.add(tap.pop(), _token_weights(dense[i]), drift_BTD)
                else:
                    moments.add(tap.pop())
                tap.clear()
                if not sequential:
                    hidden[i] = out_BTD
        yield ffn, moments.problem(ffn, rel_damp=rel_damp, per_neuron=per_neuron)
        apart = apart or not torch.equal(ffn.reader(), reader_FD)
        if sequential and layer + 1 < len(ffns):
            for i, states_BTD in enumerate(hidden):
                hidden[i] = blocks.run(layer, states_BTD)
        if progress:
            progress(layer + 1, len(ffns))


class Moments:
    """Weighted second moments over tokens of one layer's neuron outputs, with a row of ones for the reader's bias."""

    def __init__(self, ffn: FFN):
        self.pinned = int(ffn.reader_bias() is not None)
        size, width = ffn.width + self.pinned, ffn.reader().shape[1]
        self.weight = 0.0
        self.sum_FF = torch.zeros(size, size, dtype=torch.float64)
        self.drift_FD = torch.zeros(size, width, dtype=torch.float64)

    def add(self, h_NF: Tensor, weights_N: Tensor | None = None, drift_BTD: Tensor | None = None) -> None:
        """weights_N: of the tokens, 1 if None.

        drift_BTD: what the reader should put out beyond what the dense one does on these inputs.
        """
        x_NF = h_NF.float()
        weights_N = x_NF.new_ones(len(x_NF)) if weights_N is None else weights_N
        if self.pinned:
            x_NF = torch.cat([x_NF, x_NF.new_ones(len(x_NF), 1)], dim=1)
        weighted_FN = (x_NF * weights_N[:, None]).T
        self.weight += float(weights_N.sum())
        self.sum_FF += (weighted_FN @ x_NF).cpu()
        if drift_BTD is not None:
            self.drift_FD += (weighted_FN @ drift_BTD.flatten(0, -2).float()).cpu()

    def problem(self, ffn: FFN, *, rel_damp: float, per_neuron: bool) -> LeastSquares:
        moment_FF = self.sum_FF / self.weight
        reader_FD = ffn.reader().detach().double().cpu()
        if (bias_D := ffn.reader_bias()) is not None:
            reader_FD = torch.cat([reader_FD, bias_D.detach().double().cpu()[None]])
        cross_FD = moment_FF @ reader_FD + self.drift_FD / self.weight
        problem = LeastSquares.of(
            moment_FF, cross_FD, reader_FD, rel_damp=rel_damp, per_neuron=per_neuron, pinned=self.pinned
        )
        return replace(problem, drifted=bool(self.drift_FD.any()))


def _token_weights(states_BTD: Tensor) -> Tensor:
    """(N,): 1 / mean square of the residual stream. Whoever reads the stream normalises it first, so an error matters
    relative to its size; unweighted, the few tokens with massive activations would be all that counts."""
    return 1 / states_BTD.flatten(0, -2).float().square().mean(1).clamp_min(1e-12)


def residual_gain(blocks: Blocks, ffn: FFN, states_BTD: Tensor) -> float | None:
    """How much of `down`'s output the block adds to the stream: 1 in most families, another number where it is scaled.

    None where it is not simply added (a norm stands between): the drift can't be turned into a target for `down` then.
    """

    def silence(_reader: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        outputs.append(out.flatten().float())
        return torch.zeros_like(out)

    outputs: list[Tensor] = []
    with_ffn = blocks.run(ffn.layer, states_BTD)
    handle = ffn.down.register_forward_hook(silence)
    try:
        added = (with_ffn - blocks.run(ffn.layer, states_BTD)).flatten().float()
    finally:
        handle.remove()
    out = outputs[0]
    gain = float(added @ out / (out @ out).clamp_min(1e-30))
    exact = bool((added - gain * out).norm() <= 1e-2 * added.norm())
    return gain if exact and gain > 0 else None


@contextmanager
def _tapped(ffn: FFN) -> Iterator[list[Tensor]]:
    """What enters `down`, one tensor (N, F) a call."""
    seen: list[Tensor] = []
    handle = ffn.down.register_forward_pre_hook(lambda _reader, args: seen.append(args[0].flatten(0, -2)))
    try:
        yield seen
    finally:
        handle.remove()
