"""How many heads each layer of a model has, whatever its config says."""

from __future__ import annotations

from typing import Any

from ..runtimes.gguf_layout import head_size, num_kv_heads
from ..sites.families import ATTENTION, family_of
from ..sites.find import blocks_of
from ..sites.heads import HeadCounts, head_counts
from .gaps import gaps


def heads_by_layer(model: Any) -> dict[int, HeadCounts]:
    """The heads of each layer that has an attention. Of models whose heads can't be removed, the config tells."""
    config, gone = model.config, gaps(model, "attention")
    spec = ATTENTION.get(config.model_type)
    if spec is None:
        counts = HeadCounts(config.num_attention_heads, num_kv_heads(config), head_size(config))
        return {layer: counts for layer in range(config.num_hidden_layers) if layer not in gone}
    blocks = enumerate(blocks_of(model, family_of(config)))
    return {layer: head_counts(block, spec) for layer, block in blocks if layer not in gone}
