"""Where each architecture's blocks keep their two branches, the attention and the feed-forward layer: a row each.

Beside `families.py` the only place that knows names. The columns of FFNSpec and AttentionSpec lead into a branch; these
say what goes when the whole branch does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import UserError


@dataclass(frozen=True)
class BranchSpec:
    """One branch of a block, all paths relative to the block.

    home: the module that is the branch, and returns what is added to the stream.
    last: the linear, or the norm, that puts it out: a zero there is the branch's absence.
    norms: the norms that only this branch has; those that a block lacks are left out.
    passed: other modules that go, and stand between the stream and `home`.
    """

    home: str
    last: str
    norms: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockSpec:
    """attention, ffn: the branches of a block.

    stream_norms: (a config field, its value) with which the norms are on the stream itself, and so stay.
    """

    attention: BranchSpec
    ffn: BranchSpec
    stream_norms: tuple[str, Any] | None = None


def _block(
    attention: str = "self_attn",
    o: str = "o_proj",
    ffn: str = "mlp",
    down: str = "down_proj",
    norms: tuple[str, ...] = ("input_layernorm",),
    ffn_norms: tuple[str, ...] = ("post_attention_layernorm",),
) -> BlockSpec:
    return BlockSpec(BranchSpec(attention, f"{attention}.{o}", norms), BranchSpec(ffn, f"{ffn}.{down}", ffn_norms))


def _after(spec: BlockSpec, attention: str, ffn: str) -> BlockSpec:
    """With a norm on what each branch puts out."""

    def normed(branch: BranchSpec, norm: str) -> BranchSpec:
        return replace(branch, last=norm, norms=(*branch.norms, norm))

    return BlockSpec(normed(spec.attention, attention), normed(spec.ffn, ffn))


_LINEARS = BlockSpec(  # the feed-forward layer is no module of its own
    BranchSpec("self_attn", "self_attn.out_proj", ("self_attn_layer_norm",)),
    BranchSpec("fc2", "fc2", ("final_layer_norm",), passed=("fc1",)),
)
_GPT = _block("attn", "c_proj", "mlp", "c_proj", ("ln_1",), ("ln_2",))
_GPTJ = _block("attn", "out_proj", "mlp", "fc_out", ("ln_1",), ())
_NEOX = ("mlp", "dense_4h_to_h")
_POST = _after(_block(norms=(), ffn_norms=()), "post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA = _after(
    _block(ffn_norms=("pre_feedforward_layernorm",)), "post_attention_layernorm", "post_feedforward_layernorm"
)

#: what a block looks like, where it does not look like Llama's
_OWN: dict[str, BlockSpec] = {
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": _block("attn", "attention.out_proj", "mlp", "c_proj", ("ln_1",), ("ln_2",)),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "gpt_neox": _block("attention", "dense", *_NEOX),
    "persimmon": _block("self_attn", "dense", *_NEOX),
    "falcon": _block(
        *("self_attention", "dense", *_NEOX),
        norms=("input_layernorm", "ln_attn"),
        ffn_norms=("post_attention_layernorm", "ln_mlp"),
    ),
    "bloom": replace(
        _block("self_attention", "dense", *_NEOX), stream_norms=("apply_residual_connection_post_layernorm", True)
    ),
    "mpt": _block("attn", "out_proj", "ffn", "down_proj", ("norm_1",), ("norm_2",)),
    "opt": replace(_LINEARS, stream_norms=("do_layer_norm_before", False)),
    "biogpt": _LINEARS,
    "xglm": _LINEARS,
    "phi": _block("self_attn", "dense", "mlp", "fc2", ffn_norms=()),
    "nanochat": _block(down="fc2"),
    "starcoder2": _block(down="c_proj"),
    "apertus": _block(norms=("attention_layernorm",), ffn_norms=("feedforward_layernorm",)),
    **dict.fromkeys(("cohere", "cohere2"), _block(ffn_norms=())),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), _POST),
    "glm4": _after(_block(), "post_self_attn_layernorm", "post_mlp_layernorm"),
}

_LIKE_LLAMA = """
    llama mistral ministral qwen2 qwen3 gemma olmo stablelm granite smollm3 helium hunyuan_v1_dense seed_oss ernie4_5
    diffllama nemotron arcee jais2 phi3 glm
""".split()

BLOCKS: dict[str, BlockSpec] = {**dict.fromkeys(_LIKE_LLAMA, _block()), **_OWN}

#: config fields with an entry a block
PER_BLOCK = ("layer_types", "no_rope_layers", "attention_layers")
#: a config field -> what it says, made of one of PER_BLOCK
FROM_PER_BLOCK: dict[str, tuple[str, Any]] = {"attention_types": ("attention_layers", lambda kinds: [[kinds, 1]])}
#: attributes of an attention that say where the cache has its keys and values
CACHE_INDICES = ("layer_idx", "layer_id")
#: attributes that the modelling code makes of a block's number, once: they stay what they were
MADE_OF_INDEX = ("scaling", "lambda_init")

#: architectures whose branches can't go one by one
WHOLE_ONLY: dict[str, str] = dict.fromkeys(
    ("bloom", "mpt"),
    "its config has no field of the width, so that the stock class would open the checkpoint and fill the gap with "
    "random weights",
)


def block_spec(config: Any) -> BlockSpec:
    """The row for a model's config. Raises: UserError where there is none."""
    model_type = getattr(config, "model_type", None) or "unknown"
    if model_type not in BLOCKS:
        raise UserError(f"lmprune can't remove layers of {model_type} models; it can of {', '.join(sorted(BLOCKS))}")
    return BLOCKS[model_type]


def check_branches(config: Any) -> None:
    """Raises: UserError where an attention, or a feed-forward layer, can't go without the other."""
    if (reason := WHOLE_ONLY.get(config.model_type)) is not None:
        raise UserError(f"{config.model_type} models can lose whole layers only: {reason}")


def own_norms(block: nn.Module, branch: BranchSpec, spec: BlockSpec, config: Any) -> list[str]:
    """The norms that go with a branch of this block."""
    if spec.stream_norms is not None and getattr(config, spec.stream_norms[0], None) == spec.stream_norms[1]:
        return []
    there = [norm for norm in branch.norms if getattr(block, norm, None) is not None]
    after = branch.last if branch.last in branch.norms else None
    others = [norm for norm in spec.ffn.norms if getattr(block, norm, None) is not None]
    shared = branch is spec.attention and not others  # the feed-forward layer reads the attention's norm
    return [norm for norm in there if norm == after or not shared]
