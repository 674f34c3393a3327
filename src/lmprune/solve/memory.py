"""What pruning at once will hold, from shapes alone: in memory, and of a model that is read block by block on the disk.

No more than arithmetic over what walks and solvers keep at the same time; `lmprune prune --dry-run` tells it, and
benchmarks/memory.py compares it with what was held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..sites.place import Place
from ..sites.site import Site
from ..sites.walk import list_of

_DOUBLE, _SINGLE = 8, 4
#: sequences that are read at once where no gradient is wanted
_BATCH = 4


@dataclass(frozen=True)
class Shape:
    """Of a model: parameters of its blocks and of all else, D, vocabulary and the FFN's width.

    number: bytes of one that is computed with. streamed: its blocks stay in their files.
    """

    blocks: tuple[int, ...]
    outside: int
    hidden: int
    vocabulary: int
    width: int
    number: int
    streamed: bool

    @classmethod
    def of(cls, model: Any, sites: Sequence[Place], *, number: int, streamed: bool) -> Shape:
        """model: may be one without weights."""
        blocks = [sum(p.numel() for p in block.parameters()) for block in list_of(model, sites[0].block)]
        every = sum(p.numel() for p in model.parameters())
        vocabulary, hidden = model.get_input_embeddings().weight.shape
        width = max((site.width for site in sites if isinstance(site, Site)), default=hidden)
        return cls(tuple(blocks), every - sum(blocks), hidden, vocabulary, width, number, streamed)

    @property
    def params(self) -> int:
        return sum(self.blocks) + self.outside

    @property
    def weights(self) -> int:
        """Bytes in memory throughout; of a streamed model with a block, and what it is read from."""
        if not self.streamed:
            return self.params * self.number
        return self.outside * self.number + 2 * max(self.blocks) * self.number


@dataclass(frozen=True)
class Held:
    """Bytes that one part of the work holds beside the weights: hidden states, and all else."""

    other: float
    states: float = 0.0


@dataclass(frozen=True)
class Disk:
    """Bytes that a run keeps of a streamed model beside its result: before blocks are cut, at most; while they are,
    without what enters the next block; and that, of which there are two, and a third while it is written."""

    before: float = 0.0
    kept: float = 0.0
    state: float = 0.0

    def most(self, result: float, blocks: float) -> float:
        """With the result, and its blocks, which come one by one."""
        return max(self.before, self.kept + 3 * self.state + blocks, self.kept + 2 * self.state + result)


@dataclass(frozen=True)
class Memory:
    """Bytes beside the weights: at most at once; where hidden states lie on the disk as far as they can (`least`); and
    of those states at most."""

    peak: float
    least: float
    states: float
    disk: Disk = Disk()

    @classmethod
    def of(cls, *parts: Held, disk: Disk = Disk()) -> Memory:
        """parts: come one after the other."""
        peak, least = max(part.other + part.states for part in parts), max(part.other for part in parts)
        return cls(peak, least, max(part.states for part in parts), disk)


NOTHING = Memory.of(Held(0.0))


def states(shape: Shape, tokens: int, streams: int = 1) -> float:
    """Of hidden states that are kept."""
    return streams * tokens * shape.hidden * shape.number


def seam(shape: Shape, sites: Sequence[Site], tokens: int) -> float:
    """What enters the reader of a layer of neurons, kept until that is cut (`ends.End`)."""
    widths = [site.width for site in sites if site.address.kind == "neurons"]
    return tokens * max(widths, default=0) * shape.number


def forwards(shape: Shape, seq_len: int) -> float:
    """A batch on its way through one block."""
    return _BATCH * seq_len * (8 * shape.hidden + 3 * shape.width) * shape.number


def backwards(shape: Shape, tokens: int, seq_len: int) -> Held:
    """One sequence forwards and back: what its blocks keep for it, and the logits with their gradient."""
    logits = 3 * seq_len * shape.vocabulary * shape.number
    block = seq_len * (10 * shape.hidden + 4 * shape.width) * shape.number
    if not shape.streamed:
        return Held(logits + block * len(shape.blocks))
    return Held(max(logits, block), states(shape, tokens))


def recovery(shape: Shape, params: int, seq_len: int) -> float:
    """Passes after the cut: weights, their gradients and AdamW's two averages, and what two sequences keep on their way
    through the blocks, with both models' logits, the student's gradient and a copy of it. params: that are left."""
    tokens = 2 * seq_len
    logits = 4 * tokens * shape.vocabulary * shape.number
    blocks = tokens * (10 * shape.hidden + 4 * shape.width) * shape.number * len(shape.blocks)
    return 4 * params * shape.number + logits + blocks


def way_back(shape: Shape, tokens: int, matrices: float = 0.0) -> Disk:
    """Of a streamed model: what enters each block, which goes on the way back, gradients, and matrices that come."""
    if not shape.streamed:
        return Disk()
    each = states(shape, tokens)
    return Disk(max(each * (len(shape.blocks) + 2), 3 * each + matrices), kept=2 * each + matrices)


def curvatures(shape: Shape, sites: Sequence[Site]) -> tuple[float, float]:
    """The metrics of the end loss, float64, in memory and on the disk; there but for one of a streamed model."""
    each = [site.reader().shape[1] ** 2 * _DOUBLE for site in sites]
    return (2 * max(each), sum(each)) if shape.streamed else (sum(each) + max(each), 0.0)


def elimination(sites: Sequence[Site]) -> float:
    """The largest layer's problem while it is solved: two square matrices, and as many with the rows of a reader as
    the compensation has."""
    return max(width * (2 * width + 5 * out) * _DOUBLE for width, out in (site.reader().shape for site in sites))


def readers(shape: Shape, sites: Sequence[Site]) -> float:
    """Copies of what a resident model's readers were, which come back; a streamed one reads its blocks again."""
    return 0.0 if shape.streamed else sum(site.reader().numel() for site in sites) * shape.number


def moments(sites: Sequence[Site]) -> float:
    """The sums of the largest layer, and one batch's part of them."""
    return max(site.reader().shape[0] ** 2 * (_DOUBLE + _SINGLE) for site in sites)
