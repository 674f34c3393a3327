"""What other runtimes call the architectures of `families.py`, and what they take for granted: one row each.

`tests/test_gguf_variants.py` runs every GGUF row in llama.cpp against transformers, over what its config can say; a row
that it does not run does not go in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .gguf_spec import NUMBER, OFF, GGUFSpec, Only, one_of


def _head_scale(layers: int) -> Only:
    """llama.cpp scales queries by the head size; in the largest model, known by its layers, by D / heads."""

    def fits(value: Any, config: Any) -> bool:
        large = config.num_hidden_layers == layers
        return value == (config.hidden_size // config.num_attention_heads if large else config.head_dim)

    return Only(f"its head_dim (hidden_size / num_attention_heads where it has {layers} layers)", fits)


_SILU = {"hidden_act": one_of("silu", "swish")}
_RELU2 = {"hidden_act": one_of("relu2")}
_GELU = one_of("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # llama.cpp has one: the tanh approximation
#: `{arch}.` + key -> the config fields that may hold it; the first that is there does
KEYS: dict[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "attention.head_count": ("num_attention_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
}

_FFN = ("ffn_gate", "ffn_up", "ffn_down")
_LAYER_NORMS = ("output_norm", "attn_norm", "ffn_norm")
_GPT2 = (*_LAYER_NORMS, "attn_qkv", "attn_output", "ffn_up", "ffn_down")
_CAUSAL = {"use_bidirectional_attention": OFF}
_SOME_SLIDE = {
    "layer_types": Only("sliding_attention in some layers", lambda value, config: "sliding_attention" in value)
}
_TANH_GELU = {"hidden_act": _GELU, "hidden_activation": _GELU}

_LLAMA = GGUFSpec(
    "llama", per_layer="deci", assumes=_SILU, takes=("attn_output", *_FFN), interleaved_rope=True, rope_factors=True
)
_OLMO2 = GGUFSpec("olmo2", assumes=_SILU, head="own", square=True, windows=True)

GGUF: dict[str, GGUFSpec] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "helium": replace(_LLAMA, interleaved_rope=False),
    "qwen2": GGUFSpec("qwen2", assumes=_SILU, square=True),
    "qwen3": GGUFSpec("qwen3", assumes=_SILU),
    "smollm3": GGUFSpec(
        "smollm3",
        assumes={
            **_SILU,
            "no_rope_layers": Only(
                "no rotary positions in every fourth layer, in all others some",
                lambda value, config: value == [int((layer + 1) % 4 > 0) for layer in range(len(value))],
            ),
        },
        interleaved_rope=True,
    ),
    "granite": GGUFSpec(
        "granite",
        assumes={**_SILU, "logits_scaling": NUMBER, "residual_multiplier": NUMBER, "attention_multiplier": NUMBER,
                 "embedding_multiplier": NUMBER},
        keys={"logit_scale": "logits_scaling", "embedding_scale": "embedding_multiplier",
              "residual_scale": "residual_multiplier", "attention.scale": "attention_multiplier"},
        takes=("attn_output", *_FFN),
        interleaved_rope=True,
        rope_factors=True,
    ),
    "arcee": GGUFSpec("arcee", assumes=_RELU2, interleaved_rope=True, rope_factors=True),
    "apertus": GGUFSpec(
        "apertus",
        assumes={"hidden_act": one_of("xielu")},
        scalars={f"xielu.{name}": f"mlp.act_fn.{name}" for name in ("alpha_n", "alpha_p", "beta", "eps")},
        head="own",
        takes=("attn_output",),
        rope_factors=True,
    ),
    "jais2": GGUFSpec("jais2", assumes=_RELU2, biases=(*_LAYER_NORMS, "attn_output", "ffn_up", "ffn_down")),
    "nemotron": GGUFSpec(
        "nemotron",
        assumes=_RELU2,
        head="own",
        biases=_LAYER_NORMS,
        takes=("attn_output", "ffn_up", "ffn_down"),
        square=True,
        norm_offset=1.0,
    ),
    "gemma": GGUFSpec("gemma", assumes={**_TANH_GELU, **_CAUSAL}, head="tied", norm_offset=1.0),
    "gemma2": GGUFSpec(
        "gemma2",
        assumes={**_TANH_GELU, **_CAUSAL, **_SOME_SLIDE, "query_pre_attn_scalar": _head_scale(46),
                 "attn_logit_softcapping": NUMBER, "final_logit_softcapping": NUMBER},
        keys={name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")},
        head="tied",
        windows=True,
        norm_offset=1.0,
    ),
    "gemma3_text": GGUFSpec(
        "gemma3",
        assumes={**_TANH_GELU, **_CAUSAL, "query_pre_attn_scalar": _head_scale(62), "attn_logit_softcapping": OFF},
        keys={"final_logit_softcapping": "final_logit_softcapping"},
        windows=True,
        norm_offset=1.0,
    ),
    "phi3": GGUFSpec("phi3", assumes=_SILU, square=True),
    "starcoder2": GGUFSpec(
        "starcoder2", assumes={"hidden_act": _GELU}, biases=(*_LAYER_NORMS, "attn_output", "ffn_up", "ffn_down"),
        square=True,
    ),
    "stablelm": GGUFSpec(
        "stablelm",
        assumes={**_SILU, "qk_layernorm": OFF},
        keys={"use_parallel_residual": "use_parallel_residual"},
        head="own",
        biases=_LAYER_NORMS,
        square=True,
    ),
    "olmo": GGUFSpec(
        "olmo",
        assumes=_SILU,
        keys={"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": "clip_qkv"},
        square=True,
        interleaved_rope=True,
    ),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "exaone4": GGUFSpec(
        "exaone4",
        assumes={
            **_SILU,
            "sliding_window": Only(
                "None (a number in a model of 64 layers)",
                lambda value, config: (value is not None) == (config.num_hidden_layers == 64),
            ),
        },
        square=True,
        rope_factors=True,
        windows=64,
    ),
    "hunyuan_v1_dense": GGUFSpec("hunyuan-dense", assumes=_SILU),
    "ernie4_5": GGUFSpec("ernie4_5", assumes=_SILU, takes=("attn_output",)),
    "seed_oss": GGUFSpec("seed_oss", assumes=_SILU),
    "glm": GGUFSpec("chatglm", assumes=_SILU, square=True),
    "glm4": GGUFSpec("glm4", assumes=_SILU),
    "phi": GGUFSpec(
        "phi2",
        assumes={"hidden_act": _GELU, "qk_layernorm": OFF},
        head="own",
        biases=("output_norm", "output", "attn_norm", "attn_output", "ffn_up", "ffn_down"),
        square=True,
    ),
    "cohere": GGUFSpec(
        "command-r",
        assumes={**_SILU, "use_qk_norm": OFF, "num_hidden_layers": Only("below 64", lambda value, config: value < 64)},
        keys={"logit_scale": "logit_scale"},
        head="tied",
        square=True,
    ),
    "cohere2": GGUFSpec(
        "cohere2", assumes={**_SILU, **_SOME_SLIDE}, keys={"logit_scale": "logit_scale"}, head="tied", square=True,
        windows=True,
    ),
    "falcon": GGUFSpec(
        "falcon", assumes={"activation": _GELU, "alibi": OFF, "parallel_attn": one_of(True)},
        biases=("output_norm", "attn_norm", "attn_norm_2"), square=True, qkv_by_group=True,
    ),
    "gpt_neox": GGUFSpec(
        "gptneox", assumes={"hidden_act": _GELU}, keys={"use_parallel_residual": "use_parallel_residual"}, head="own",
        biases=_GPT2, square=True, qkv_by_group=True,
    ),
    "gpt2": GGUFSpec(
        "gpt2",
        assumes={"activation_function": _GELU, "scale_attn_by_inverse_layer_idx": OFF,
                 "scale_attn_weights": one_of(True), "add_cross_attention": OFF},
        biases=_GPT2,
        square=True,
    ),
    "gpt_bigcode": GGUFSpec(
        "starcoder",
        assumes={"activation_function": _GELU, "scale_attn_weights": one_of(True), "add_cross_attention": OFF},
        biases=_GPT2,
        square=True,
        qkv_by_group=True,
    ),
    "bloom": GGUFSpec(
        "bloom", assumes={"apply_residual_connection_post_layernorm": OFF},
        biases=("token_embd_norm", *_GPT2), square=True,
        qkv_by_group=True,
    ),
    "mpt": GGUFSpec(
        "mpt",
        assumes={"attn_config.softmax_scale": OFF, "logit_scale": OFF},
        keys={"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": "attn_config.clip_qkv"},
        takes=_GPT2,
        square=True,
    ),
}  # fmt: skip

#: model types that llama.cpp does not run, with the reason that a user gets
NOT_IN_LLAMA_CPP: dict[str, str] = {
    "biogpt": "llama.cpp has no such architecture (learned positions from the third on, scaled embeddings)",
    "codegen": "llama.cpp has no such architecture, nor GPT-J's",
    "diffllama": "llama.cpp has no differential attention",
    "gpt_neo": "llama.cpp has no such architecture (windows in every second layer, unscaled attention)",
    "gptj": "llama.cpp knows the name only: it has no code to run it",
    "nanochat": "llama.cpp has no such architecture (norms without weights, rotary positions the other way round)",
    "opt": "llama.cpp has no such architecture (ReLU, learned positions)",
    "persimmon": "llama.cpp has no such architecture (layer norms with biases on queries and keys)",
    "xglm": "llama.cpp has no such architecture (sinusoidal positions, scaled embeddings)",
}
#: model types whose block is Llama's, as Nemotron-NAS (vLLM, TensorRT-LLM, mlx-lm) builds it
NEMOTRON_NAS = ("llama", "mistral")

#: `tokenizer.ggml.model` of byte-level BPE, and of SentencePiece
BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
UNDERLINE = "▁"  # what SentencePiece writes for a space

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2_SPLIT, DIGITS = "<ByteLevel>", "<Digits>"  # the rules inside the `tokenizers` library's steps of these names

#: steps of a pre-tokenizer, and whether whole words skip the merges -> `tokenizer.ggml.pre`
SPLIT_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2_SPLIT,), False): "gpt-2",
    ((DIGITS, GPT2_SPLIT), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
}

#: other names that llama.cpp has for them
SPLIT_ALIASES: dict[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3"), "llama-bpe"),
    "smaug-bpe": "dbrx",
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    "deepseek-r1-qwen": "qwen2",
}
