"""From scores to kept units of sites, kind by kind: scores of unlike units are no one ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..sites.address import Address, Kind, check_apart
from ..sites.place import Place
from ..sites.site import Site
from .by_cost import counts_by_cost
from .keeps import Keep, check_reachable, keep_of
from .selection import Descent, Scope, check_multiple_of, select

#: kinds that are rows of matrices
NEURONS: tuple[Kind, ...] = ("neurons", "expert_neurons")


def alike(sites: Sequence[Place]) -> list[Tensor]:
    """Scores by which all units are alike: what is chosen by them says how many stay of each site, in its own scope."""
    return [torch.zeros(site.count) for site in sites]


def choose(
    sites: Sequence[Place], scores: Sequence[Tensor], keep: Keep, *, scope: Scope, multiple_of: int = 1, seed: int = 0,
    descent: Descent | None = None,
) -> list[Tensor]:  # fmt: skip
    """The kept units of each site, sorted, int64: of each kind its ratio, see `selection.select`.

    multiple_of: of neurons of a layer, or of an expert, for the matrices' sake. descent: see `selection.select`.
    Raises: UserError where a site can't do with what would be left.
    """
    kept: list[Tensor] = [torch.empty(0)] * len(sites)
    check_apart(kinds_of(sites))
    for kind in kinds_of(sites):
        places = [place for place, site in enumerate(sites) if site.address.kind == kind]
        of_kind = [sites[place] for place in places]
        found = select(
            [scores[place] for place in places],
            keep_of(keep, kind),
            scope=scope,
            multiple_of=multiple_for(kind, multiple_of),
            min_keep=max(site.least for site in of_kind),
            seed=seed,
            parts=[site.parts for site in of_kind],
            descent=descent.of(places) if descent else None,
        )
        for place, units in zip(places, found, strict=True):
            sites[place].check(units)
            kept[place] = units
    return kept


def counts_of(
    sites: Sequence[Place], errors: Sequence[Tensor], keep: Keep, *, multiple_of: int = 1, seed: int = 0,
    descent: Descent | None = None,
) -> list[int]:  # fmt: skip
    """How many units stay of each site where what its loss costs the model is known, in one measure for all kinds.

    With one ratio for several kinds, `keep` is the share of all their parameters, and all units are ranked by error
    per parameter; otherwise each kind is ranked by itself.
    """
    kinds = kinds_of(sites)
    if len(kinds) == 1 or isinstance(keep, Mapping):
        how = {"multiple_of": multiple_of, "seed": seed}
        return [len(k) for k in choose(sites, errors, keep, scope="global", **how, descent=descent)]
    assert descent is None, "who comes down little by little has a ratio for each kind"
    return counts_by_cost(
        errors,
        [site.params for site in sites],
        keep,
        least=[site.least for site in sites],
        multiples=[multiple_for(site.address.kind, multiple_of) for site in sites],
        seed=seed,
    )


def check_counts(sites: Sequence[Place], keep: Keep, scope: Scope) -> None:
    """Raises: UserError where units are so few that no number of them, the same in every layer, is near the ratio, or
    none can go."""
    if all(site.count <= site.least for site in sites):
        raise UserError(
            f"no {' or '.join(kinds_of(sites))} can go: each layer has only what it needs; name other --units"
        )
    for kind in kinds_of(sites):
        places = [site for site in sites if site.address.kind == kind]
        if kind not in NEURONS and (scope == "local" or len(places) == 1):
            check_reachable(keep_of(keep, kind), [site.count for site in places], kind, one_site=len(places) == 1)


def check_widths(sites: Sequence[Place], keep: Keep, multiple_of: int) -> None:
    """Raises: UserError where no layer could lose a neuron by such a multiple."""
    check_multiple_of(multiple_of, 1, ())
    for kind in kinds_of(sites):
        if kind in NEURONS:
            widths = [site.count // site.parts for site in sites if site.address.kind == kind]
            check_multiple_of(multiple_of, keep_of(keep, kind), widths)


def multiple_for(kind: Kind, multiple_of: int) -> int:
    """What the counts of a kind are rounded to."""
    return multiple_of if kind in NEURONS else 1


def least_for(place: Place, multiple_of: int) -> int:
    """The fewest units that may stay where counts are rounded so."""
    return min(max(place.least, multiple_for(place.address.kind, multiple_of) * place.parts), place.count)


def floors(places: Sequence[Place], multiple_of: int) -> dict[Address, int]:
    """The fewest units of each place that a search may leave: none where the whole attention or feed-forward layer can
    go, but of a kind's first, since no model does without any."""
    found, kinds = dict[Address, int](), set[Kind]()
    for place in places:
        can_go = isinstance(place, Site) and place.leaves is not None and place.address.kind in kinds
        found[place.address] = 0 if can_go else least_for(place, multiple_of)
        kinds.add(place.address.kind)
    return found


def kinds_of(sites: Sequence[Place]) -> list[Kind]:
    """In the order in which they are met."""
    return list(dict.fromkeys(site.address.kind for site in sites))
