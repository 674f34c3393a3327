"""A tiny random mixture of every row of MIXTURES: 3 layers (the first one often dense), D 32, 8 experts, 2 a token."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tiny_models import _SIZES, tiny_model  # noqa: F401
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from lmprune.sites.mixtures import MIXTURES

EXPERTS, TOP_K = 8, 2

_MORE: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), TOP_K),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("mamba_d_state", "mamba_dt_rank"), 4),
}

_MLA = {"head_dim": 8, "num_key_value_heads": 4}
#: what a family needs besides; "-" separates variants of one family
_EXTRA: dict[str, dict[str, Any]] = {
    "deepseek_v2": _MLA,
    "deepseek_v2-groups": {**_MLA, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "deepseek_v3": _MLA,
    "deepseek_v3-groups": {**_MLA, "n_group": 2, "topk_group": 1},
    "glm4_moe_lite": _MLA,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 2, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "gpt_oss": {"sliding_window": 8},
}

NAMES = sorted({*MIXTURES, *_EXTRA})


def tiny_mixture_config(name: str, **changes: Any) -> PretrainedConfig:
    cls = CONFIG_MAPPING[name.split("-")[0]]
    known = {f.name for f in dataclasses.fields(cls)}
    sizes = {key: value for key, value in (_SIZES | _MORE).items() if key in known}
    return cls(**{**sizes, **_EXTRA.get(name, {}), **changes})


def tiny_mixture(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """Seeded, in eval mode; no bias is zero, so that a cut that forgets one shows, nor do all experts look alike."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_mixture_config(name, **changes)).eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("bias"):
                tensor.normal_(std=0.3)
            elif ".experts." in key or key.endswith((".gate.weight", ".router.weight")):
                tensor.mul_(3)
    return model
