"""A second look at heads that go in one ranking with neurons: what each costs the model as it is really cut.

The error of a layer doesn't know what later blocks make of it. Without some group of an early layer other tokens than
the first get the massive activation that attention rests on, and all blocks behind pay for that (docs/lab_notes.md, 27
November). So the whole cut is made for a look, in readers that can be put back; then the heads of each layer come back
alone, and whoever takes more of the divergence away than its error said is ranked by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget.choosing import counts_of, kinds_of
from ..budget.keeps import Keep
from ..budget.selection import Scope
from ..checkpoints.journal import stage_of
from ..checkpoints.shelf import Tensors
from ..processes import of_first
from ..progress import Stages
from ..sites.address import Address, Kind
from ..sites.pages import here
from ..sites.place import Place
from ..sites.site import Site
from .elimination import LeastSquares
from .stitched import DenseEnds, as_before, divergence
from .walks import Probe, each

_HEADS: Kind = "heads"
#: the name of the walk
SECOND_LOOK = "a second look"
#: sequences that the cut is judged on
_JUDGED = 8


def mixed(sites: Sequence[Place]) -> bool:
    """Whether there are heads beside other units."""
    kinds = kinds_of(sites)
    return _HEADS in kinds and len(kinds) > 1


def wanted(sites: Sequence[Place], keep: Keep, scope: Scope) -> bool:
    """Whether heads are in one ranking with other units."""
    return scope == "global" and mixed(sites) and not isinstance(keep, Mapping)


@dataclass(frozen=True)
class Look(Probe):
    """What the cut is made of. name: of its walk, of which a run has one of a name."""

    stages: Stages
    name: str = SECOND_LOOK

    def counts(self, errors: Sequence[Tensor], counts: Sequence[int], keep: Keep, multiple_of: int) -> list[int]:
        """How many units of each site stay, where `counts` did by their errors (U,) alone. The model stays as it was.

        Heads that went may come back, for which neurons go; no others go, since nobody has looked at them.
        """
        if not self._lost(counts):
            return [*counts]
        stage = stage_of(self.model, "what heads cost")
        if not stage.done:
            times = self.times(counts, [_spent(e, c) for e, c in zip(errors, counts, strict=True)])
            known = corrected(errors, counts, times, heads_of(self.sites))
            found = of_first(counts_of(self.sites, known, keep, multiple_of=multiple_of, seed=self.seed))
            stage.found["counts"] = {"counts": torch.tensor(found)}
            stage.end(dict)
        return stage.found["counts"]["counts"].tolist()

    def times(self, counts: Sequence[int], spent: Sequence[float]) -> dict[int, float]:
        """How many times as much as its error said the heads of a place cost the model, of those that lost some.

        spent: the error of each site with `counts` units left. The model stays as it was.
        """
        looked = self._lost(counts)
        return dearer(spent, *self._gains(counts, looked)) if looked else {}

    def _lost(self, counts: Sequence[int]) -> list[int]:
        """The places of heads some of which went."""
        return [place for place in heads_of(self.sites) if counts[place] < self.sites[place].count]

    @torch.no_grad()
    def _gains(self, counts: Sequence[int], looked: Sequence[int]) -> tuple[float, dict[int, float]]:
        """The divergence of the cut from the dense model, nats a token, and what the heads of each place of `looked`
        take away from it by coming back."""
        ends = DenseEnds(self.model, self.sites, self.input_ids[-_JUDGED:])
        read = self.input_ids[:-_JUDGED] if len(self.input_ids) > 2 * _JUDGED else self.input_ids
        until = {site.address: count for site, count in zip(self.sites, counts, strict=True)}
        before = dict[int, tuple[Tensor, Tensor | None]]()
        for place in looked:
            here(self.sites[place].block)
            before[place] = self.sites[place].reader_state()
        with as_before(self.sites):
            self._cut(read, until)
            return self._judged(ends, before)

    def _cut(self, read: Tensor, until: Mapping[Address, int]) -> None:
        """As `obs_to_counts` cuts, with zeros in the readers where units go."""

        def mask(site: Site, problem: LeastSquares) -> Tensors:
            self.mask(site, problem, until[site.address])
            return {}

        each(self.model, self.sites, read, self.settings, self.stages, self.name, mask)

    def _judged(
        self, ends: DenseEnds, before: Mapping[int, tuple[Tensor, Tensor | None]]
    ) -> tuple[float, dict[int, float]]:
        """A sequence at a time, and a block at a time: all variants of the model are at the same block."""
        blocks, gains = ends.blocks, dict.fromkeys(before, 0.0)
        whole = 0.0
        for turn, batch_BT in enumerate(ends.batches):
            cut_BTD, variants = blocks.inputs(batch_BT), dict[int, Tensor]()
            for layer in range(len(blocks.blocks)):
                variants = {place: blocks.run(layer, hidden_BTD) for place, hidden_BTD in variants.items()}
                for place in (place for place in before if self.sites[place].layer == layer):
                    with _as_it_was(self.sites[place], before[place]):
                        variants[place] = blocks.run(layer, cut_BTD)
                cut_BTD = blocks.run(layer, cut_BTD)
            dense_TV, share = ends.logits(turn), 1 / len(ends.batches)
            far, *nearer = (
                share * float(divergence(dense_TV, blocks.logits(hidden_BTD, batch_BT)[0].float()).mean())
                for hidden_BTD in (cut_BTD, *variants.values())
            )
            whole += far
            for place, near in zip(variants, nearer, strict=True):
                gains[place] += far - near
        return whole, gains


@contextmanager
def _as_it_was(site: Site, reader: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """The site has its dense reader again for the `with` block."""
    here(site.block)
    cut = site.reader_state()
    site.set_reader(*reader)
    yield
    site.set_reader(*cut)


def heads_of(sites: Sequence[Site]) -> list[int]:
    """The places of heads among the sites."""
    return [place for place, site in enumerate(sites) if site.address.kind == _HEADS]


def dearer(spent: Sequence[float], whole: float, gains: Mapping[int, float]) -> dict[int, float]:
    """How many times as much as its error said each place of `gains` costs the model, at least once.

    spent: the error of each site, which together are as good as the divergence `whole`. gains: what of that the return
    of a place's units takes away.

    >>> dearer([1.0, 3.0], 2.0, {1: 3.0})  # 3 of 4 of the error, but 6 of 4 of the divergence
    {1: 2.0}
    """
    said = {place: whole * spent[place] / sum(spent) if spent[place] else 0.0 for place in gains}  # of dead heads
    return {place: max(gain / said[place], 1.0) if said[place] else 1.0 for place, gain in gains.items()}


def corrected(
    errors: Sequence[Tensor], counts: Sequence[int], times: Mapping[int, float], heads: Sequence[int]
) -> list[Tensor]:
    """Errors of each site (U,) that know what heads cost the model, see `dearer`.

    heads: places of which no more go than by these counts.

    >>> neurons, head = torch.tensor([0.5, 0.5, 9.0]), torch.tensor([1.0, 7.0, 2.0])
    >>> corrected([neurons, head], [1, 1], {1: 2.0}, [1])
    [tensor([0.5000, 0.5000, 9.0000]), tensor([2., inf, 4.])]
    """
    known = [*errors]
    for place in heads:
        known[place] = _held(errors[place] * times.get(place, 1.0), counts[place])
    return known


def _spent(errors_U: Tensor, count: int) -> float:
    """The error that a site has with `count` units left."""
    return float(errors_U.sort().values[: len(errors_U) - count].sum())


def _held(errors_U: Tensor, count: int) -> Tensor:
    """The same, and the best `count` units stay whatever becomes of the others."""
    held = errors_U.clone()
    held[errors_U.argsort(descending=True)[:count]] = torch.inf
    return held
