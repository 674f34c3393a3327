"""A tiny random model of every family, for conformance tests: 3 layers, D 32, F 48, vocabulary 128."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from lmprune.checkpoints.shim import PREFIX
from lmprune.sites.families import FAMILIES

WIDTH, LAYERS, VOCABULARY = 48, 3, 128

#: sizes under every name that a config may have for them
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    **dict.fromkeys(("initializer_range", "init_std"), 0.1),
}

#: what a family needs besides; "-" separates variants of one family
_EXTRA: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neox-parallel": {"use_parallel_residual": True},
    "gpt_neox-sequential": {"use_parallel_residual": False},
    "falcon-old": {"new_decoder_architecture": False, "bias": True},
    "falcon-new": {"new_decoder_architecture": True, "bias": False, "num_kv_heads": 2},
    "bloom": {"hidden_size": 32},
    "mpt": {},
    "llama": {"mlp_bias": True},
    "llama-untied": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 8},
}

#: one name a test case: the model type, or "model_type-variant"
_VARIANTS = [name for name in _EXTRA if "-" in name]
_WITH_VARIANTS = {name.split("-")[0] for name in _VARIANTS} - {"llama"}
NAMES = sorted([*_VARIANTS, *(t for t in FAMILIES if t not in _WITH_VARIANTS)])


def tiny_config(name: str, **changes: Any) -> PretrainedConfig:
    model_type = name.split("-")[0]
    cls = CONFIG_MAPPING[model_type]
    known = {f.name for f in dataclasses.fields(cls)}
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    return cls(**{**sizes, **_EXTRA.get(name, {}), **changes})


def tiny_model(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """Seeded, in eval mode; no bias is zero, so that a cut that forgets one shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


def tokens(rows: int = 2, length: int = 12, *, seed: int = 1) -> torch.Tensor:
    """Input ids (rows, length); 0 is the padding token and does not occur."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(tokens() if input_ids is None else input_ids).logits


def is_pruned_class(model: Any) -> bool:
    return type(model).__name__.startswith(PREFIX)
