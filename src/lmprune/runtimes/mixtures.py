"""What llama.cpp calls the mixtures of `sites.mixtures`, and what it takes for granted of them: one row each, as
`architectures` has them of dense models.

It chooses experts by the softmax of the router's logits, and makes the gates of those chosen sum to one, where a row
does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gguf import MODEL_TENSOR as T
from torch import Tensor, nn

from ..sites.experts import experts
from ..sites.mixtures import is_mixture, mixture_of
from .architectures import GGUF
from .gguf_spec import OFF, GGUFSpec, Only, one_of

_SILU = {"hidden_act": one_of("silu", "swish")}
#: every layer is a mixture
_ALL = {"decoder_sparse_step": one_of(1), "mlp_only_layers": Only("empty", lambda value, config: not value)}
#: llama.cpp gives every query head a key of its own
_MULTI_HEAD = {"num_key_value_heads": Only("as many as there are query heads", lambda v, c: v == c.num_attention_heads)}
_SIGMOID = 2
_GRANITE = {
    "logit_scale": "logits_scaling", "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier", "attention.scale": "attention_multiplier",
}  # fmt: skip


def _deepseek(arch: str, assumes: Mapping[str, Only] = {}) -> GGUFSpec:
    """Sigmoids and a bias that the choice is made by, after a few dense layers."""
    return GGUFSpec(
        arch,
        assumes={**_SILU, "n_group": one_of(1), **assumes},
        keys={"expert_weights_scale": "routed_scaling_factor", "expert_weights_norm": "norm_topk_prob"},
        counts={"leading_dense_block_count": "first_k_dense_replace", "expert_shared_count": "n_shared_experts",
                "expert_gating_func": _SIGMOID},
    )  # fmt: skip


MIXTURES_IN_GGUF: dict[str, GGUFSpec] = {
    "mixtral": GGUFSpec("llama", assumes=_SILU, interleaved_rope=True, rope_factors=True),
    "qwen2_moe": GGUFSpec(
        "qwen2moe",
        assumes={**_SILU, **_ALL, "norm_topk_prob": OFF},
        counts={"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    ),
    "qwen3_moe": GGUFSpec("qwen3moe", assumes={**_SILU, **_ALL, "norm_topk_prob": one_of(True)}),
    "olmoe": GGUFSpec("olmoe", assumes={**_SILU, **_MULTI_HEAD, "clip_qkv": OFF, "norm_topk_prob": OFF}),
    "granitemoe": GGUFSpec("granitemoe", assumes=_SILU, keys=_GRANITE, interleaved_rope=True, rope_factors=True),
    "granitemoeshared": GGUFSpec(
        "granitemoe",
        assumes=_SILU,
        keys=_GRANITE,
        counts={"expert_shared_feed_forward_length": "shared_intermediate_size"},
        splits={"shared_mlp.input_linear.weight": (T.FFN_GATE_SHEXP, T.FFN_UP_SHEXP),
                "shared_mlp.output_linear.weight": (T.FFN_DOWN_SHEXP,)},
        interleaved_rope=True,
        rope_factors=True,
    ),
    "ernie4_5_moe": GGUFSpec(
        "ernie4_5-moe",
        assumes={**_SILU, "moe_layer_end_index": Only(
            "the last layer", lambda value, config: value in (-1, config.num_hidden_layers - 1)
        ), "moe_norm_min": one_of(1e-12)},
        counts={"leading_dense_block_count": "moe_layer_start_index", "interleave_moe_layer_step": "moe_layer_interval",
                "expert_shared_count": "moe_num_shared_experts",
                "expert_shared_feed_forward_length": lambda c: c.moe_intermediate_size * c.moe_num_shared_experts},
    ),
    "dots1": _deepseek("dots1", _MULTI_HEAD),
    "glm4_moe": _deepseek("glm4moe"),
    "hunyuan_v1_moe": GGUFSpec(
        "hunyuan-moe", assumes=_SILU,
        counts={"expert_shared_count": 1, "expert_shared_feed_forward_length": "intermediate_size"},
    ),
    "minimax_m2": GGUFSpec("minimax-m2", assumes=_SILU, counts={"expert_gating_func": _SIGMOID}),
}  # fmt: skip

#: every model type that can be a GGUF file -> its row
ROWS = GGUF | MIXTURES_IN_GGUF
#: the config fields that may hold how many experts a token goes to
TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk")
#: mixtures that can't be written, with the reason that a user gets
NOT_IN_GGUF: dict[str, str] = {
    "phimoe": "llama.cpp routes by a plain softmax, and PhiMoE by another rule (SparseMixer)",
}


def elsewhere(config: Any) -> str:
    """Where a model goes that can't be a GGUF file."""
    return "use --to hf-uniform" if is_mixture(config) else "use --to onnx"


def expert_tensors(model: Any) -> dict[str, tuple[T, ...]]:
    """Parameters and buffers of experts and routers -> the kinds of tensor that they are in a file; of several the
    parts follow one another in the second dimension. Empty for a dense model."""
    if not is_mixture(model.config):
        return {}
    spec, found = mixture_of(model.config), {}
    for layer, block in enumerate(model.get_submodule(spec.blocks)):
        if experts(block, spec, layer) is None:
            continue
        home = f"{spec.blocks}.{layer}.{spec.home}."
        found[f"{home}{spec.experts}.{spec.up}"] = (T.FFN_GATE_EXP, T.FFN_UP_EXP)
        found[f"{home}{spec.experts}.{spec.down}"] = (T.FFN_DOWN_EXP,)
        found[f"{home}{spec.logits}.weight"] = (T.FFN_GATE_INP,)
        if spec.choice:
            found[f"{home}{spec.choice}"] = (T.FFN_EXP_PROBS_B,)
    return found


def stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, and buffers of experts, by name."""
    yield from model.named_parameters()
    wanted = expert_tensors(model)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in wanted)
