"""Mixtures whose layers are unlike, and runtimes that have none such."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from ..errors import UserError
from ..sites.expert_neurons import ExpertNeurons
from ..sites.find import find_sites
from ..sites.mixtures import mixture_of


def one_shape(model: Any, who: str) -> tuple[int, int]:
    """How many experts a layer of the mixture has, and how wide they are.

    Raises: UserError where layers differ, or where experts alone are narrower and the config's field for their width
    is also about other layers. who: has one number for all.
    """
    neurons = cast(list[ExpertNeurons], find_sites(model, ("expert_neurons",)))
    count = _one({site.parts for site in neurons}, f"{who} has one number of experts", "them")
    width = _one({site.width for site in neurons}, f"{who} has one width of experts", "their neurons")
    if hasattr(model.config, "lmprune"):
        raise UserError(
            f"{who} takes {mixture_of(model.config).width_key} for the width of experts and of shared experts or dense "
            f"layers alike, and here the experts alone were cut to {width}; prune whole experts (--units experts)"
        )
    return count, width


def _one(numbers: Iterable[int], has: str, what: str) -> int:
    first, *others = sorted(numbers)
    if others:
        told = ", ".join(map(str, (first, *others)))
        raise UserError(f"{has} for all layers, and here layers have {told}; prune {what} with --scope local")
    return first
