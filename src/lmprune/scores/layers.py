"""Scores of whole layers, and of their attentions and feed-forward layers: larger = keep (docs/methods.md, "Layers").

Axes: B sequences of a batch, T tokens of a sequence, D model width, U units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints.states import States, states_of
from ..progress import Progress
from ..sites.layers import Layers
from ..sites.walk import Blocks

_BATCH = 4


@torch.no_grad()
def block_influence(model: Any, site: Layers, input_ids: Tensor, progress: Progress | None = None) -> Tensor:
    """1 - cosine of the stream after the block with the unit and without it, the mean over tokens, (U,).

    For whole blocks that is ShortGPT's (arXiv 2403.03853), for feed-forward layers that of arXiv 2406.15786.
    """
    sums_U = torch.zeros(site.count, dtype=torch.float64)
    for unit, _, with_BTD, without_BTD in _both(model, site, input_ids, progress):
        cosine_BT = F.cosine_similarity(with_BTD.double(), without_BTD.double(), dim=-1)
        sums_U[unit] += (1 - cosine_BT).sum().cpu()
    return sums_U / input_ids.numel()


@torch.no_grad()
def loss_without(model: Any, site: Layers, input_ids: Tensor, progress: Progress | None = None) -> Tensor:
    """The mean next-token loss of the model without the unit, (U,): log of its perplexity."""
    blocks, sums_U = Blocks(model, [*site.blocks]), torch.zeros(site.count, dtype=torch.float64)
    without: list[States] = []  # of each unit so far, the stream without it

    def go_on(begin: int, end: int) -> None:
        """All of them through these blocks, so that each is read once where they lie in files."""
        for layer in range(begin, end):
            for stream in without:
                for i, states_BTD in enumerate(stream):
                    stream[i] = blocks.run(layer, states_BTD)

    for unit, _, _, states_BTD in _both(model, site, input_ids, progress, blocks):
        if unit == len(without):
            go_on(site.members[unit - 1] + 1 if unit else 0, site.members[unit] + 1)
            without.append(states_of(model, ()))
        without[unit].append(states_BTD)
    go_on(site.members[-1] + 1, len(site.blocks))
    for unit, stream in enumerate(without):
        for states_BTD, batch_BT in zip(stream, _batches(model, input_ids), strict=True):
            sums_U[unit] += _loss(blocks, states_BTD, batch_BT)
    return sums_U / (input_ids.numel() - len(input_ids))


def _loss(blocks: Blocks, states_BTD: Tensor, batch_BT: Tensor) -> Tensor:
    """The next-token loss of what comes out of the last block, the sum over the batch's tokens, ()."""
    logits_BTV = blocks.logits(states_BTD, batch_BT)[:, :-1].float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten(), reduction="sum").cpu()


@torch.no_grad()
def along(model: Any, site: Layers, input_ids: Tensor, progress: Progress | None = None) -> tuple[Tensor, float]:
    """How the stream changes along the model: (cosines (L + 1, L + 1), the model's mean next-token loss).

    Entry (a, b) is the mean over tokens of the cosine between the stream before block a and before block b, the last
    being what leaves the last block: what blocks a … b - 1 together do to its direction (arXiv 2403.17887).
    """
    blocks, depth = Blocks(model, [*site.blocks]), len(site.blocks)
    cosines, loss = torch.zeros(depth + 1, depth + 1, dtype=torch.float64), 0.0
    for done, sequence_T in enumerate(input_ids):  # one at a time: the stream is held at every depth
        batch_BT = sequence_T[None].to(next(model.parameters()).device)
        states = [blocks.inputs(batch_BT)]
        for layer in range(depth):
            states.append(blocks.run(layer, states[-1]))
        loss += _loss(blocks, states[-1], batch_BT).item()
        directions_LTD = F.normalize(torch.cat([each.to(batch_BT.device) for each in states]).float(), dim=-1)
        cosines += torch.einsum("atd,btd->ab", directions_LTD, directions_LTD).double().cpu()
        if progress:
            progress(done + 1, len(input_ids))
    return cosines / input_ids.numel(), loss / (input_ids.numel() - len(input_ids))


def _both(
    model: Any, site: Layers, input_ids: Tensor, progress: Progress | None, blocks: Blocks | None = None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(a unit, a batch, the stream (B, T, D) after the unit's block, the same without the unit), along the walk."""
    blocks = blocks or Blocks(model, [*site.blocks])
    batches = _batches(model, input_ids)
    hidden = states_of(model, map(blocks.inputs, batches))
    unit_of = {member: unit for unit, member in enumerate(site.members)}
    for layer in range(len(site.blocks)):
        for i, batch_BT in enumerate(batches):
            before_BTD = hidden[i]
            hidden[i] = after_BTD = blocks.run(layer, before_BTD)
            if (unit := unit_of.get(layer)) is not None:
                without_BTD = _skipping(site, unit, blocks, before_BTD)
                yield unit, batch_BT, after_BTD, without_BTD.to(after_BTD.device)  # where blocks are on several
        if progress:
            progress(layer + 1, len(site.blocks))


def _batches(model: Any, input_ids: Tensor) -> list[Tensor]:
    return [batch_BT.to(next(model.parameters()).device) for batch_BT in input_ids.split(_BATCH)]


def _skipping(site: Layers, unit: int, blocks: Blocks, before_BTD: Tensor) -> Tensor:
    """The stream after the unit's block without the unit."""
    if site.branch is None:
        return before_BTD
    end = site.without([unit])
    try:
        return blocks.run(site.members[unit], before_BTD)
    finally:
        end()


#: (model, site, token ids (sequences, T), progress) -> (U,), larger = keep
LayerScore = Callable[[Any, Layers, Tensor, Progress | None], Tensor]


@dataclass(frozen=True)
class LayerRule:
    """score: None = drawn from the seed, without a look. num_tokens: how many tokens it reads at most.

    one_by_one: the others are scored again after each unit that goes, as they are without it.
    """

    score: LayerScore | None
    num_tokens: int = 0
    one_by_one: bool = False


#: a method's criterion -> what it is for layers
LAYER_RULES: Mapping[str, LayerRule] = {
    "shortgpt": LayerRule(block_influence, 65536),
    "ppl_without": LayerRule(loss_without, 4096),
    "sleb": LayerRule(loss_without, 4096, one_by_one=True),
    "random": LayerRule(None),
}


def score_layers(
    rule: LayerRule,
    model: Any,
    site: Layers,
    input_ids: Tensor | None,
    until: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Scores (U,) by which `until` units are to stay; of a rule that goes one by one those that went have what they had
    when they went, in that order, and the others ∞."""
    if rule.score is None:
        return torch.rand(site.count, generator=torch.Generator().manual_seed(seed))
    assert input_ids is not None, "there is nothing to score by"
    input_ids = input_ids[: max(rule.num_tokens // input_ids.shape[1], 1)]
    if not rule.one_by_one:
        return rule.score(model, site, input_ids, progress)
    scores_U, gone = torch.full((site.count,), torch.inf, dtype=torch.float64), []
    for done in range(site.count - until):
        end = site.without(gone)
        try:
            now_U = rule.score(model, site, input_ids, None)
        finally:
            end()
        now_U[gone] = torch.inf
        gone.append(int(now_U.argmin()))
        scores_U[gone[-1]] = now_U[gone[-1]]
        if progress:
            progress(done + 1, site.count - until)
    return scores_U
