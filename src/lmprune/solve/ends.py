"""The end of a block: how what its last reader puts out comes to the stream of hidden states."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoints.states import States
from ..sites.linears import replace_product
from ..sites.pages import here
from ..sites.site import Site
from ..sites.walk import Blocks


@dataclass(frozen=True)
class End:
    """Of a block that was run without its last reader: what entered that one, (…, F), batch by batch, before it was
    cut."""

    site: Site
    gain: float
    seam: States

    @torch.no_grad()
    def out(self, i: int, without_BTD: Tensor) -> Tensor:
        """What the block, as it now is, puts out for batch i."""
        stays, h = self.site.stays, self.seam[i]
        if stays is not None and not len(stays):
            return without_BTD
        if stays is not None:
            h = h[..., self.site.inputs_of(stays.to(h.device))]
        here(self.site.block)
        return without_BTD + self.gain * self.site.reader_linear(h).view_as(without_BTD).to(without_BTD.device)


def silenced(site: Site) -> Callable[[], None]:
    """Let the site's reader put out zeros, unread; what comes back ends it."""
    width = site.reader().shape[1]
    return replace_product(site.reader_linear, lambda h: h.new_zeros(*h.shape[:-1], width))


@torch.no_grad()
def only_adds(run: Callable[[int, Tensor], Tensor], site: Site, states_BTD: Tensor, gain: float) -> bool:
    """Whether the block puts out what it does without the site's reader, and `gain` times what that one does, but for
    rounding, which where a token's stream is large is larger than all that is added."""
    tap: list[Tensor] = []
    with ExitStack() as stack:
        stack.callback(site.tap(tap.append))
        whole_BTD = run(site.layer, states_BTD)
        stack.callback(silenced(site))
        without_BTD = run(site.layer, states_BTD)
    added_BTD = gain * site.reader_linear(tap[0]).view_as(whole_BTD).to(whole_BTD.device).float()
    off_BT = (whole_BTD.float() - without_BTD.float() - added_BTD).norm(dim=-1)
    return bool((off_BT / added_BTD.norm(dim=-1).clamp_min(1e-30)).median() <= torch.finfo(whole_BTD.dtype).eps ** 0.5)


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
