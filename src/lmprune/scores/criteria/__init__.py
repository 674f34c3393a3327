"""Criteria: one score a neuron, larger = keep. A new one is one decorated function (docs/add_a_criterion.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError, unknown
from ...progress import Progress
from ...sites.address import SCORED_BY_SEAMS, Kind
from ...sites.expert_neurons import ExpertNeurons
from ...sites.pages import here
from ...sites.place import Place
from ...sites.site import Site
from ..statistics import GRADIENT, STATISTICS, SeamStatistics, collect

#: (site, its statistics, random numbers) -> scores (U,), or (F,), whose sums over the runs are the units' scores; the
#: statistics are empty where the criterion needs none. The site is a Site, or of the class of the criterion's kind.
ScoreFunction = Callable[[Any, Any, torch.Generator], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A score, the statistics it needs (names of SeamStatistics' fields, or of the kind's), and what units have it."""

    name: str
    needs: frozenset[str]
    function: ScoreFunction
    kinds: tuple[Kind, ...] = SCORED_BY_SEAMS

    @property
    def needs_data(self) -> bool:
        return bool(self.needs)

    @property
    def needs_gradients(self) -> bool:
        """The text is also read backwards, which costs 2-3 times as much: a few thousand tokens are enough."""
        return bool(self.needs & GRADIENT)


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, *, needs: Iterable[str] = (), kinds: Sequence[Kind] = SCORED_BY_SEAMS
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register the decorated function as the criterion `name`.

    Raises: UserError for a name that is known, and for statistics that do not exist.
    """
    needed = frozenset(needs)
    if name in CRITERIA:
        raise UserError(f"there is a criterion {name!r} already; give yours another name")
    for statistic in needed - STATISTICS:
        raise unknown(f"statistic that criterion {name!r} needs", statistic, sorted(STATISTICS))

    def register(function: ScoreFunction) -> ScoreFunction:
        CRITERIA[name] = Criterion(name, needed, function, tuple(kinds))
        return function

    return register


def criterion_of(function: Criterion | ScoreFunction) -> Criterion:
    """The criterion that the function is registered as; else one by the function's own name, that needs no text."""
    if isinstance(function, Criterion):
        return function
    name = getattr(function, "__name__", type(function).__name__)
    return next((c for c in CRITERIA.values() if c.function is function), Criterion(name, frozenset(), function))


def get_criterion(name: str | Criterion) -> Criterion:
    """The criterion of that name; a criterion is its own. Raises: UserError with the nearest known names."""
    if isinstance(name, Criterion):
        return name
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


def score(
    model: nn.Module,
    sites: Sequence[Place],
    name: str,
    input_ids: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    """Scores (U,) of every site under the criterion `name`, fp32 on the CPU, larger = keep.

    input_ids: calibration text (sequences, T), for criteria with `needs_data`. batch_size, progress: see `collect`.
    Raises: UserError for an unknown criterion, missing text, or statistics that are not finite.
    """
    rule = _for_kinds(get_criterion(name), sites)
    statistics = None
    if rule.needs_data:
        if input_ids is None:
            raise UserError(f"criterion {name!r} needs calibration text; pass some, or use magnitude or random")
        statistics = collect(model, sites, input_ids, needs=rule.needs, batch_size=batch_size, progress=progress)
    return score_from(sites, name, statistics, seed=seed)


def score_from(
    sites: Sequence[Place], name: str | Criterion, statistics: Sequence[Any] | None = None, *, seed: int = 0
) -> list[Tensor]:
    """Like `score`, from statistics that are there already: one `collect` can serve many criteria."""
    rule = _for_kinds(get_criterion(name), sites)
    generator = torch.Generator().manual_seed(seed)
    layers = zip(sites, statistics or [None] * len(sites), strict=True)
    with torch.no_grad():
        scores = [_scored(rule, site, stats, generator) for site, stats in layers]
    return [s.float() for s in checked_scores(scores, sites, f"criterion {rule.name!r}")]


def _scored(rule: Criterion, site: Place, statistics: Any, generator: torch.Generator) -> Any:
    """The criterion's score of a site; of one that is made of sites, theirs, one after the other."""
    here(site.block)
    if isinstance(site, ExpertNeurons):
        seams = site.seams()
        pairs = zip(seams, statistics or [None] * len(seams), strict=True)
        return torch.cat([_scored(rule, seam, stats, generator) for seam, stats in pairs])
    return rule.function(site, statistics or SeamStatistics(), generator)


def _for_kinds(rule: Criterion, sites: Sequence[Place]) -> Criterion:
    """The criterion itself, if it scores units like the sites'. Raises: UserError."""
    for site in sites:
        if (kind := site.address.kind) not in rule.kinds:
            raise UserError(f"criterion {rule.name!r} has no score for {kind}; it has for {' and '.join(rule.kinds)}")
    return rule


def checked_scores(scores: Sequence[Any], sites: Sequence[Place], whose: str) -> list[Tensor]:
    """The scores (U,) on the CPU; those of a unit's inputs are summed. whose: what a message calls them.

    Raises: UserError where they are not one number a unit, at hand.
    """
    if len(scores) != len(sites):
        raise UserError(f"{whose}: expected scores of {len(sites)} layers, got {len(scores)}")
    found = []
    for site, scores_U in zip(sites, scores, strict=True):
        layer, inputs = site.address.layer, site.width if isinstance(site, Site) else site.count
        if not isinstance(scores_U, Tensor) or scores_U.shape not in ((site.count,), (inputs,)):
            got = tuple(scores_U.shape) if isinstance(scores_U, Tensor) else type(scores_U).__name__
            raise UserError(f"{whose}, layer {layer}: expected a tensor of {site.count} scores, got {got}")
        if scores_U.is_meta:
            raise UserError(f"{whose}, layer {layer}: the scores are on the meta device, where they have no values")
        scores_U = scores_U.detach().cpu()
        if number := int(scores_U.isnan().sum()):
            raise UserError(
                f"{whose}, layer {layer}: {number} of {len(scores_U)} scores are NaN; "
                "is the checkpoint or the data broken?"
            )
        found.append(site.per_unit(scores_U) if isinstance(site, Site) else scores_U)
    return found


from . import activation, experts, gradient, random, weights  # noqa: E402, F401  (registers the criteria)
