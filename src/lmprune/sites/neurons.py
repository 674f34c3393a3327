"""The neurons of a feed-forward layer as a site."""

from __future__ import annotations

from torch import nn

from .address import Address
from .families import FFNSpec
from .site import Leaves, Site, Writer


def neurons(block: nn.Module, spec: FFNSpec, layer: int, leaves: Leaves | None = None) -> Site:
    """Neuron j is row j of every writer and input j of `down`. Raises: AttributeError where the block lacks a path."""
    runs = (1, 1) if spec.fused_gate else (1,)
    writers = tuple(Writer(block.get_submodule(path), runs) for path in (spec.up, spec.gate) if path)
    reader = block.get_submodule(spec.down)
    return Site(Address("neurons", layer), block, writers, reader, what=spec.down, leaves=leaves)
