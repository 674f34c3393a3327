"""What other runtimes call the architectures of `families.py`, and what they take for granted: one row each.

`tests/test_gguf.py` runs every GGUF row in llama.cpp against transformers; a row that it does not run does not go in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SILU = {"hidden_act": ("silu",)}
_RELU2 = {"hidden_act": ("relu2",)}
_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # llama.cpp has one: the tanh approximation


@dataclass(frozen=True)
class GGUFSpec:
    """How llama.cpp stores and runs a model type.

    arch: `general.architecture`. per_layer: the architecture that runs the same block with a width for each layer (and
        any bias in the FFN); None where llama.cpp has none.
    assumes: config fields and the values that llama.cpp's graph is right for; a field that a config lacks is fine.
    interleaved_rope: rotary pairs are neighbours (x0, x1), so the rows of q and k change places.
    rope_factors: it reads one factor for each rotary frequency, which covers every static kind of rope scaling.
    qkv_by_head: the fused projection holds q, k, v of head 0, then of head 1, …, where llama.cpp wants all q first.
    norm_offset: what the model adds to its norms' weights.
    keys: metadata beside that which all have, `{arch}.` + key -> config field, or the value itself.
    """

    arch: str
    per_layer: str | None = None
    assumes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    interleaved_rope: bool = False
    rope_factors: bool = False
    qkv_by_head: bool = False
    norm_offset: float = 0.0
    keys: Mapping[str, Any] = field(default_factory=dict)


#: `{arch}.` + key -> the config fields that may hold it; the first that is there does
KEYS: dict[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "use_parallel_residual": ("use_parallel_residual",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
}

_LLAMA = GGUFSpec("llama", per_layer="deci", assumes=_SILU, interleaved_rope=True, rope_factors=True)

GGUF: dict[str, GGUFSpec] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GGUFSpec("qwen2", assumes={**_SILU, "use_sliding_window": (False,)}),
    "qwen3": GGUFSpec("qwen3", assumes={**_SILU, "use_sliding_window": (False,), "attention_bias": (False,)}),
    "smollm3": GGUFSpec("smollm3", assumes={**_SILU, "use_sliding_window": (False,)}, interleaved_rope=True),
    "granite": GGUFSpec("granite", assumes=_SILU, interleaved_rope=True, rope_factors=True),
    "arcee": GGUFSpec("arcee", assumes=_RELU2, interleaved_rope=True, rope_factors=True),
    "nemotron": GGUFSpec("nemotron", assumes=_RELU2, norm_offset=1.0),
    "gemma": GGUFSpec("gemma", norm_offset=1.0),
    "phi3": GGUFSpec("phi3", assumes=_SILU, keys={"attention.sliding_window": "sliding_window"}),
    "starcoder2": GGUFSpec("starcoder2", assumes={"hidden_act": _GELU}),
    "stablelm": GGUFSpec("stablelm", assumes={**_SILU, "qk_layernorm": (False,)}),
    "olmo2": GGUFSpec("olmo2", assumes=_SILU),
    "ernie4_5": GGUFSpec("ernie4_5", assumes=_SILU),
    "seed_oss": GGUFSpec("seed_oss", assumes=_SILU),
    "phi": GGUFSpec("phi2", assumes={"hidden_act": _GELU, "qk_layernorm": (False,)}),
    "cohere": GGUFSpec("command-r", assumes={**_SILU, "use_qk_norm": (False,)}),
    "gpt_neox": GGUFSpec("gptneox", assumes={"hidden_act": _GELU}, qkv_by_head=True),
    "gpt2": GGUFSpec(
        "gpt2",
        assumes={
            "activation_function": _GELU,
            "scale_attn_by_inverse_layer_idx": (False,),
            "scale_attn_weights": (True,),
        },
    ),
    "gpt_bigcode": GGUFSpec("starcoder", assumes={"activation_function": _GELU}),
    "bloom": GGUFSpec("bloom", assumes={"apply_residual_connection_post_layernorm": (False,)}, qkv_by_head=True),
    "mpt": GGUFSpec("mpt", keys={"attention.max_alibi_bias": 8.0}),
}

#: model types whose block is Llama's, as Nemotron-NAS (vLLM, TensorRT-LLM, mlx-lm) builds it
NEMOTRON_NAS = ("llama", "mistral")

#: `tokenizer.ggml.model` of byte-level BPE, and of SentencePiece
BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2_SPLIT, DIGITS = "<ByteLevel>", "<Digits>"  # the rules inside the `tokenizers` library's steps of these names

#: steps of a pre-tokenizer, and whether whole words skip the merges -> `tokenizer.ggml.pre`
SPLITS: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2_SPLIT,), False): "gpt-2",
    ((DIGITS, GPT2_SPLIT), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
}
