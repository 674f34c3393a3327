"""A stock transformers checkpoint at any price: layers are padded to one width, and to one number of heads, with units
that do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.shrinking import head_sites, record_shapes, stock_model
from ..errors import UserError
from ..sites.families import family_of
from ..sites.find import find_sites
from ..sites.mixtures import is_mixture
from ..sites.pages import done_with, here
from ..sites.site import Site
from . import Order
from .folder import save_model
from .gaps import refuse_gaps
from .head_counts import heads_by_layer
from .unlike import one_shape

#: what the width becomes a multiple of: vector units and quantised blocks take that many
MULTIPLE = 32


def write(order: Order, folder: Path) -> dict[str, Any]:
    """Raises: UserError where the stock class could not hold the model even then."""
    check(order.model, order.ffns)
    if is_mixture(order.model.config):
        return _mixture(order, folder)
    before, counts_before = _num_parameters(order.model), _counts(order)
    make_uniform(order.model, order.ffns)
    for ffn in order.ffns:
        done_with(ffn.block)
    added, counts = _num_parameters(order.model) - before, _counts(order)
    save_model(order, folder)
    have = {kind: f"{max(counts[kind])} {kind}" for kind in counts}
    padded = " and ".join(have[kind] for kind in counts if counts[kind] != counts_before[kind])
    note = f"padded to {padded} a layer" if added else f"all layers have {have['neurons']}: nothing was padded"
    cost = f", which adds {added:,} parameters that do nothing ({added / before:.1%})" if added else ""
    widest, most = (max(each) for each in counts.values())
    return {"width": widest, "heads": most, "params_added": added, "notes": [note + cost]}


def _mixture(order: Order, folder: Path) -> dict[str, Any]:
    """As it is, where the stock class holds it: an expert that does nothing can't be added, for it would be chosen."""
    record_shapes(order.model)
    one_shape(order.model, "a stock transformers class")
    save_model(order, folder)
    return {"width": None, "heads": None, "params_added": 0, "notes": ["all layers are alike: nothing was padded"]}


def _counts(order: Order) -> dict[str, set[int]]:
    """How many neurons, and query heads, the layers have."""
    heads = heads_by_layer(order.model).values()
    return {"neurons": {ffn.width for ffn in order.ffns}, "heads": {counts.queries for counts in heads}}


def make_uniform(model: Any, ffns: Sequence[Site]) -> None:
    """Pad every layer to the widest one's width, up to a multiple of MULTIPLE where they differ, and to the heads of
    the one that has most, or the next number that the stock class can have.

    Where the family hard-codes the width or the heads, it is those. The model's outputs stay the same.
    """
    spec, stock = family_of(model.config), stock_model(model)
    theirs, widths = find_sites(stock, spec=spec)[0], {ffn.width for ffn in ffns}
    width = max(widths) if len(widths) == 1 else -(-max(widths) // MULTIPLE) * MULTIPLE
    for ffn in ffns:
        here(ffn.block)
        ffn.pad(width if spec.width_key else theirs.count)
    record_shapes(model)
    heads = [site.count for site in head_sites(model, spec)]
    most = head_sites(stock, spec)[0].count if heads else 0
    for number in range(max(heads, default=0), most + 1):
        if not hasattr(model.config, "lmprune"):
            return
        for site in head_sites(model, spec):
            here(site.block)
            site.pad(number)
        record_shapes(model)
    if hasattr(model.config, "lmprune"):
        raise UserError(f"{type(stock).__name__} has no place for this model's shapes even so; use --to onnx")


def check(model: Any, ffns: Sequence[Site]) -> None:
    """Raises: UserError where the stock class has no such layers, or no place for a bias, however it is padded."""
    refuse_gaps(model, "a stock transformers class")
    if is_mixture(model.config):
        return
    spec, stock = family_of(model.config), stock_model(model)
    sites = [*ffns, *head_sites(model, spec)], [*find_sites(stock, spec=spec), *head_sites(stock, spec)]
    for site, own in zip(*sites, strict=True):
        _check_bias(site, own, type(stock).__name__)


def elsewhere(model: Any, ffns: Sequence[Site]) -> str:
    """Where a dense model goes that vLLM has no place for."""
    try:
        check(model, ffns)
    except UserError:
        return "use --to onnx"
    return "use --to hf-uniform"


def _check_bias(site: Site, own: Site, who: str) -> None:
    """Raises: UserError where the stock class has no place for a bias."""
    if site.reader_bias() is not None and own.reader_bias() is None:
        raise UserError(
            f"{who} has no place for the bias that pruning gave to {site.what}; "
            "prune with a method without bias compensation (not flap)"
        )


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
