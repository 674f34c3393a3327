"""Where each architecture keeps its feed-forward neurons: THE place a new architecture goes, one row each.

Nothing else in lmprune knows a layer's name. `docs/add_a_family.md` says how to add a row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .. import plugins
from ..errors import UserError


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
    o: the reader; its input is the seam, where a group's output can be seen and masked.
    counted: (path of a module, name of an attribute) that counts heads, or their rows, and must follow a cut.
    """

    writers: tuple[tuple[str, str], ...]
    o: str
    counted: tuple[tuple[str, str], ...] = ()


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

_SEPARATE = AttentionSpec(
    (("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v")), "self_attn.o_proj"
)

#: Where the heads are; architectures that are not here can't be pruned by heads yet.
ATTENTION: dict[str, AttentionSpec] = {"llama": _SEPARATE, "mistral": _SEPARATE}

#: Architectures that can't be cut neuron by neuron, with the reason a user gets.
COUPLED: dict[str, str] = {
    "bitnet": "a norm over all neurons stands before the down projection, so removing one neuron changes the others",
    "gemma3n": "activation sparsity picks neurons relative to each other, so removing one changes the others",
    "gemma3n_text": "activation sparsity picks neurons relative to each other, so removing one changes the others",
}

#: Config fields that only mixtures of experts have.
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")


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
    if any((getattr(config, key, None) or 0) > 1 for key in _EXPERT_KEYS):
        raise UserError(f"{model_type} is a mixture of experts; lmprune prunes dense feed-forward layers only")
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
