"""The config of a Llama-style model with a width for each layer, as Nemotron-NAS (`DeciLMForCausalLM`) reads it.

vLLM, TensorRT-LLM and mlx-lm build that model from `block_configs`; a folder for vLLM carries a copy of this file.
"""

from __future__ import annotations

from transformers import LlamaConfig


class Fields(dict):
    """A JSON object whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """block_configs: one object a layer: `attention` (n_heads_in_group, …) and `ffn` (intermediate_size, …)."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [Fields({part: Fields(block[part]) for part in block}) for block in block_configs]
