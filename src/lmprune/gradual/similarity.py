"""How alike the neurons of a layer are, estimated cheaply while it trains (METHODS 2, "GUM penalty" and "Cost").

Axes: N token rows, F neurons of a layer, K of them kept.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

from .. import redundancy
from ..masks import NeuronMasks


def cosines(gram_KK: Tensor) -> Tensor:
    """|cos| of each pair of neurons, from their uncentred second moments, in their place; the diagonal is 0."""
    cos_KK, _dead = redundancy.cosines(gram_KK)
    return cos_KK.abs_().fill_diagonal_(0)


def mean_similarity(gram_KK: Tensor, count: float) -> Tensor:
    """u (K,): Σ_{k≠j} |cos_jk| / count, how alike each neuron is to the others; uses up `gram_KK`."""
    return cosines(gram_KK).sum(1) / count


class SimilarityEstimate:
    """A rolling buffer of token rows of each layer's neuron outputs, and the u of the kept neurons that it gives.

    Attach with `observe`; then call `end_step` after each optimizer step and `refresh` when a new u is wanted.
    Rows of many steps, Gram matrix only when asked: no average over matrices of different masks, so |cos| <= 1 always.
    A neuron that was not computed in a row counts as silent there. The rows are every `stride`-th token of each
    sequence, at an offset that moves from step to step, so they do not depend on how a batch is split over
    accumulation steps and processes. Padding is left out.
    """

    def __init__(self, masks: NeuronMasks, *, max_rows: int = 1024, stride: int = 8):
        self.masks, self.max_rows, self.stride = masks, max_rows, stride
        self.similarities = [torch.zeros(mask.width) for mask in masks]
        self.step = 0
        #: True where a token counts, (B, T); whoever feeds the model sets it, None = all count
        self.counts_BT: Tensor | None = None
        self._steps: list[deque[tuple[int, Tensor]]] = [deque() for _ in masks]  # (step, rows (n, F))

    def observe(self) -> None:
        """See what passes the seams in training forward passes."""
        for mask, steps in zip(self.masks, self._steps, strict=True):
            mask.observer = self._observer(mask.width, steps)

    def _observer(self, width: int, steps: deque[tuple[int, Tensor]]):
        def see(h: Tensor, kept: Tensor) -> None:
            h_BTK = h if h.ndim == 3 else h.unflatten(0, (-1, self._seq_len(h)))
            offset = self.step % self.stride
            rows_nK = h_BTK[:, offset :: self.stride].flatten(0, 1).float()
            if self.counts_BT is not None:
                rows_nK = rows_nK[self.counts_BT[:, offset :: self.stride].flatten().to(h.device)]
            rows_nF = rows_nK
            if rows_nK.shape[1] < width:
                rows_nF = rows_nK.new_zeros(len(rows_nK), width)
                rows_nF[:, kept.to(h.device)] = rows_nK
            steps.append((self.step, rows_nF))

        return see

    def _seq_len(self, h: Tensor) -> int:
        assert self.counts_BT is not None, "a family that flattens tokens needs the mask's shape"
        return self.counts_BT.shape[1]

    def end_step(self) -> None:
        """Forget the oldest steps, as far as `max_rows` remain; the next forward passes belong to a new step."""
        for steps in self._steps:
            held = sum(len(rows) for _, rows in steps)
            while steps:
                oldest = steps[0][0]
                size = sum(len(rows) for step, rows in steps if step == oldest)
                if held - size < self.max_rows:
                    break
                held -= size
                while steps and steps[0][0] == oldest:
                    steps.popleft()
        self.step += 1

    @torch.no_grad()
    def refresh(self) -> None:
        """Make u anew from the buffer, over the neurons that are kept now; 0 for the others.

        u_j = Σ_{k≠j} |cos_jk| / (F·v), v the kept share of all layers together, which is METHODS' `gum`.
        Where several processes train, their rows count together.
        """
        keep = self.masks.keep
        for layer, (mask, steps) in enumerate(zip(self.masks, self._steps, strict=True)):
            kept = mask.kept
            rows_NF = torch.cat([rows for _, rows in steps])
            gram_KK = _gram(rows_NF if len(kept) == mask.width else rows_NF[:, kept.to(rows_NF.device)])
            u_F = gram_KK.new_zeros(mask.width)
            u_F[kept.to(u_F.device)] = mean_similarity(gram_KK, mask.width * keep)
            self.similarities[layer] = u_F

    def mean(self) -> float:
        """The mean u of all kept neurons, as last estimated."""
        kept = [u_F[k.to(u_F.device)] for u_F, k in zip(self.similarities, self.masks.kept, strict=True)]
        return float(torch.cat(kept).mean())

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as named tensors."""
        found = {"step": torch.tensor(self.step)}
        for layer, (mask, steps) in enumerate(zip(self.masks, self._steps, strict=True)):
            found[f"{layer}.similarities"] = self.similarities[layer]
            found[f"{layer}.steps"] = torch.tensor([step for step, _ in steps], dtype=torch.long)
            found[f"{layer}.sizes"] = torch.tensor([len(rows) for _, rows in steps], dtype=torch.long)
            rows = [rows for _, rows in steps] or [torch.zeros(0, mask.width)]
            found[f"{layer}.rows"] = torch.cat(rows)
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.step = int(state["step"])
        for layer in range(len(self._steps)):
            self.similarities[layer] = state[f"{layer}.similarities"]
            rows = state[f"{layer}.rows"].split(state[f"{layer}.sizes"].tolist())
            self._steps[layer].clear()  # in place: the observers hold it
            self._steps[layer].extend(zip(state[f"{layer}.steps"].tolist(), rows, strict=True))


def _gram(rows_NK: Tensor) -> Tensor:
    """HᵀH (K, K) over the rows of all processes."""
    gram_KK = rows_NK.T @ rows_NK
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gram_KK)
    return gram_KK
