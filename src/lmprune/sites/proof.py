"""The proof, on a model itself, that an FFNSpec describes its feed-forward layers: mask = cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .masks import masked
from .place import Place
from .site import Site


@contextmanager
def trial_cut(sites: Sequence[Place], kept: Sequence[Tensor]) -> Iterator[None]:
    """Cut for the length of a `with` block; afterwards the very same parameters are back."""
    modules = dict.fromkeys(module for site in sites for module in site.modules)
    before = [(module, *_held(module)) for module in modules]
    try:
        for site, indices in zip(sites, kept, strict=True):
            site.keep(indices)
        yield
    finally:
        for module, attributes, tables in before:
            module.__dict__.clear()
            module.__dict__.update(attributes | tables)


#: where a module has what is no plain attribute of it
_TABLES = ("_parameters", "_buffers", "_modules")


def _held(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module's attributes, and its tables of parameters, buffers and submodules, as they are now."""
    return dict(module.__dict__), {name: dict(module.__dict__[name]) for name in _TABLES}


def check_ffns(model: nn.Module, sites: Sequence[Site], *, seed: int = 0) -> None:
    """Prove on the model itself that masking at the seam equals the cut; for specs that no test has covered.

    Raises: UserError where the two differ, that is where the spec does not describe the model's FFN.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(site.count, generator=generator) < 0.5 for site in sites]
    for mask in masks:
        mask[0] = True
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    input_ids = torch.randint(0, vocabulary, (1, 16), generator=generator).to(device)
    with torch.no_grad():
        dense = model(input_ids).logits
        with masked(sites, masks):
            by_mask = model(input_ids).logits
        try:
            with trial_cut(sites, [mask.nonzero().flatten() for mask in masks]):
                by_cut = model(input_ids).logits
        except (RuntimeError, IndexError) as error:
            raise UserError(f"the FFN that was named can't be cut ({error}); check up, gate and down") from None
    scale = dense.float().std()
    if (by_mask - by_cut).abs().max() > 1e-2 * scale or (by_mask - dense).abs().max() < 1e-4 * scale:
        raise UserError(
            "the FFN that was named does not behave like one: masking neurons at the input of `down` and cutting "
            "them give different logits (or no difference to the dense model); is a gate missing from --ffn?"
        )
