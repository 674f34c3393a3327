"""What a GGUF file says of a model beside its tensors, and whether llama.cpp then computes what the model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from ..errors import UserError
from ..runtimes.architectures import KEYS, NOT_IN_LLAMA_CPP
from ..runtimes.gguf_spec import GGUFSpec
from ..runtimes.mixtures import NOT_IN_GGUF, ROWS, elsewhere
from ..sites.experts import Experts
from ..sites.find import find_sites
from ..sites.heads import HeadCounts
from ..sites.limits import max_context
from ..sites.mixtures import is_mixture, mixture_of
from ..sites.pages import value_of
from ..sites.site import Site
from .gaps import attention_alone
from .gguf_tensors import STUB
from .head_counts import heads_by_layer
from .unlike import one_shape

_CONTEXT = 2048  # for families whose position encoding has no limit

#: config fields that change nothing that a finished model computes from its text
WITHOUT_EFFECT = frozenset(
    """
    attention_dropout attn_pdrop embd_pdrop embedding_dropout emb_pdrop resid_pdrop
    residual_dropout hidden_dropout classifier_dropout
    initializer_range use_cache pretraining_tp init_device slow_but_exact reorder_and_upcast_attn
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 is_decoder
    pad_token_id bos_token_id eos_token_id eod_token_id
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    output_router_logits router_aux_loss_coef router_jitter_noise sep_token_id num_mtp_layers
    original_max_position_embeddings learned_pos_emb no_bias norm_type embedding_fraction no_rope_layer_interval
    """.split()
)

#: config fields that the tensors show: sizes, and what has a bias
SHOWN_BY_TENSORS = frozenset(
    """
    vocab_size hidden_size n_embd d_model intermediate_size n_inner ffn_hidden_size expansion_ratio num_hidden_layers
    n_layer n_layers num_attention_heads n_head n_heads tie_word_embeddings
    attention_bias attention_out_bias mlp_bias use_bias use_qkv_bias qkv_bias use_qk_norm bias num_ln_in_parallel_attn
    """.split()
)

#: config fields that are written, or refused, in every architecture
WRITTEN = frozenset(
    """
    head_dim num_key_value_heads num_kv_heads multi_query new_decoder_architecture
    max_position_embeddings n_positions max_seq_len rope_parameters
    num_local_experts num_experts n_routed_experts moe_num_experts num_experts_per_tok moe_k moe_topk
    moe_intermediate_size topk_group
    sliding_window use_sliding_window max_window_layers layer_types sliding_window_pattern
    """.split()
)


def spec_of(config: Any) -> GGUFSpec:
    """The row for the model. Raises: UserError where there is none, or llama.cpp takes for granted what is not so."""
    model_type = config.model_type
    if model_type not in ROWS:
        reasons = NOT_IN_LLAMA_CPP | NOT_IN_GGUF
        why = reasons.get(model_type, f"it can write {', '.join(sorted(ROWS))}")
        raise UserError(f"lmprune can't write {model_type} to GGUF: {why}; {elsewhere(config)}")
    spec = ROWS[model_type]
    for name, only in spec.assumes.items():
        value, there = _field(config, name)
        if there and not only.fits(value, config):
            raise UserError(
                f"llama.cpp runs {spec.arch} with {name} {only.words}, but this model has {value}; {elsewhere(config)}"
            )
    for name in unaccounted(config, spec):  # as a later transformers may have them
        if _is_default(config, name):
            continue
        raise UserError(
            f"lmprune doesn't know what {name} {getattr(config, name)} of this model is to llama.cpp's {spec.arch}; "
            f"{elsewhere(config)}"
        )
    return spec


def check_square(model: Any, spec: GGUFSpec) -> None:
    """Raises: UserError where llama.cpp takes for granted that all heads together are as wide as the model, and they
    are not."""
    width = model.config.hidden_size
    for layer, heads in heads_by_layer(model).items():
        if spec.square and heads.queries * heads.dim != width:
            raise UserError(
                f"llama.cpp runs {spec.arch} with heads as wide as the model together, {width}, "
                f"but this model has {heads.queries} of head_dim {heads.dim} in layer {layer}; "
                f"{elsewhere(model.config)}"
            )


def unaccounted(config: Any, spec: GGUFSpec) -> list[str]:
    """Fields of the config's own class that nobody looks at."""
    base = next(cls for cls in type(config).__mro__ if cls.__dict__.get("model_type") == "")
    named = [name.split(".")[0] for name in (*spec.assumes, *spec.keys.values()) if isinstance(name, str)]
    named += [name for name in spec.counts.values() if isinstance(name, str)]
    known = {*named, *(name for names in KEYS.values() for name in names), *(f.name for f in dataclasses.fields(base))}
    known |= WITHOUT_EFFECT | SHOWN_BY_TENSORS | WRITTEN
    return [field.name for field in dataclasses.fields(config) if field.name not in known]


def _is_default(config: Any, name: str) -> bool:
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    return getattr(config, name, field.default) == field.default


def _field(config: Any, name: str) -> tuple[Any, bool]:
    """(the value of a field `a`, or of `a.b`, whether there is one)."""
    for part in name.split("."):
        if not hasattr(config, part):
            return None, False
        config = getattr(config, part)
    return config, True


def hyperparameters(model: Any, ffns: Sequence[Site], spec: GGUFSpec, *, per_layer: bool) -> dict[str, Any]:
    """Metadata keys after `{arch}.`, without the rotary ones."""
    config = model.config
    found: dict[str, Any] = _windows(config, spec)
    for key, names in KEYS.items():
        value = next((v for name in names if (v := getattr(config, name, None)) is not None), None)
        if value is not None:
            found[key] = value
    experts = _experts(model)  # first: of unlike layers a config tells no width
    found |= _counts(model, ffns, per_layer=per_layer) | experts
    for key, value in spec.counts.items():
        found[key] = getattr(config, value) if isinstance(value, str) else value(config) if callable(value) else value
    for key, value in spec.keys.items():
        value = _field(config, value)[0] if isinstance(value, str) else value
        if value is not None:
            found[key] = value if isinstance(value, bool) else float(value)
    return found


def _counts(model: Any, ffns: Sequence[Site], *, per_layer: bool) -> dict[str, Any]:
    """Heads and neurons: the first layer's, or a list of each layer's, 0 where there are none."""
    heads, stubs = heads_by_layer(model), dict.fromkeys(attention_alone(model), STUB)
    widths = {ffn.layer: ffn.width for ffn in ffns} or {0: model.config.intermediate_size}
    size = next(iter(heads.values())).dim
    if 0 not in heads:
        heads = {0: HeadCounts(1, 1, size), **heads}
    by_layer = {
        "feed_forward_length": widths | stubs,
        "attention.head_count": {layer: counts.queries for layer, counts in heads.items()},
        "attention.head_count_kv": {layer: counts.groups for layer, counts in heads.items()},
    }
    layers = range(model.config.num_hidden_layers) if per_layer else ()
    found = {
        key: [counts.get(layer, 0) for layer in layers] or next(iter(counts.values()))
        for key, counts in by_layer.items()
    }
    return {**found, "attention.key_length": size, "attention.value_length": size}


def _experts(model: Any) -> dict[str, int]:
    """How many there are in a layer, how many a token goes to, and how wide they are; nothing for a dense model."""
    if not is_mixture(model.config):
        return {}
    count, width = one_shape(model, "llama.cpp")
    own = mixture_of(model.config).width_key == "intermediate_size"
    used = cast(list[Experts], find_sites(model, ("experts",)))[0].top_k
    found = {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}
    return found | ({"feed_forward_length": width} if own else {})


def windows(config: Any) -> list[int | None]:
    """The sliding window of each layer."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not kinds:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _windows(config: Any, spec: GGUFSpec) -> dict[str, Any]:
    """Which layers have a window; where llama.cpp knows none, the context ends with the shortest."""
    found = windows(config)
    context = max_context(config) or _CONTEXT
    shortest = min((window for window in found if window), default=context)
    if any(found) and (spec.windows is True or spec.windows == len(found)):
        sliding = {"attention.sliding_window": shortest, "attention.sliding_window_pattern": [bool(w) for w in found]}
        return {"context_length": context, **sliding}
    return {"context_length": min(context, shortest)}


def scalars(model: Any, spec: GGUFSpec) -> dict[str, list[float]]:
    """Metadata keys that hold parameters of one number, one a layer."""
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {
        key: [value_of(model, name).item() for name in names if name.endswith(f".{ending}")]
        for key, ending in spec.scalars.items()
    }
