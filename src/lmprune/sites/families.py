"""Where each architecture keeps its feed-forward neurons: THE place a new architecture goes, one row each.

Nothing else in lmprune knows a layer's name. `docs/add_a_family.md` says how to add a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from .. import plugins
from ..errors import UserError
from .mixtures import is_mixture


@dataclass(frozen=True)
class FFNSpec:
    """Paths to the feed-forward layers of a decoder-only model.

    blocks: path from the causal-LM model to its list of blocks.
    up, gate: the writers, relative to a block; row `j` of each belongs to neuron `j`.
    down: the reader; its input is the seam, where neuron `j`'s output `h_j` can be seen and masked.
    width_key: the config field that holds F; None where the modelling code hard-codes it.
    fused_gate: `up` holds [gate; up] stacked, 2F rows.
    """

    blocks: str
    up: str
    down: str
    width_key: str | None
    gate: str | None = None
    fused_gate: bool = False


@dataclass(frozen=True)
class AttentionSpec:
    """Paths to the attention layers of a decoder-only model, relative to a block.

    writers: (path, runs) of each linear that writes queries, keys and values. runs: the order of its outputs; letters
    that stand together are together in each key/value group. "q k v" is [all q; all k; all v], "qkv" is q, k, v of
    the first group, then of the second.
    o: the reader; its input is the seam, where a group's output can be seen and masked. The module that holds it is the
    attention layer, whose attributes these are:
    head_dim: how many inputs of `o` a query head writes.
    queries: what counts query heads, or their rows, and must follow a cut; "config.x": a field that the layer reads
    from the model's config whenever it is called.
    groups: what counts key/value groups.
    in_config: the modelling code takes the size of a head from `config.head_dim`, so that a config can say that there
    are fewer heads than fill the model's width.
    repeats: the config field that, where it is set, has transformers cache a group's key and value once for each of
    its query heads.
    """

    writers: tuple[tuple[str, str], ...]
    o: str
    head_dim: str = "head_dim"
    queries: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    in_config: bool = False
    repeats: str = ""


def _gated(blocks: str = "model.layers") -> FFNSpec:
    return FFNSpec(blocks, "mlp.up_proj", "mlp.down_proj", "intermediate_size", gate="mlp.gate_proj")


def _fused(blocks: str = "model.layers") -> FFNSpec:
    return FFNSpec(blocks, "mlp.gate_up_proj", "mlp.down_proj", "intermediate_size", fused_gate=True)


def _neox(blocks: str, width_key: str | None) -> FFNSpec:
    return FFNSpec(blocks, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", width_key)


def _plain(up: str, down: str, blocks: str = "model.layers", width_key: str = "intermediate_size") -> FFNSpec:
    return FFNSpec(blocks, up, down, width_key)


_GATED = """
    llama mistral ministral qwen2 qwen3 gemma gemma2 gemma3_text olmo olmo2 olmo3 exaone4 stablelm granite smollm3
    cohere cohere2 helium hunyuan_v1_dense seed_oss ernie4_5 diffllama
""".split()

FAMILIES: dict[str, FFNSpec] = {
    "gpt2": _plain("mlp.c_fc", "mlp.c_proj", "transformer.h", "n_inner"),
    "gpt_bigcode": _plain("mlp.c_fc", "mlp.c_proj", "transformer.h", "n_inner"),
    "gpt_neo": _plain("mlp.c_fc", "mlp.c_proj", "transformer.h"),
    "gptj": _plain("mlp.fc_in", "mlp.fc_out", "transformer.h", "n_inner"),
    "codegen": _plain("mlp.fc_in", "mlp.fc_out", "transformer.h", "n_inner"),
    "gpt_neox": _neox("gpt_neox.layers", "intermediate_size"),
    "persimmon": _neox("model.layers", "intermediate_size"),
    "falcon": _neox("transformer.h", "ffn_hidden_size"),
    "bloom": _neox("transformer.h", None),
    "mpt": FFNSpec("transformer.blocks", "ffn.up_proj", "ffn.down_proj", None),
    "opt": _plain("fc1", "fc2", "model.decoder.layers", "ffn_dim"),
    "biogpt": _plain("fc1", "fc2", "biogpt.layers"),
    "xglm": _plain("fc1", "fc2", width_key="ffn_dim"),
    "phi": _plain("mlp.fc1", "mlp.fc2"),
    "nanochat": _plain("mlp.fc1", "mlp.fc2"),
    "starcoder2": _plain("mlp.c_fc", "mlp.c_proj"),
    "nemotron": _plain("mlp.up_proj", "mlp.down_proj"),
    "arcee": _plain("mlp.up_proj", "mlp.down_proj"),
    "apertus": _plain("mlp.up_proj", "mlp.down_proj"),
    "jais2": _plain("mlp.up_proj", "mlp.down_proj"),
    **{model_type: _gated() for model_type in _GATED},
    "phi3": _fused(),
    "glm": _fused(),
    "glm4": _fused(),
}

_BUILT_IN = frozenset(FAMILIES)


def _separate(home: str, o: str, **more: Any) -> AttentionSpec:
    """q_proj, k_proj and v_proj in the module `home`."""
    return AttentionSpec(tuple((f"{home}.{part}_proj", part) for part in "qkv"), f"{home}.{o}", **more)


def _together(home: str, qkv: str, o: str, runs: str, **more: Any) -> AttentionSpec:
    """Queries, keys and values in one linear of the module `home`."""
    return AttentionSpec(((f"{home}.{qkv}", runs),), f"{home}.{o}", **more)


_SEPARATE = """
    llama mistral ministral qwen2 qwen3 gemma gemma2 gemma3_text olmo exaone4 granite smollm3 cohere cohere2
    hunyuan_v1_dense seed_oss ernie4_5 nanochat starcoder2 nemotron arcee apertus jais2 glm glm4
""".split()
_BY_HEADS, _BY_BOTH = {"queries": ("num_heads",)}, {"queries": ("num_heads",), "groups": ("num_key_value_heads",)}

#: Where the heads are.
ATTENTION: dict[str, AttentionSpec] = {
    "gpt2": _together("attn", "c_attn", "c_proj", "q k v", queries=("split_size",)),
    "gpt_bigcode": _together("attn", "c_attn", "c_proj", "qkv", queries=("num_heads", "embed_dim")),
    "gpt_neo": _separate("attn.attention", "out_proj", **_BY_HEADS),
    "gptj": _separate("attn", "out_proj", queries=("num_attention_heads",)),
    "gpt_neox": _together("attention", "query_key_value", "dense", "qkv", head_dim="head_size"),
    "persimmon": _together("self_attn", "query_key_value", "dense", "qkv", **_BY_HEADS),
    "falcon": _together(
        *("self_attention", "query_key_value", "dense", "qkv"),
        queries=("num_heads",),
        groups=("num_kv_heads",),
        repeats="new_decoder_architecture",
    ),
    "opt": _separate("self_attn", "out_proj", **_BY_HEADS),
    "biogpt": _separate("self_attn", "out_proj"),
    "xglm": _separate("self_attn", "out_proj", queries=("num_heads", "embed_dim")),
    "phi": _separate("self_attn", "dense", in_config=True),
    "stablelm": _separate("self_attn", "o_proj", **_BY_BOTH),
    "helium": _separate("self_attn", "o_proj"),
    **{model_type: _separate("self_attn", "o_proj", in_config=True) for model_type in _SEPARATE},
    "phi3": _together(
        *("self_attn", "qkv_proj", "o_proj", "q k v"),
        queries=("config.num_attention_heads",),
        groups=("num_key_value_heads",),
        in_config=True,
    ),
}

_ALIBI = "the bias on its attention depends on a head's index among all heads"
_NORM_OVER_ALL = "a norm over the queries of all heads stands before the attention, so removing one changes the others"

#: Architectures whose heads can't be cut: (the config field that, where it is set, makes it so, or "" for all; reason).
COUPLED_HEADS: dict[str, tuple[str, str]] = {
    "bloom": ("", _ALIBI),
    "mpt": ("", _ALIBI),
    "falcon": ("alibi", _ALIBI),
    "olmo2": ("", _NORM_OVER_ALL),
    "olmo3": ("", _NORM_OVER_ALL),
    "diffllama": ("", "its heads work in pairs, one subtracted from the other"),
    "codegen": ("", "its heads lie in four parts of equal size, so single heads can't go"),
    "cohere": ("use_qk_norm", "each head has a norm of its own, which can't be cut yet"),
    "stablelm": ("qk_layernorm", "each head has a norm of its own, which can't be cut yet"),
}

#: Architectures that can't be cut neuron by neuron, with the reason a user gets.
COUPLED: dict[str, str] = {
    "bitnet": "a norm over all neurons stands before the down projection, so removing one neuron changes the others",
    "gemma3n": "activation sparsity picks neurons relative to each other, so removing one changes the others",
    "gemma3n_text": "activation sparsity picks neurons relative to each other, so removing one changes the others",
}


def register_family(model_type: str, spec: FFNSpec, *, replace: bool = False) -> None:
    """Add the row of `model_type` for this process; `lmprune.prune` then treats it like any other.

    Raises: UserError for what is no FFNSpec, for a coupled FFN, and, without `replace`, for a known type.
    """
    if not isinstance(spec, FFNSpec):
        raise UserError(f"family {model_type!r}: expected a lmprune.FFNSpec, got {type(spec).__name__} {spec!r:.50}")
    if model_type in COUPLED:
        raise UserError(f"{model_type} models can't be pruned by neurons: {COUPLED[model_type]}")
    if model_type in FAMILIES and FAMILIES[model_type] != spec and not replace:
        raise UserError(f"there is a family {model_type!r} already; replace it with register_family(…, replace=True)")
    FAMILIES[model_type] = spec


@contextmanager
def known(model_type: str, spec: FFNSpec | None) -> Iterator[None]:
    """The type's row is `spec`, for as long as a command works; None: as it is."""
    if spec is None:
        yield
        return
    before = FAMILIES.get(model_type)
    FAMILIES[model_type] = spec
    try:
        yield
    finally:
        del FAMILIES[model_type]
        if before is not None:
            FAMILIES[model_type] = before


def parse_spec(text: str) -> FFNSpec:
    """Read `--ffn blocks=…,up=…,down=…[,gate=…][,fused_gate=true][,width_key=…]`.

    >>> parse_spec("blocks=model.layers,up=mlp.w1,down=mlp.w2").up
    'mlp.w1'
    """
    known = [f.name for f in fields(FFNSpec)]
    values: dict[str, Any] = {"width_key": None}
    for part in text.split(","):
        key, sep, value = part.strip().partition("=")
        if not sep or key not in known or not value:
            raise UserError(f"--ffn can't read {part!r}: expected comma-separated name=path with names {known}")
        values[key] = value.lower() in ("1", "true", "yes") if key == "fused_gate" else value
    missing = [key for key in ("up", "down") if key not in values]
    if missing:
        raise UserError(f"--ffn needs {' and '.join(missing)}: for example --ffn up=mlp.up_proj,down=mlp.down_proj")
    values.setdefault("blocks", "")  # found by looking for `up` and `down`, see find.blocks_of
    return FFNSpec(**values)


def is_encoder(config: Any) -> bool:
    """Whether the config is one of a model that does not generate text left to right: bert, t5, …"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED_LMS

    if getattr(config, "is_encoder_decoder", False):
        return True
    return getattr(config, "model_type", None) in MASKED_LMS and not getattr(config, "is_decoder", False)


def attention_of(config: Any) -> AttentionSpec:
    """The attention row for a model's config. Raises: UserError where its heads can't be removed."""
    model_type = getattr(config, "model_type", None) or "unknown"
    field, reason = COUPLED_HEADS.get(model_type, ("", ""))
    if reason and (not field or getattr(config, field, False)):
        which = f" with {field}" if field else ""
        raise UserError(f"{model_type} models{which} can't be pruned by heads: {reason}")
    if model_type not in ATTENTION:
        raise UserError(
            f"lmprune can't remove attention heads of {model_type} models; it can of {', '.join(sorted(ATTENTION))}"
        )
    return ATTENTION[model_type]


def family_of(config: Any) -> FFNSpec:
    """The row for a model's config, or what a pruned model's own record says, or one sentence: why there is none.

    Raises: UserError for encoders, mixtures of experts, coupled FFNs and architectures not in the table.
    """
    model_type = getattr(config, "model_type", None) or "unknown"
    if model_type in COUPLED:
        raise UserError(f"{model_type} models can't be pruned by neurons: {COUPLED[model_type]}")
    if is_mixture(config):
        raise UserError(
            f"{model_type} is a mixture of experts, and has no dense feed-forward layers to take neurons from; name "
            "its experts or the neurons inside them: --units experts or --units expert_neurons"
        )
    plugins.check_new(plugins.FAMILIES, _BUILT_IN, model_type)
    if model_type not in FAMILIES and model_type in plugins.offered(plugins.FAMILIES):
        register_family(model_type, plugins.from_package(plugins.FAMILIES, model_type))
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if is_encoder(config):
        raise UserError(f"{model_type} is an encoder; lmprune prunes generative decoders")
    if hasattr(config, "lmprune"):  # a checkpoint that was pruned with --ffn knows its own layers
        return FFNSpec(**config.lmprune["spec"])
    raise UserError(
        f"model type {model_type!r} is not in lmprune's table; known: {', '.join(sorted(FAMILIES))}. "
        "If it is a dense decoder, name its layers with --ffn up=…,down=…[,gate=…] or lmprune.register_family(…): "
        "see docs/add_a_family.md"
    )
