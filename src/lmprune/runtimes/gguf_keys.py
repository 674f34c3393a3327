"""What a GGUF file may say beside what we write ourselves, and what follows from what it does not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: the plan of a model that lmprune pruned
PLAN_KEY = "lmprune.plan"

#: `{arch}.` + key -> the config fields that may hold it
READ_KEYS: Mapping[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "max_seq_len"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}

#: keys that say nothing of what is computed, and why
IRRELEVANT: Mapping[str, str] = {
    "context_length": "position encodings of this family have no limit",
    "rope.scaling.finetuned": "how it was trained",
    "tensor_data_layout": "how it was converted; the order of rows is always the same",
}

#: values of keys that are as good as no key
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("expert_count", "expert_used_count", "nextn_predict_layers", "pooling_type"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"), (0,)),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale", "attention.scale"), (0,)),
    **dict.fromkeys(("embedding_scale", "residual_scale", "rope.scale_linear"), (0, 1)),
    **dict.fromkeys(("expert_gating_func", "expert_group_count", "expert_group_used_count"), (0, 1)),
    "attention.causal": (True,),
}

#: config fields that no key tells -> what they may be; what the architecture takes for granted decides
UNTOLD: Mapping[str, tuple[Callable[[Any], Any], ...]] = {
    "query_pre_attn_scalar": (
        lambda config: config.head_dim,
        lambda config: config.hidden_size // config.num_attention_heads,
    ),
    "sliding_window": (lambda config: None,),
}
