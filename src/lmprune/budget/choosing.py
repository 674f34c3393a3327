"""From scores to kept units of sites, kind by kind: scores of unlike units are no one ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sites.address import Kind, check_apart
from ..sites.place import Place
from .selection import Scope, select

#: kinds that are rows of matrices
NEURONS: tuple[Kind, ...] = ("neurons", "expert_neurons")


def alike(sites: Sequence[Place]) -> list[Tensor]:
    """Scores by which all units are alike: what is chosen by them says how many stay of each site, in its own scope."""
    return [torch.zeros(site.count) for site in sites]


def choose(
    sites: Sequence[Place], scores: Sequence[Tensor], keep: float, *, scope: Scope, multiple_of: int = 1, seed: int = 0
) -> list[Tensor]:
    """The kept units of each site, sorted, int64: of each kind the ratio `keep`, see `selection.select`.

    multiple_of: of neurons of a layer, or of an expert, for the matrices' sake.
    Raises: UserError where a site can't do with what would be left.
    """
    kept: list[Tensor] = [torch.empty(0)] * len(sites)
    kinds: dict[Kind, None] = dict.fromkeys(site.address.kind for site in sites)
    check_apart(kinds)
    for kind in kinds:
        places = [place for place, site in enumerate(sites) if site.address.kind == kind]
        of_kind = [sites[place] for place in places]
        found = select(
            [scores[place] for place in places],
            keep,
            scope=scope,
            multiple_of=multiple_of if kind in NEURONS else 1,
            min_keep=max(site.least for site in of_kind),
            seed=seed,
            parts=[site.parts for site in of_kind],
        )
        for place, units in zip(places, found, strict=True):
            sites[place].check(units)
            kept[place] = units
    return kept
