"""A stock transformers checkpoint at any price: layers are padded to one width with neurons that do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import shim
from ..checkpoints.shrinking import record_shapes, stock_width
from ..errors import UserError
from ..sites.families import family_of
from ..sites.site import Site
from . import Order
from .folder import save_model
from .gaps import refuse_gaps

#: what the width becomes a multiple of: vector units and quantised blocks take that many
MULTIPLE = 32


def write(order: Order, folder: Path) -> dict[str, Any]:
    """Raises: UserError where the stock class could not hold the model even then."""
    refuse_gaps(order.model, "a stock transformers class")
    before = _num_parameters(order.model)
    width = make_uniform(order.model, order.ffns)
    added = _num_parameters(order.model) - before
    save_model(order, folder)
    note = f"padded to {width} neurons a layer" if added else f"all layers have {width} neurons: nothing was padded"
    cost = f", which adds {added:,} parameters that do nothing ({added / before:.1%})" if added else ""
    return {"width": width, "params_added": added, "notes": [note + cost]}


def make_uniform(model: Any, ffns: Sequence[Site]) -> int:
    """Pad every layer to the widest one's width, up to a multiple of MULTIPLE where they differ; return that width.

    Where the family hard-codes the width, it is that. The model's outputs stay the same.
    """
    widths = {ffn.width for ffn in ffns}
    width = stock_width(model, family_of(model.config))
    if width is None:
        width = max(widths) if len(widths) == 1 else -(-max(widths) // MULTIPLE) * MULTIPLE
    for ffn in ffns:
        ffn.pad(width)
    record_shapes(model)
    if hasattr(model.config, "lmprune"):
        raise UserError(
            f"{shim.stock_class(type(model)).__name__} has no place for the bias that pruning gave to "
            f"{ffns[0].what}; prune with a method without bias compensation (not flap)"
        )
    return width


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
