"""The judge of a search: the model put together from the database's readers, beside the dense one.

A reader with zeros where units went is the same as the cut, so one model holds every choice in turn. The hidden states
of the choice that others are compared with are kept at each block's entry: a choice that differs from block b on is
run from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..budget.levels import Choice, Levels
from ..sites.pages import here, pages_of
from ..sites.site import Site
from ..sites.walk import Blocks, list_of
from .database import Database

#: how many refitted readers are kept in memory
_AT_HAND = 256
#: by how many levels a site is moved to see what the loss makes of it
_STEP = 2


class DenseEnds:
    """The hidden states that leave the last block of the dense model, of sequences that choices are judged on."""

    def __init__(self, model: Any, sites: Sequence[Site], input_ids: Tensor):
        found = [*list_of(model, sites[0].block)]
        self.blocks, self.batches = Blocks(model, found), input_ids.to(next(model.parameters()).device).split(1)
        self.states = [self._end(self.blocks.inputs(batch_BT)) for batch_BT in self.batches]

    def _end(self, hidden_BTD: Tensor) -> Tensor:
        for layer in range(len(self.blocks.blocks)):
            hidden_BTD = self.blocks.run(layer, hidden_BTD)
        return hidden_BTD

    @torch.no_grad()
    def logits(self, place: int) -> Tensor:
        """Of sequence `place`, (T, V)."""
        return self.blocks.logits(self.states[place], self.batches[place])[0].float()

    @torch.no_grad()
    def divergence(self) -> float:
        """Mean KL of the model, as it is by now, from the dense one, nats a token."""
        total = 0.0
        for place, batch_BT in enumerate(self.batches):
            end = self._end(self.blocks.inputs(batch_BT))
            total += float(divergence(self.logits(place), self.blocks.logits(end, batch_BT)[0].float()).mean())
        return total / len(self.batches)


class Stitched:
    """A `budget.search.Judge`, which writes into the sites' readers.

    amounts: how many of the sequences are read at first, and then, rising.
    """

    def __init__(
        self, model: Any, sites: Sequence[Site], levels: Sequence[Levels], database: Database, dense: DenseEnds,
        amounts: Sequence[int],
    ):  # fmt: skip
        self.model, self.sites, self.levels, self.dense, self.amounts = model, sites, levels, dense, amounts
        self.reader = lru_cache(_AT_HAND)(lambda at, level: database.reader(levels[at], levels[at].counts[level]))
        self.rounds = len(amounts)
        self.now: list[int | None] = [None] * len(sites)
        self.base: Choice | None = None
        self.entries: list[list[Tensor]] = []  # of the base, the states that enter each block, of each sequence

    def put(self, choice: Choice) -> None:
        """The model gets these levels' readers."""
        for place, (site, level) in enumerate(zip(self.sites, choice, strict=True)):
            if self.now[place] != level:
                here(site.block)
                site.set_reader(*self.reader(place, level))
                self.now[place] = level

    @torch.no_grad()
    def loss(self, choice: Choice, amount: int) -> float:
        """Mean KL from the dense model, nats a token."""
        self.put(choice)
        first, blocks = self._first_difference(choice), self.dense.blocks
        total = number = 0.0
        for place in range(self.amounts[amount]):
            batch_BT = self.dense.batches[place]
            known = first > 0 and place < len(self.entries)
            hidden = self.entries[place][first] if known else blocks.inputs(batch_BT)
            for layer in range(first if known else 0, len(blocks.blocks)):
                hidden = blocks.run(layer, hidden)
            total += float(divergence(self.dense.logits(place), blocks.logits(hidden, batch_BT)[0].float()).sum())
            number += batch_BT.numel()
        return total / number

    def _first_difference(self, choice: Choice) -> int:
        """The first block that is not the base's."""
        if self.base is None:
            return 0
        changed = (site.layer for site, a, b in zip(self.sites, choice, self.base, strict=True) if a != b)
        return min(changed, default=len(self.dense.blocks.blocks) - 1)

    def changes(self, choice: Choice) -> list[Mapping[int, float]]:
        """Of each site, `_STEP` levels further, or the other way where that is the last; on the first amount of text.

        The choice becomes the base.
        """
        self.settle(choice)
        before, found = self.loss(choice, 0), []
        for place, (level, known) in enumerate(zip(choice, self.levels, strict=True)):
            further = min(level + _STEP, len(known.counts) - 1)
            other = further if further > level else max(level - _STEP, 0)
            changed = (*choice[:place], other, *choice[place + 1 :])
            found.append({other: self.loss(changed, 0) - before} if other != level else {})
        return found

    @torch.no_grad()
    def settle(self, choice: Choice) -> None:
        """The choice becomes the base: what is the same as in it is not run again."""
        if choice == self.base:
            return
        self.put(choice)
        blocks = self.dense.blocks
        self.entries, self.base = [], choice
        for batch_BT in self.dense.batches:
            entries = [blocks.inputs(batch_BT)]
            for layer in range(len(blocks.blocks) - 1):
                entries.append(blocks.run(layer, entries[-1]))
            self.entries.append(entries)


@contextmanager
def as_before(sites: Sequence[Site]) -> Iterator[None]:
    """The readers are what they were after a `with` block that writes into them."""
    if (pages := pages_of(sites[0].block)) is not None:
        with pages.forgetting():
            yield
        return
    before = [site.reader_state() for site in sites]
    try:
        yield
    finally:
        for site, state in zip(sites, before, strict=True):
            site.set_reader(*state)


def divergence(dense_TV: Tensor, logits_TV: Tensor) -> Tensor:
    """KL of each token's prediction from the dense model's, (T,)."""
    dense_TV, logits_TV = dense_TV.log_softmax(-1), logits_TV.log_softmax(-1)
    return (dense_TV.exp() * (dense_TV - logits_TV)).sum(-1)
