"""How alike the neurons of a layer are, estimated cheaply while it trains (docs/methods.md, "GUM").

Axes: N token rows, F neurons of a layer, K of them kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..scores import redundancy
from ..sites.masks import UnitMask, UnitMasks


def absolute_cosines(gram_KK: Tensor) -> Tensor:
    """|cos| of each pair of neurons, from their uncentred second moments, in their place; the diagonal is 0."""
    cos_KK, _dead = redundancy.cosines(gram_KK)
    return cos_KK.abs_().fill_diagonal_(0)


def mean_similarity(gram_KK: Tensor, count: float) -> Tensor:
    """u (K,): Σ_{k≠j} |cos_jk| / count, how alike each neuron is to the others; uses up `gram_KK`."""
    return absolute_cosines(gram_KK).sum(1) / count


class Rows:
    """The newest `capacity` rows (n, F) that were added, in memory that is taken once, so that a long run's heap is not
    full of holes."""

    def __init__(self, capacity: int, width: int, device: torch.device):
        self.rows_RF = torch.empty(capacity, width, device=device)
        self.number = self.next = 0

    def add(self, rows_nK: Tensor, columns: Tensor | None = None) -> None:
        """columns: where a row's K values belong, the others being 0; None = K is F."""
        while len(rows_nK):
            room = self.rows_RF[self.next : self.next + len(rows_nK)]
            piece, rows_nK = rows_nK[: len(room)], rows_nK[len(room) :]
            if columns is None:
                room.copy_(piece)
            else:
                room.zero_()[:, columns] = piece.to(room.dtype)
            self.number = max(self.number, self.next + len(room))
            self.next = (self.next + len(room)) % len(self.rows_RF)

    @property
    def seen(self) -> Tensor:
        """In any order."""
        return self.rows_RF[: self.number]


class SimilarityEstimate:
    """A rolling buffer of token rows of what each site's units put out, and the u of the kept units that it gives.

    Attach with `observe`; then call `end_step` after each optimizer step and `refresh` when a new u is wanted.
    Rows of many steps, Gram matrix only when asked: no average over matrices of different masks, so |cos| <= 1 always.
    A neuron that was not computed in a row counts as silent there. The rows are of tokens, every `stride`-th one of
    each sequence, at an offset that moves from step to step, so they do not depend on how a batch is split over
    accumulation steps; several processes hold `max_rows` between them. Padding is left out.
    """

    def __init__(self, masks: UnitMasks, *, max_rows: int = 1024, stride: int = 8):
        self.masks, self.max_rows, self.stride = masks, max_rows, stride
        self.similarities = [torch.zeros(mask.count, device=mask.device) for mask in masks]
        self.step = 0
        #: (B, T) of the newest training forward pass; None = there was none
        self.shape: tuple[int, int] | None = None
        #: of that, places of the tokens that count among every `stride`-th, flattened; None = all do
        self.counting_n: Tensor | None = None
        self._stop_watching: Callable[[], None] = lambda: None
        self._rows: list[Rows | None] = [None] * len(masks)

    def observe(self) -> None:
        """See what passes the seams in training forward passes, and which of the tokens are padding."""
        self._stop_watching = _watch_padding(self.masks.model, self)
        for layer, mask in enumerate(self.masks):
            mask.observer = partial(self._see, layer, mask)

    def forget(self) -> None:
        """No longer see anything."""
        self._stop_watching()
        for mask in self.masks:
            mask.observer = None

    def _see(self, layer: int, mask: UnitMask, h: Tensor, kept: Tensor) -> None:
        h_BTK = h if h.ndim == 3 else h.unflatten(0, (-1, self._seq_len()))
        rows_nK = h_BTK[:, self._taken].flatten(0, 1)
        if self.counting_n is not None:
            rows_nK = rows_nK[self.counting_n.to(h.device)]
        if mask.size > 1:  # the cosine of two units is of their whole outputs: a row for each place in the run
            rows_nK = rows_nK.unflatten(1, (-1, mask.size)).transpose(1, 2).flatten(0, 1)
        rows = self._rows[layer] = self._rows[layer] or self._room(mask, h.device)
        rows.add(rows_nK, None if rows_nK.shape[1] == mask.count else kept.to(h.device))

    def _room(self, mask: UnitMask, device: torch.device) -> Rows:
        return Rows(self._capacity(mask), mask.count, device)

    def _capacity(self, mask: UnitMask) -> int:
        """The rows of one process: a token's is one for each place in the run of a unit."""
        return -(-self.max_rows // _num_processes()) * mask.size

    @property
    def _taken(self) -> slice:
        return slice(self.step % self.stride, None, self.stride)

    def begin_pass(self, shape: tuple[int, int], counts_BT: Tensor | None) -> None:
        """A training forward pass over tokens of this shape begins. counts_BT: False for padding; None = there is none.

        Which rows count is found here, once: where a device computes, every layer would wait for the answer.
        """
        self.shape = shape
        self.counting_n = None if counts_BT is None else counts_BT[:, self._taken].flatten().nonzero().flatten()

    def _seq_len(self) -> int:
        assert self.shape is not None, "a family that flattens tokens needs the tokens' shape"
        return self.shape[1]

    def end_step(self) -> None:
        """The next forward passes belong to a new step."""
        self.step += 1

    @torch.no_grad()
    def refresh(self) -> None:
        """Make u anew from the buffer, over the neurons that are kept now; 0 for the others.

        u_j = Σ_{k≠j} |cos_jk| / (F·v), v the kept share of all layers (of that kind of unit) together.
        Where several processes train, their rows count together.
        """
        for layer, (mask, rows) in enumerate(zip(self.masks, self._rows, strict=True)):
            assert rows is not None, "nothing was seen yet"
            kept, seen_NF = mask.kept, rows.seen
            gram_KK = _gram(seen_NF if len(kept) == mask.count else seen_NF[:, kept.to(seen_NF.device)])
            u_F = gram_KK.new_zeros(mask.count)
            u_F[kept.to(u_F.device)] = mean_similarity(gram_KK, mask.count * self.masks.keep_of(mask.kind))
            self.similarities[layer] = u_F

    def mean(self) -> float:
        """The mean u of all kept neurons, as last estimated."""
        kept = [u_F[k.to(u_F.device)] for u_F, k in zip(self.similarities, self.masks.kept, strict=True)]
        return float(torch.cat(kept).mean())

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as named tensors."""
        found = {"step": torch.tensor(self.step)}
        for layer, (mask, rows) in enumerate(zip(self.masks, self._rows, strict=True)):
            found[f"{layer}.similarities"] = self.similarities[layer]
            found[f"{layer}.rows"] = torch.zeros(0, mask.count) if rows is None else rows.seen
            found[f"{layer}.next"] = torch.tensor(0 if rows is None else rows.next)
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.step = int(state["step"])
        for layer, mask in enumerate(self.masks):
            self.similarities[layer] = state[f"{layer}.similarities"].to(mask.device)
            rows = self._rows[layer] = self._room(mask, mask.device)
            rows.add(state[f"{layer}.rows"])
            rows.next = int(state[f"{layer}.next"])

    def dealt(self, states: Sequence[dict[str, Tensor]], mine: int) -> dict[str, Tensor]:
        """What `state` would have given in process `mine` of these, where `states` are those of another number of
        processes: all their rows, which are dealt out by age."""
        found = dict(states[0])
        for layer, mask in enumerate(self.masks):
            by_age = [s[f"{layer}.rows"].roll(-int(s[f"{layer}.next"]), 0) for s in states]  # the oldest first
            age = torch.cat([torch.arange(len(rows), 0, -1) for rows in by_age])
            together = torch.cat(by_age)[age.argsort(descending=True, stable=True)]
            capacity = self._capacity(mask)
            rows = together[mine :: _num_processes()][-capacity:]
            found[f"{layer}.rows"], found[f"{layer}.next"] = rows, torch.tensor(len(rows) % capacity)
        return found


def _watch_padding(model: Any, estimate: SimilarityEstimate) -> Callable[[], None]:
    """Note which tokens count whenever the model under the language model's head is called in training; what comes back
    ends that. A function and not a method: a copy of the model must not copy the estimate."""
    body = getattr(model, "base_model", model)
    names = list(signature(type(body).forward).parameters)[1:]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training:
            return
        inputs = dict(zip(names, args, strict=False)) | kwargs
        tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        shape = (inputs["inputs_embeds"] if tokens is None else tokens).shape[:2]
        estimate.begin_pass(shape, mask.bool() if isinstance(mask, Tensor) and mask.shape == shape else None)

    return body.register_forward_pre_hook(note, with_kwargs=True).remove


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gram(rows_NK: Tensor) -> Tensor:
    """HᵀH (K, K) over the rows of all processes."""
    gram_KK = rows_NK.T @ rows_NK
    if _num_processes() > 1:
        dist.all_reduce(gram_KK)
    return gram_KK
