"""How long a sequence a model takes."""

from __future__ import annotations

from typing import Any


def max_context(config: Any) -> int | None:
    """The longest sequence a model of this config takes; None where it names no limit (bloom)."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    return None
