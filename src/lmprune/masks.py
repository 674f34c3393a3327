"""Masks at the seam: the input of `down`, where setting `h_j = 0` is exactly the removal of neuron `j`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from .ffn import FFN


@contextmanager
def masked(ffns: Sequence[FFN], masks: Sequence[Tensor]) -> Iterator[None]:
    """Multiply each layer's neuron outputs by its mask (F,) (0/1 or real) for the length of a `with` block."""
    with ExitStack() as stack:
        for ffn, mask in zip(ffns, masks, strict=True):
            stack.callback(ffn.down.register_forward_pre_hook(_multiply(mask)).remove)
        yield


def _multiply(mask: Tensor):
    def hook(_module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h_NF, *rest = args
        return (h_NF * mask.to(h_NF), *rest)

    return hook
