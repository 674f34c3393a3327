"""What each layer is asked to reproduce: its least-squares problem, block by block.

With compensation, two streams of hidden states go through the model side by side, the dense model's and the pruned
one's; what they have drifted apart by the end of a block is, in part, added to what its reader should put out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.journal import Stage
from ..checkpoints.shelf import Tensors
from ..checkpoints.states import Numbered, listed, states_of
from ..processes import Share
from ..progress import Progress
from ..sites.address import Address
from ..sites.pages import here
from ..sites.site import Site, by_layer
from ..sites.walk import Blocks, list_of
from .elimination import LeastSquares
from .ends import End, only_adds, residual_gain, silenced
from .moments import Moments

#: switches a part of a block off, and returns what switches it on again
Skip = Callable[[], Callable[[], None]]


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
    without: Mapping[int, Skip] = {},
    known: Mapping[Address, LeastSquares] = {},
    stage: Stage | None = None,
    ended: Callable[[int], None] = lambda _layer: None,
    progress: Progress | None = None,
) -> Iterator[tuple[Site, LeastSquares]]:
    """Each site, in order, with its least-squares problem; the caller may cut the site before asking for the next.

    input_ids: calibration text (sequences, T).
    sequential: what the next site sees comes from this one as the caller left it, rather than as it was.
    rel_damp, per_neuron: the ridge, see `LeastSquares.of`.
    compensation: the share, in [0, 1], of the drift of the residual stream (dense - pruned, after the block) that the
        layer is asked to make up for. 0 asks for what the dense reader puts out on the pruned inputs.
    without: a layer -> what switches off the part of its block that the pruned model no longer has.
    known: problems that the caller has from an earlier walk that was the same, so that they are not stated again.
    ended: is called with a block's number when its sites are done and what comes out of it is known.
    stage: the walk, where it may go on from blocks that were done before; the caller has made these what they became.
    """
    groups = {group[0].layer: group for group in by_layer(sites)}
    probe = max(sites, key=lambda site: (site.address.order()[-1], -site.layer))
    begin, state = (stage.done, stage.state) if stage else (0, {})
    share = Share(input_ids)
    streams = _Streams(model, probe, share, batch_size, compensation if sequential else 0.0, without, state)
    for layer in range(begin, last := max(groups) + 1):
        group = groups.get(layer, [])
        here(streams.blocks.blocks[layer])
        streams.run_dense(layer)
        # a later site of the block sees what an earlier one has become, or all are seen in one dense pass
        for together in [[site] for site in group] if sequential else [group]:
            readers = [site.reader().clone() for site in together]
            new = [site for site in together if site.address not in known]
            if sequential and new and streams.ends(new[0]):
                moments = streams.moments_at_end(layer, new[0])
            else:
                moments = streams.moments(layer, new, last=not sequential) if new or not sequential else {}
            if not new and sequential:
                streams.pass_by(layer)
            for site, reader_FD in zip(together, readers, strict=True):
                at, site.stays = site.address, None
                how = {"rel_damp": rel_damp, "per_neuron": per_neuron}
                yield site, moments.pop(at).problem(site, **how) if at in moments else known[at]
                streams.apart = streams.apart or not torch.equal(site.reader(), reader_FD)
        if sequential and layer + 1 < last:
            streams.run(layer)
        ended(layer)
        if stage:
            stage.end(streams.state)
        if progress:
            progress(layer + 1, last)


class _Streams:
    """The hidden states that enter the next block, batch by batch: `hidden`, of the model as it was cut so far, and
    where something is to be made up for, `dense`, of the model as it was.

    text: what this process reads. probe: a site of those that act last in a block, by which is seen what a block adds
    to the stream.
    apart: whether a reader was changed, so that the two differ.
    state: of streams that are taken up where they were left, what `state` gave of them.
    """

    def __init__(
        self, model: Any, probe: Site, text: Share, batch_size: int, compensation: float,
        without: Mapping[int, Skip], state: Tensors,
    ):  # fmt: skip
        self.text = text
        self.blocks = Blocks(model, [*list_of(model, probe.block)])
        device = next(model.parameters()).device
        batches = [batch_BT.to(device) for batch_BT in text.mine.split(batch_size)]
        self.blocks.learn([*batches, batches[0][:1]])
        self.without, self.compensation, self.end = without, compensation, None
        if state:
            self._take_up(state, device)
            return
        self.hidden = states_of(model, map(self.blocks.inputs, batches))
        gain = text.first(residual_gain(self.blocks, probe, self.hidden[0])) if compensation else None
        self.dense = states_of(model, self.hidden) if gain else None
        self.share = compensation / gain if gain else 0.0
        self.apart = False

    def state(self) -> Tensors:
        """What enters the next block, and what else is to be known then."""
        about = torch.tensor([self.share, self.apart, self.dense is not None], dtype=torch.float64)
        dense = [] if self.dense is None or not self.apart else self.dense
        return Numbered({"about.": [about], "hidden.": self.hidden, "dense.": dense})

    def _take_up(self, state: Tensors, device: torch.device) -> None:
        model = self.blocks.model
        self.share, apart, two = state["about.0"].tolist()
        self.apart = bool(apart)
        self.hidden = states_of(model, listed(state, device, "hidden."))
        dense = listed(state, device, "dense.") if self.apart else self.hidden
        self.dense = states_of(model, dense) if two else None

    def run_dense(self, layer: int) -> None:
        """What the dense model's block puts out, before it is cut; while the two are one, `moments` sees it."""
        self.apart = self.apart or layer in self.without
        if self.dense and self.apart:
            for i, states_BTD in enumerate(self.dense):
                self.dense[i] = self.blocks.run(layer, states_BTD)

    def run(self, layer: int) -> None:
        """Go on through the block as it now is."""
        end, self.end = self.end, None
        for i, states_BTD in enumerate(self.hidden):
            self.hidden[i] = end.out(i, states_BTD) if end else self._pruned(layer, states_BTD)
            if self.dense and not self.apart:
                self.dense[i] = self.hidden[i]

    def pass_by(self, layer: int) -> None:
        """What `moments` does of no sites: the dense model's states go on while the two are one."""
        if self.dense and not self.apart:
            for i, states_BTD in enumerate(self.hidden):
                self.dense[i] = self._pruned(layer, states_BTD)

    def _pruned(self, layer: int, states_BTD: Tensor) -> Tensor:
        """The states after the block as the pruned model has it."""
        if layer not in self.without:
            return self.blocks.run(layer, states_BTD)
        end = self.without[layer]()
        try:
            return self.blocks.run(layer, states_BTD)
        finally:
            end()

    def moments(self, layer: int, together: Sequence[Site], *, last: bool) -> dict[Address, Moments]:
        """Of each of the sites of the block. last: this pass is also the one that goes on through it."""
        found = [Moments(site) for site in together]
        with ExitStack() as stack:
            taps: list[list[Tensor]] = [[] for _ in together]
            for site, tap in zip(together, taps, strict=True):
                stack.callback(site.tap(tap.append))
            for i, states_BTD in enumerate(self.hidden):
                out_BTD = self._pruned(layer, states_BTD)
                target = self._target(i, out_BTD)
                for moments, tap in zip(found, taps, strict=True):
                    moments.add(tap.pop().flatten(0, -2), *target)
                    tap.clear()
                if last:
                    self.hidden[i] = out_BTD
        for moments in found:
            moments.add_up(self.text)
        return {moments.address: moments for moments in found}

    def ends(self, site: Site) -> bool:
        """Whether all that the site's reader puts out is added to the stream, and changes nothing else in the block."""
        if not (self.dense and self.apart) or site.address.kind != "neurons":
            return False
        return bool(self.text.first(float(only_adds(self._pruned, site, self.hidden[0][:1], self.gain))))

    @property
    def gain(self) -> float:
        """How much of what a reader puts out the stream gets."""
        return self.compensation / self.share

    def moments_at_end(self, layer: int, site: Site) -> dict[Address, Moments]:
        """`moments` of a site that ends its block, which needs not be run again for `run`.

        With m what the block puts out without the reader, d what the dense model's does, g the gain and c the
        compensation, the reader is asked for y = W0ᵀh + c/g · (d - m - g · W0ᵀh) = (1 - c) W0ᵀh + c/g · (d - m).
        """
        assert self.dense is not None
        moments, tap = Moments(site, own=1 - self.compensation), []
        self.end = End(site, self.gain, states_of(self.blocks.model, []))
        with ExitStack() as stack:
            stack.callback(site.tap(tap.append))
            stack.callback(silenced(site))
            for i, states_BTD in enumerate(self.hidden):
                self.hidden[i] = out_BTD = self._pruned(layer, states_BTD)
                self.end.seam.append(h := tap.pop())
                drift_BTD = (self.dense[i] - out_BTD) * self.share
                moments.add(h.flatten(0, -2), _token_weights(self.dense[i]), drift_BTD)
        moments.add_up(self.text)
        return {site.address: moments}

    def _target(self, i: int, out_BTD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The weights of batch i's tokens, and what the readers should put out beyond what the dense ones do."""
        if self.dense is None:
            return None, None
        if not self.apart:
            self.dense[i] = out_BTD
        drift_BTD = (self.dense[i] - out_BTD) * self.share if self.apart else None
        return _token_weights(self.dense[i]), drift_BTD


def _token_weights(states_BTD: Tensor) -> Tensor:
    """(N,): 1 / mean square of the residual stream. Whoever reads the stream normalises it first, so an error matters
    relative to its size; unweighted, the few tokens with massive activations would be all that counts."""
    return 1 / states_BTD.flatten(0, -2).float().square().mean(1).clamp_min(1e-12)
