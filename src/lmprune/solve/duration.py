"""What pruning at once will take: operations of each phase, over rates that are measured on the model itself.

No more than arithmetic: `lmprune prune` tells it before it begins, and the bars tell the time left by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..budget.keeps import Keep
from ..budget.selection import Scope
from ..precision import place_of_float64
from ..progress import Phase
from ..scores.passes import backward, gradients_from_embeddings, undisturbed
from ..sites.place import Place
from ..sites.site import Site
from .memory import Shape

_PROBE = 512  # tokens that are read for it, at most
_SIZE = 768  # of the matrices that rates are measured on
_MOMENT = 0.4  # seconds
#: what passes after the cut are called
RECOVERING = "recovering"


@dataclass(frozen=True)
class Work:
    """What a solver is to do at once. tokens: of calibration, in sequences of `seq_len`."""

    sites: Sequence[Place]
    tokens: int
    seq_len: int
    keep: Keep
    scope: Scope

    def read(self, most: int) -> int:
        """Tokens of the first sequences, about `most`."""
        return min(self.tokens, max(most // self.seq_len, 1) * self.seq_len)

    def kept(self) -> list[int]:
        """About how many units of each site stay."""
        shares = [self.keep[s.address.kind] if isinstance(self.keep, Mapping) else self.keep for s in self.sites]
        return [max(round(site.count * share), 1) for site, share in zip(self.sites, shares, strict=True)]


@dataclass(frozen=True)
class Pace:
    """Seconds: of a token through the blocks alone, through all of the model, and back through it; of a multiplication
    and addition in float32 and in float64."""

    blocks: float
    forward: float
    backward: float
    single: float
    double: float


#: how much of the speed of large products a model's blocks reach
_REACHED = 0.6


def guess(shape: Shape, device: torch.device) -> Pace:
    """From the model's shapes and products of matrices there, for a model that is not in memory."""
    single, double = _products(device)
    blocks = sum(shape.blocks) * single / _REACHED
    forward = blocks + shape.vocabulary * shape.hidden * single / _REACHED
    return Pace(blocks, forward, 2 * forward, single, double)


def measure(model: Any, seq_len: int, *, gradients: bool) -> Pace:
    """By reading one sequence, and multiplying a few matrices.

    gradients: whether it is read back, too, which takes memory; otherwise that is taken for as long as forwards.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    length = min(seq_len, _PROBE)
    ids_1T = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    with undisturbed(model):
        with torch.no_grad():
            model(ids_1T[:, : length // 4 + 1], use_cache=False)  # what is slow the first time only
            forward = _least(lambda: model(ids_1T, use_cache=False), model.device)
            head = _least(lambda: _head(model, length), model.device)
        both = 2 * forward
        if gradients:
            with gradients_from_embeddings(model), torch.enable_grad():
                both = _least(lambda: backward(model, ids_1T), model.device)
    blocks = max(forward - head, 0.1 * forward)
    single, double = _products(model.device)
    return Pace(blocks / length, forward / length, both / length, single, double)


def _head(model: Any, length: int) -> None:
    head = model.get_output_embeddings()
    if head is not None:
        weight = head.weight
        torch.nn.functional.linear(
            torch.zeros(length, weight.shape[1], dtype=weight.dtype, device=weight.device), weight
        )


def _products(device: torch.device) -> tuple[float, float]:
    """A multiplication and addition in float32 there, and in float64 where that is solved."""
    return _product(torch.float32, device), _product(torch.float64, place_of_float64(device))


def _product(dtype: torch.dtype, device: torch.device) -> float:
    a = torch.full((_SIZE, _SIZE), 0.5, dtype=dtype, device=device)
    torch.matmul(a, a)  # what is slow the first time only
    return _least(lambda: a @ a, device) / _SIZE**3


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Until the device has done it: an accelerator is only told what to do."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _least(work: Callable[[], Any], device: torch.device) -> float:
    """Of three turns, or as many as a moment has: what else the machine does makes a short one longer."""
    found = [_seconds(work, device)]
    while len(found) < 3 and sum(found) < _MOMENT:
        found += [_seconds(work, device)]
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def statistics(pace: Pace, tokens: int, *, gradients: bool) -> list[Phase]:
    """Of a criterion: the text is read once, by the trunk alone, or forwards and back where it asks for gradients."""
    return [Phase("calibrating", tokens * (pace.backward if gradients else pace.blocks))]


def gradients(pace: Pace, sites: Sequence[Site], tokens: int) -> list[Phase]:
    """Of the end loss, and their second moments after each reader."""
    moments = sum(site.reader().shape[1] ** 2 for site in sites) * tokens * pace.single
    return [Phase("gradients of the end loss", tokens * pace.backward + moments)]


def eliminations(
    name: str, pace: Pace, sites: Sequence[Site], kept: Sequence[int], tokens: int, *, passes: float
) -> list[Phase]:
    """Of `obs`, block by block. kept: units of each site. passes: of the text through each block."""
    reading = passes * tokens * pace.blocks
    moments = sum(site.reader().shape[0] ** 2 for site in sites) * tokens * pace.single
    solving = sum(_elimination(site, number) for site, number in zip(sites, kept, strict=True)) * pace.double
    return [Phase(name, reading + moments + solving)]


def recovery(pace: Pace, tokens: int, passes: int) -> list[Phase]:
    """Of passes after the cut: the dense model forwards, the other back as well, through its weights too."""
    return [Phase(RECOVERING, passes * tokens * (2 * pace.forward + pace.backward))] if passes else []


def _elimination(site: Site, kept: int) -> float:
    """Multiplications: two Cholesky factors and an inverse, an update of the whole layer for every unit that goes, and
    the refit of those that stay."""
    width, out = site.reader().shape
    left = kept * site.size
    gone = width - left
    inverse = width**3
    updates = gone * width * (width + out)
    refit = left**3 / 3 + left**2 * out
    return inverse + width**2 * out + updates + refit
