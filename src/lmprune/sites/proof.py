"""The proof, on a model itself, that an FFNSpec describes its feed-forward layers: mask = cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.shim import count_of, set_count
from ..errors import UserError
from .linears import IN_NAMES, OUT_NAMES
from .masks import masked
from .site import Site


@contextmanager
def trial_cut(sites: Sequence[Site], kept: Sequence[Tensor]) -> Iterator[None]:
    """Cut for the length of a `with` block; afterwards the very same parameters are back."""
    modules = [m for site in sites for m in site.linears]
    before: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = [
        (m, dict(m._parameters), {n: getattr(m, n) for n in (*OUT_NAMES, *IN_NAMES) if hasattr(m, n)}) for m in modules
    ]
    counted = [(module, name, count_of(module, name)) for site in sites for module, name in site.scaled]
    try:
        for site, indices in zip(sites, kept, strict=True):
            site.keep(indices)
        yield
    finally:
        for module, parameters, sizes in before:
            module._parameters.update(parameters)
            for name, size in sizes.items():
                setattr(module, name, size)
        for module, name, value in counted:
            set_count(module, name, value)


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
