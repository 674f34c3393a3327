"""The end of a block: how what its last reader puts out comes to the stream of hidden states."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

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
def _with_and_without(
    run: Callable[[int, Tensor], Tensor], site: Site, states_BTD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the block puts out, what it does without the site's reader, and what the reader gave."""
    gave: list[Tensor] = []
    with ExitStack() as stack:
        # copies: a block may go on to change it in place
        see = site.reader_linear.register_forward_hook(lambda _reader, _args, out: gave.append(out.clone()))
        stack.callback(see.remove)
        whole_BTD = run(site.layer, states_BTD)
        stack.callback(silenced(site))
        without_BTD = run(site.layer, states_BTD)
    return whole_BTD, without_BTD, gave[0].view_as(whole_BTD).to(whole_BTD.device)


def only_adds(run: Callable[[int, Tensor], Tensor], site: Site, states_BTD: Tensor, gain: float) -> bool:
    """Whether the block puts out what it does without the site's reader, and `gain` times what that one does, but for
    rounding, which where a token's stream is large is larger than all that is added."""
    dtype = states_BTD.dtype
    whole_BTD, without_BTD, gave_BTD = (
        x.to(torch.promote_types(dtype, torch.float32)) for x in _with_and_without(run, site, states_BTD)
    )
    added_BTD = gain * gave_BTD
    off_BT = (whole_BTD - without_BTD - added_BTD).norm(dim=-1)
    return bool((off_BT / added_BTD.norm(dim=-1).clamp_min(1e-30)).median() <= torch.finfo(dtype).eps ** 0.5)


def residual_gain(blocks: Blocks, site: Site, states_BTD: Tensor) -> float | None:
    """How much of the reader's output the block adds to the stream: 1 in most families, another where it is scaled.

    None where it is not simply added (a norm stands between): the drift can't be turned into a target then.
    """
    whole_BTD, without_BTD, gave_BTD = _with_and_without(blocks.run, site, states_BTD)
    added, out = (whole_BTD - without_BTD).flatten().float(), gave_BTD.flatten().float()
    gain = float(added @ out / (out @ out).clamp_min(1e-30))
    exact = bool((added - gain * out).norm() <= 1e-2 * added.norm())
    return gain if exact and gain > 0 else None
