"""What could be removed from a model, kind by kind: how many units, what they weigh, what they cache a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..budget.costs import weight_curve
from ..checkpoints.shim import gone_in, is_gone
from ..errors import UserError
from ..sites.address import KINDS, Kind
from ..sites.families import attention_of, family_of
from ..sites.find import blocks_of, find_sites
from ..sites.heads import HeadCounts, has_one_group, head_counts
from ..sites.place import Place


def unit_kinds(model: Any, *, params: int, cache_itemsize: int) -> list[dict[str, Any]]:
    """A record a kind of unit (docs/json.md): those that the model has, and for the others the reason.

    params: of the whole model. cache_itemsize: bytes of a number in the key/value cache.
    """
    cached = cached_numbers(model)
    return [_kind(model, kind, params, cached, cache_itemsize) for kind in KINDS]


def cached_numbers(model: Any, *, by_transformers: bool = False) -> list[int] | None:
    """How many numbers each block's attention caches a token; None where the model's heads are not known.

    by_transformers: in its code, which caches more of some families; else as many as there are.
    """
    if (counts := _heads(model)) is None:
        return None
    repeats = by_transformers and getattr(model.config, attention_of(model.config).repeats, False)
    pairs = [0 if each is None else (each.queries if repeats else each.groups) * each.dim for each in counts]
    return [2 * each for each in pairs]


def mixed_numbers(model: Any) -> int:
    """How many numbers the attentions of all blocks put together for a token: as many as their query heads hold."""
    if counts := _heads(model):
        return sum(each.queries * each.dim for each in counts if each is not None)
    gone = sum(what == "attention" for what in gone_in(model).values())
    return (model.config.num_hidden_layers - gone) * model.config.hidden_size  # whose heads can't be cut


def _heads(model: Any) -> list[HeadCounts | None] | None:
    """Of each block, None where its attention is gone; None where the model's heads are not known."""
    config = model.config
    try:
        spec, blocks = attention_of(config), blocks_of(model, family_of(config))
        return [None if is_gone(block, spec.o) else head_counts(block, spec) for block in blocks]
    except (UserError, AttributeError):
        return None


def _kind(model: Any, kind: Kind, params: int, cached: Sequence[int] | None, cache_itemsize: int) -> dict[str, Any]:
    nothing = dict.fromkeys(("count", "params", "share", "cache_bytes_per_token"))
    try:
        places = find_sites(model, [kind])
    except UserError as error:
        return {"kind": kind, **nothing, "why_not": str(error)}
    weight = int(sum(weight_curve(place).costs[-1] for place in places))
    return {
        "kind": kind,
        "count": sum(place.count for place in places),
        "params": weight,
        "share": weight / params,
        "cache_bytes_per_token": None if cached is None else cache_itemsize * _saved(model, kind, places, cached),
        "why_not": None,
    }


def _saved(model: Any, kind: Kind, places: Sequence[Place], cached: Sequence[int]) -> int:
    """Numbers a token that would not be cached without the units of a kind."""
    if kind in ("layers", "attentions"):
        return sum(cached)
    if kind == "heads" and not has_one_group(model.config):  # with one group the key and the value stay
        return sum(cached[place.address.layer] for place in places)
    return 0
