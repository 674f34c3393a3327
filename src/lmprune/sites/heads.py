"""The attention heads of a layer as a site. The unit is a key/value group: its query heads, its key and its value."""

from __future__ import annotations

from typing import Any

from torch import nn

from .address import Address
from .families import AttentionSpec
from .site import Site, Writer


def heads(block: nn.Module, spec: AttentionSpec, config: Any, layer: int) -> Site:
    """Group j is its rows of q, k and v and its inputs of `o`. Raises: AttributeError where the block lacks a path.

    Whole groups go, so the number of query heads of a group stays what it was.
    """
    group, dim = queries_per_group(config), head_dim(config)
    rows = {"q": group * dim, "k": dim, "v": dim}
    writers = tuple(
        Writer(block.get_submodule(path), tuple(sum(rows[part] for part in run) for run in runs.split()))
        for path, runs in spec.writers
    )
    reader = block.get_submodule(spec.o)
    scaled = tuple((block.get_submodule(path), name) for path, name in spec.counted)
    return Site(Address("heads", layer), block, writers, reader, group * dim, scaled, spec.o)


def queries_per_group(config: Any) -> int:
    """Query heads that share one key and value."""
    return config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
