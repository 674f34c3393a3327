"""How what a reader puts out gets into the residual stream: simply added, scaled, or behind a norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..sites.site import Site
from ..sites.walk import Blocks

#: how exactly a block must do what it is taken to do
_EXACT = 1e-2
#: of a norm's mean weight; what has less hardly gets into the stream, and is asked nothing
_SMALL = 0.05


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
    exact = bool((added - gain * out).norm() <= _EXACT * added.norm())
    return gain if exact and gain > 0 else None


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm between a reader and the stream (gemma2, gemma3, olmo2, …): `weight` (D,) times what the
    reader puts out over its root mean square."""

    site: Site
    weight_D: Tensor

    def before(
        self, h_NF: Tensor, weights_N: Tensor | None, drift_BTD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """A target in the stream, as it is before the norm: weights of tokens, and what the reader should put out more.

        To first order, and without what goes along the output itself, which the norm takes away again."""
        if weights_N is None:
            return None, None
        reader_FD, bias_D = self.site.reader_state()
        out_ND = h_NF.float() @ reader_FD.float() + (0.0 if bias_D is None else bias_D.float())
        size_N = out_ND.square().mean(1).sqrt().clamp_min(1e-6)
        small = self.weight_D.abs() < _SMALL * self.weight_D.abs().mean()
        back_D = torch.where(small, 0.0, 1 / self.weight_D)
        drift = None if drift_BTD is None else drift_BTD.float() * size_N.view(*drift_BTD.shape[:-1], 1) * back_D
        return weights_N / size_N.square(), drift


def ends_in_norm(blocks: Blocks, site: Site, states_BTD: Tensor) -> bool:
    """Whether all that the block adds of what the reader puts out is that behind a norm."""
    weight_D = norm_behind(lambda: blocks.run(site.layer, states_BTD), site)
    if weight_D is None:
        return False
    outputs: list[Tensor] = []

    def silence(_reader: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        outputs.append(out.flatten(0, -2).float())
        return torch.zeros_like(out)

    with_it = blocks.run(site.layer, states_BTD)
    handle = site.reader_linear.register_forward_hook(silence)
    try:
        added_ND = (with_it - blocks.run(site.layer, states_BTD)).flatten(0, -2).float()
    finally:
        handle.remove()
    return bool((added_ND - weight_D * _unit(outputs[0])).norm() <= _EXACT * added_ND.norm())


def norm_behind(run: Callable[[], object], site: Site) -> Tensor | None:
    """The weights (D,) of the norm that takes what the site's reader puts out; None where something else does.

    run: the block, which has the site, once."""
    outputs: list[Tensor] = []
    normed: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if module is site.reader_linear:
            outputs.append(out)
        elif outputs and args and isinstance(out, Tensor) and _same(args[0], outputs[-1]):
            normed.append(out)

    handles = [module.register_forward_hook(see) for module in site.block.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not (outputs and normed):
        return None
    unit_ND, normed_ND = _unit(outputs[0].flatten(0, -2).float()), normed[0].flatten(0, -2).float()
    weight_D = (unit_ND * normed_ND).sum(0) / unit_ND.square().sum(0).clamp_min(1e-30)
    exact = (weight_D * unit_ND - normed_ND).norm() <= _EXACT * normed_ND.norm()
    return weight_D if exact else None


def _unit(out_ND: Tensor) -> Tensor:
    return out_ND / out_ND.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def _same(given: Any, out: Tensor) -> bool:
    return isinstance(given, Tensor) and given.data_ptr() == out.data_ptr() and given.shape == out.shape
