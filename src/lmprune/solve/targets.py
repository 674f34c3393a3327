"""What each layer is asked to reproduce: its least-squares problem, block by block.

With compensation, two streams of hidden states go through the model side by side, the dense model's and the pruned
one's; what they have drifted apart by the end of a block is, in part, added to what its reader should put out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..progress import Progress
from ..sites.site import Site, by_layer
from ..sites.walk import Blocks
from .elimination import LeastSquares


def layer_problems(
    model: Any,
    sites: Sequence[Site],
    input_ids: Tensor,
    *,
    sequential: bool,
    rel_damp: float,
    per_neuron: bool = False,
    compensation: float = 0.0,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Iterator[tuple[Site, LeastSquares]]:
    """Each site, in order, with its least-squares problem; the caller may cut the site before asking for the next.

    input_ids: calibration text (sequences, T).
    sequential: what the next site sees comes from this one as the caller left it, rather than as it was.
    rel_damp, per_neuron: the ridge, see `LeastSquares.of`.
    compensation: the share, in [0, 1], of the drift of the residual stream (dense - pruned, after the block) that the
        layer is asked to make up for. 0 asks for what the dense reader puts out on the pruned inputs.
    """
    layers = by_layer(sites)
    blocks = Blocks(model, [group[0].block for group in layers])
    device = next(model.parameters()).device
    hidden = [blocks.inputs(batch_BT.to(device)) for batch_BT in input_ids.split(batch_size)]
    gain = residual_gain(blocks, layers[0][0], hidden[0]) if sequential and compensation else None
    dense = list(hidden) if gain else None
    apart = False  # whether a reader was changed, so that the two streams differ
    for layer, group in enumerate(layers):
        if dense and apart:
            for i, states_BTD in enumerate(dense):
                dense[i] = blocks.run(layer, states_BTD)
        # a later site of the block sees what an earlier one has become, or all are seen in one dense pass
        for together in [[site] for site in group] if sequential else [group]:
            readers = [site.reader().clone() for site in together]
            moments = [Moments(site) for site in together]
            with ExitStack() as stack:
                taps = [stack.enter_context(_tapped(site)) for site in together]
                for i, states_BTD in enumerate(hidden):
                    out_BTD = blocks.run(layer, states_BTD)
                    weights_N = drift_BTD = None
                    if dense and gain:
                        dense[i] = dense[i] if apart else out_BTD
                        weights_N = _token_weights(dense[i])
                        drift_BTD = (dense[i] - out_BTD) * (compensation / gain) if apart else None
                    for seen, tap in zip(moments, taps, strict=True):
                        seen.add(tap.pop(), weights_N, drift_BTD)
                        tap.clear()
                    if not sequential:
                        hidden[i] = out_BTD
            for site, seen, reader_FD in zip(together, moments, readers, strict=True):
                yield site, seen.problem(site, rel_damp=rel_damp, per_neuron=per_neuron)
                apart = apart or not torch.equal(site.reader(), reader_FD)
        if sequential and layer + 1 < len(layers):
            for i, states_BTD in enumerate(hidden):
                hidden[i] = blocks.run(layer, states_BTD)
        if progress:
            progress(layer + 1, len(layers))


class Moments:
    """Weighted second moments over tokens of one layer's neuron outputs, with a row of ones for the reader's bias."""

    def __init__(self, site: Site):
        self.pinned = int(site.reader_bias() is not None)
        size, width = site.width + self.pinned, site.reader().shape[1]
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

    def problem(self, site: Site, *, rel_damp: float, per_neuron: bool) -> LeastSquares:
        moment_FF = self.sum_FF / self.weight
        reader_FD = site.reader().detach().double().cpu()
        if (bias_D := site.reader_bias()) is not None:
            reader_FD = torch.cat([reader_FD, bias_D.detach().double().cpu()[None]])
        cross_FD = moment_FF @ reader_FD + self.drift_FD / self.weight
        problem = LeastSquares.of(
            moment_FF,
            cross_FD,
            reader_FD,
            rel_damp=rel_damp,
            per_neuron=per_neuron,
            pinned=self.pinned,
            size=site.size,
        )
        return replace(problem, drifted=bool(self.drift_FD.any()))


def _token_weights(states_BTD: Tensor) -> Tensor:
    """(N,): 1 / mean square of the residual stream. Whoever reads the stream normalises it first, so an error matters
    relative to its size; unweighted, the few tokens with massive activations would be all that counts."""
    return 1 / states_BTD.flatten(0, -2).float().square().mean(1).clamp_min(1e-12)


def residual_gain(blocks: Blocks, site: Site, states_BTD: Tensor) -> float | None:
    """How much of the reader's output the block adds to the stream: 1 in most families, another where it is scaled.

    None where it is not simply added (a norm stands between): the drift can't be turned into a target then.
    """

    def silence(_reader: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        outputs.append(out.flatten().float())
        return torch.zeros_like(out)

    outputs: list[Tensor] = []
    with_it = blocks.run(site.layer, states_BTD)
    handle = site.reader_linear.register_forward_hook(silence)
    try:
        added = (with_it - blocks.run(site.layer, states_BTD)).flatten().float()
    finally:
        handle.remove()
    out = outputs[0]
    gain = float(added @ out / (out @ out).clamp_min(1e-30))
    exact = bool((added - gain * out).norm() <= 1e-2 * added.norm())
    return gain if exact and gain > 0 else None


@contextmanager
def _tapped(site: Site) -> Iterator[list[Tensor]]:
    """What enters the reader, one tensor (N, F) a call."""
    seen: list[Tensor] = []
    handle = site.reader_linear.register_forward_pre_hook(lambda _reader, args: seen.append(args[0].flatten(0, -2)))
    try:
        yield seen
    finally:
        handle.remove()
