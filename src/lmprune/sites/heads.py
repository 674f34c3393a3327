"""The attention heads of a layer as a site.

The unit is a key/value group: its query heads, its key and its value. So what each query head reads stays what it was.
Where the model has only one group in a layer, the unit is a query head, and the key and the value stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .address import Address
from .families import AttentionSpec
from .linears import inputs_of, outputs_of
from .site import Leaves, Site, Writer


@dataclass(frozen=True)
class HeadCounts:
    """How many query heads and key/value groups a layer has, and how many inputs of `o` a query head writes."""

    queries: int
    groups: int
    dim: int


def attention_layer(block: nn.Module, spec: AttentionSpec) -> nn.Module:
    """The module that holds `o`."""
    return block.get_submodule(spec.o.rpartition(".")[0])


def head_counts(block: nn.Module, spec: AttentionSpec) -> HeadCounts:
    """Read off the shapes, so of a cut layer too. Raises: AttributeError where the block lacks a path."""
    dim = getattr(attention_layer(block, spec), spec.head_dim)
    queries = inputs_of(block.get_submodule(spec.o)) // dim
    heads = sum(outputs_of(block.get_submodule(path)) for path, _ in spec.writers) // dim
    return HeadCounts(queries, (heads - queries) // 2, dim)


def heads(block: nn.Module, spec: AttentionSpec, config: Any, layer: int, leaves: Leaves | None = None) -> Site:
    """Group j is its rows of q, k and v and its inputs of `o`. Raises: AttributeError where the block lacks a path."""
    counts, one_group = head_counts(block, spec), has_one_group(config)
    queries = 1 if one_group else counts.queries // counts.groups
    rows = {"q": queries * counts.dim, **dict.fromkeys("kv", 0 if one_group else counts.dim)}
    units = counts.queries // queries
    writers = []
    for path, runs in spec.writers:
        linear = block.get_submodule(path)
        sizes = tuple(size for run in runs.split() if (size := sum(rows[part] for part in run)))
        if sizes:
            writers.append(Writer(linear, sizes, shared=outputs_of(linear) - sum(sizes) * units))
    attention = attention_layer(block, spec)
    per_group = [name for name in ("num_key_value_groups",) if hasattr(attention, name)]
    names = (*spec.queries, *(per_group if one_group else spec.groups))
    scaled = tuple((attention, name) for name in names)
    reader = block.get_submodule(spec.o)
    return Site(Address("heads", layer), block, tuple(writers), reader, rows["q"], scaled, spec.o, leaves)


def has_one_group(config: Any) -> bool:
    """Whether all query heads of a layer read one key and one value; the model's, and not what is left in a layer."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return True
    return 1 in (getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads"))
