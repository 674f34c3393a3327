"""Every config field of a family that changes what it computes, changed: what the conformance grid runs over.

A variant is a family (a case of `tiny_models`) with some fields of its config changed. Rows that hold for any family
are in _VALUES, _FLAGS and _ROPES; a row belongs to every family whose config has its first field. What only one family
has is in _OWN. `tests/test_variants.py` holds that no field of any config class is forgotten, and that each variant
computes something else than its family does without it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tiny_models import LAYERS, NAMES, tiny_config, tiny_model
from transformers import CONFIG_MAPPING, PretrainedConfig

#: shorter than any text that is scored
WINDOW, TRAINED = 8, 16

#: name -> fields; the others than the first are set where a config has them
_VALUES: dict[str, dict[str, Any]] = {
    "one_kv_head": {"num_key_value_heads": 1},
    "all_kv_heads": {"num_key_value_heads": 4},
    "head_dim": {"head_dim": 16},
    "window": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "rms_eps": {"rms_norm_eps": 0.3},
    "eps": {"layer_norm_eps": 0.3},
    "norm_epsilon": {"norm_epsilon": 0.3},
    "norm_eps": {"norm_eps": 0.3},
    "layer_norm_epsilon": {"layer_norm_epsilon": 0.3},
    "attention_cap": {"attn_logit_softcapping": 0.5},
    "no_attention_cap": {"attn_logit_softcapping": None},
    "final_cap": {"final_logit_softcapping": 0.5},
    "no_final_cap": {"final_logit_softcapping": None},
    "query_scale": {"query_pre_attn_scalar": 2},
    "logit_scale": {"logit_scale": 0.5},
    "clip_qkv": {"clip_qkv": 0.1},
    **{act: {"hidden_act": act} for act in ("gelu", "gelu_new", "silu", "relu", "relu2", "quick_gelu")},
    **{f"activation_{act}": {"activation_function": act} for act in ("gelu", "gelu_new", "silu", "relu")},
    **{f"hidden_activation_{act}": {"hidden_activation": act} for act in ("gelu", "silu")},
    **{f"falcon_{act}": {"activation": act} for act in ("gelu_new", "silu")},
    "all_layers_full": {"layer_types": ["full_attention"] * LAYERS, "sliding_window": WINDOW},
    "first_layer_slides": {
        "layer_types": ["sliding_attention", *["full_attention"] * (LAYERS - 1)],
        "sliding_window": WINDOW,
        "use_sliding_window": True,
    },
}

#: turned over
_FLAGS = (
    *("attention_bias", "mlp_bias", "use_bias", "bias", "enable_bias", "use_qkv_bias", "attention_out_bias"),
    *("tie_word_embeddings", "use_qk_norm", "qk_layernorm", "use_parallel_residual", "alibi", "multi_query"),
    *("parallel_attn", "apply_residual_connection_post_layernorm", "scale_attn_weights"),
    *("scale_attn_by_inverse_layer_idx", "do_layer_norm_before", "layer_norm_elementwise_affine"),
    *("_remove_final_layer_norm", "scale_embedding", "use_bidirectional_attention"),
)

#: what `rope_parameters` becomes, beside what is there
_ROPES: dict[str, dict[str, Any]] = {
    "rope_theta": {"rope_theta": 50.0},
    "rope_partial": {"partial_rotary_factor": 0.5},
    "rope_whole": {"partial_rotary_factor": 1.0},
    "rope_linear": {"rope_type": "linear", "factor": 4.0},
    "rope_dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "rope_yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "rope_yarn_mscale": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED, "attention_factor": 2.0,
    },
    "rope_longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "rope_llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
}  # fmt: skip

_ALL_SLIDE = {"layer_types": ["sliding_attention"] * LAYERS, "sliding_window": WINDOW}

#: case of tiny_models -> name -> fields
_OWN: dict[str, dict[str, dict[str, Any]]] = {
    "bloom": {"six_heads": {"n_head": 6, "hidden_size": 48}},
    "cohere2": {"all_layers_slide": _ALL_SLIDE},
    "codegen": {"rotary_dim": {"rotary_dim": 8}},
    "exaone4": {"pattern": {"sliding_window": WINDOW, "sliding_window_pattern": 2}},
    "falcon-new": {
        "one_norm": {"num_ln_in_parallel_attn": 1},
        "alibi_with_biases": {"alibi": True, "bias": True},
        "six_heads": {"alibi": True, "num_attention_heads": 6, "num_kv_heads": 2, "hidden_size": 48},
    },
    "falcon-old": {"sequential_alibi": {"alibi": True, "parallel_attn": False}},
    "gemma3_text": {"theta_by_kind": {"sliding_window": WINDOW, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
    }}},
    "gpt2": {"cross_attention": {"add_cross_attention": True}},
    "gpt_bigcode": {"cross_attention": {"add_cross_attention": True}},
    "gpt_neo": {
        "all_global": {"attention_types": [[["global"], LAYERS]]},
        "all_local": {"attention_types": [[["local"], LAYERS]]},
        "window": {"window_size": 4},
    },
    "gptj": {"rotary_dim": {"rotary_dim": 8}},
    "granite": {
        "embedding_multiplier": {"embedding_multiplier": 3.0},
        "logits_scaling": {"logits_scaling": 4.0},
        "residual_multiplier": {"residual_multiplier": 0.3},
        "attention_multiplier": {"attention_multiplier": 0.1},
    },
    "mpt": {
        name: {"attn_config": {name: value}}
        for name, value in {"clip_qkv": 0.1, "softmax_scale": 0.1, "alibi_bias_max": 16}.items()
    } | {"six_heads": {"n_heads": 6, "d_model": 48}},
    "olmo3": {"all_layers_slide": _ALL_SLIDE},
    "opt": {"word_embed_proj_dim": {"word_embed_proj_dim": 16, "tie_word_embeddings": True}},
    "smollm3": {
        "interval": {"no_rope_layer_interval": 2},
        "rope_everywhere": {"no_rope_layers": [1] * LAYERS},
        "rope_nowhere": {"no_rope_layers": [0] * LAYERS},
        "window": {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": WINDOW},
    },
    "qwen2": {"all_layers_slide": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}},
    "qwen3": {"all_layers_slide": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}},
}  # fmt: skip


#: what transformers' own class can't build, or run
CAN_NOT_BE = {
    *("apertus-rope_partial", "diffllama-one_kv_head", "falcon-new-parallel_attn", "gpt_bigcode-cross_attention"),
    *("helium-head_dim", "phi3-rope_linear", "phi3-rope_dynamic", "phi3-rope_yarn", "phi3-rope_yarn_mscale"),
    "phi3-rope_llama3",
}


@dataclass(frozen=True)
class Variant:
    """family: a case of `tiny_models`. name: "plain" where nothing is changed."""

    family: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def model_type(self) -> str:
        return self.family.split("-")[0]

    def model(self, **sizes: Any) -> Any:
        """A tiny model of it (see `tiny_models.tiny_model`), whose norms are not the identity.

        Raises: whatever transformers raises where its class can't build, or run, such a model.
        """
        model = tiny_model(self.family, **{**sizes, **self.changes})
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model


@cache
def variants_of(family: str) -> tuple[Variant, ...]:
    """All of a case of `tiny_models`, the plain one first."""
    config = tiny_config(family)
    known = _fields(config)
    found: dict[str, dict[str, Any]] = {"plain": {}}
    for name, changes in _VALUES.items():
        if next(iter(changes)) in known:
            found[name] = {key: value for key, value in changes.items() if key in known}
    found |= {flag: {flag: not getattr(config, flag)} for flag in _FLAGS if flag in known}
    if rope := getattr(config, "rope_parameters", None):
        found |= {name: {"rope_parameters": _roped(config, rope, more)} for name, more in _ROPES.items()}
        found["rope_dynamic"]["max_position_embeddings"] = TRAINED  # it scales what is longer
    found |= _OWN.get(family, {})
    return tuple(
        Variant(family, name, changes)
        for name, changes in found.items()
        if f"{family}-{name}" not in CAN_NOT_BE
        and (name == "plain" or any(getattr(config, key) != value for key, value in changes.items()))
    )


def all_variants() -> list[Variant]:
    return [variant for family in NAMES for variant in variants_of(family)]


def _fields(config: PretrainedConfig) -> set[str]:
    return {f.name for f in dataclasses.fields(CONFIG_MAPPING[config.model_type])} | {"tie_word_embeddings"}


def _roped(config: PretrainedConfig, rope: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings with `more`, for each kind of layer where there are several."""
    if "rope_theta" not in rope:
        return {kind: _roped(config, each, more) for kind, each in rope.items()}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head * rope.get("partial_rotary_factor", 1.0) < 4:  # one frequency: nothing of it could be scaled
        rope = {**rope, "partial_rotary_factor": 0.5}
    if more.get("rope_type") == "longrope":
        number = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
        more = {**more, "short_factor": [1.5] * number, "long_factor": [4.0] * number}
    return {**rope, **more}
