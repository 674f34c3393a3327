"""The judge of a search: the model put together from the database's readers, beside the dense one.

A reader with zeros where units went is the same as the cut, so one model holds every choice in turn. The hidden states
of the choice that others are compared with are kept at each block's entry: a choice that differs from block b on is
run from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..budget.levels import Choice, Levels
from ..scores.passes import gradients_from_embeddings, undisturbed
from ..sites.linears import rows_are_inputs
from ..sites.site import Site
from ..sites.walk import Blocks, list_of
from .database import Database

#: how many refitted readers are kept in memory
_AT_HAND = 256


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

    def slopes(self, choice: Choice) -> list[Mapping[int, float]]:
        """To first order, at the levels next to each site's own; and the choice becomes the base."""
        self.put(choice)
        self._rebase(choice)
        weights = [cast(nn.Parameter, site.reader_linear.weight) for site in self.sites]
        number = self.amounts[-2] if self.rounds > 1 else self.amounts[-1]
        with undisturbed(self.model), gradients_from_embeddings(self.model), torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            try:
                for place in range(number):
                    self._backward(place, number)
                grads = [weight.grad for weight in weights]
            finally:
                for weight in weights:
                    weight.requires_grad_(False)
                    weight.grad = None
        return [self._near(place, level, grads[place]) for place, level in enumerate(choice)]

    def _near(self, place: int, level: int, grad: Tensor | None) -> Mapping[int, float]:
        if grad is None:
            return {}
        site = self.sites[place]
        grad_FD = grad if rows_are_inputs(site.reader_linear) else grad.T
        own_FD, _ = self.reader(place, level)
        near = [at for at in (level - 1, level + 1) if 0 <= at < len(self.levels[place].counts)]
        return {at: float(((self.reader(place, at)[0] - own_FD) * grad_FD.cpu()).sum()) for at in near}

    def _backward(self, place: int, number: int) -> None:
        """Gradients of the mean divergence of a sequence, over `number` of them."""
        batch_BT = self.dense.batches[place]
        logits_TV = self.model(batch_BT, use_cache=False).logits[0]
        with torch.no_grad():
            grad_TV = logits_TV.float().softmax(-1) - self.dense.logits(place).softmax(-1)
        logits_TV.backward((grad_TV / (len(grad_TV) * number)).to(logits_TV))

    @torch.no_grad()
    def _rebase(self, choice: Choice) -> None:
        blocks = self.dense.blocks
        self.entries, self.base = [], choice
        for batch_BT in self.dense.batches:
            entries = [blocks.inputs(batch_BT)]
            for layer in range(len(blocks.blocks) - 1):
                entries.append(blocks.run(layer, entries[-1]))
            self.entries.append(entries)


def divergence(dense_TV: Tensor, logits_TV: Tensor) -> Tensor:
    """KL of each token's prediction from the dense model's, (T,)."""
    dense_TV, logits_TV = dense_TV.log_softmax(-1), logits_TV.log_softmax(-1)
    return (dense_TV.exp() * (dense_TV - logits_TV)).sum(-1)
