"""Where each mixture keeps its experts: a row an architecture, beside `families`, which has the dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UserError


@dataclass(frozen=True)
class MixtureSpec:
    """The experts of a decoder-only model. Paths are from the causal-LM model (`blocks`), from a block (`home`), and
    from there.

    count_key: the config field that holds the number of experts.
    home: the mixture; a block that has no experts there is a dense one.
    router: the module that chooses; it has the attribute `top_k`. logits: the linear map in it, a row an expert.
    experts: the module that holds the experts' tensors, all experts in one, along the first dimension. It is called
    with tokens (N, D), the experts of each (N, k), and the gates that their outputs are multiplied by (N, k).
    choice: a bias by which experts are chosen, and which is no part of their gates; an entry an expert, in the last
    dimension. "" = there is none.
    groups: the router's attribute with the number of groups, runs of equally many experts, of which some are chosen
    first; "" = there are none. in_group: how many of its experts say how good a group is. grouped: what the router's
    attributes must be for it to look at groups at all.
    width_key: the config field that holds the number of neurons of an expert. up, down: the stacked tensors, gate and
    up in one. widths: attributes of `experts` that count neurons, where it has them.
    shared: what all tokens go to, where that lies beside `home`. fewest: with fewer experts than that in its config a
    model is a dense one.
    """

    count_key: str
    blocks: str = "model.layers"
    home: str = "mlp"
    router: str = "gate"
    logits: str = "gate"
    experts: str = "experts"
    choice: str = ""
    groups: str = ""
    in_group: int = 1
    grouped: tuple[tuple[str, str], ...] = ()
    width_key: str = "intermediate_size"
    up: str = "gate_up_proj"
    down: str = "down_proj"
    widths: tuple[str, ...] = ("intermediate_dim", "intermediate_size")
    shared: str = ""
    fewest: int = 1


#: the width of experts has a field of its own where dense layers or shared experts have another
_OWN_WIDTH: dict[str, Any] = {"width_key": "moe_intermediate_size"}
_ROUTER: dict[str, Any] = {"router": "router", "logits": "router"}


def _deepseek(count_key: str = "n_routed_experts") -> MixtureSpec:
    """Sigmoids, chosen by groups and with a bias."""
    bias = "gate.e_score_correction_bias"
    return MixtureSpec(count_key, choice=bias, groups="num_group", in_group=2, **_OWN_WIDTH)


MIXTURES: dict[str, MixtureSpec] = {
    **{name: MixtureSpec("num_local_experts") for name in ("mixtral", "minimax")},
    **{name: MixtureSpec("num_local_experts", **_OWN_WIDTH) for name in ("qwen3_moe", "mellum")},
    **{name: MixtureSpec("num_experts") for name in ("olmoe", "flex_olmo", "cohere2_moe")},
    **{name: MixtureSpec("num_experts", **_OWN_WIDTH) for name in ("qwen2_moe", "qwen3_next")},
    **{name: MixtureSpec("num_local_experts", **_ROUTER) for name in ("phimoe", "gpt_oss")},
    "granitemoe": MixtureSpec("num_local_experts", home="block_sparse_moe", **_ROUTER),
    "granitemoeshared": MixtureSpec("num_local_experts", home="block_sparse_moe", shared="shared_mlp", **_ROUTER),
    "deepseek_v2": MixtureSpec(
        "n_routed_experts", groups="num_group", grouped=(("topk_method", "group_limited_greedy"),), **_OWN_WIDTH
    ),
    **{name: _deepseek() for name in "deepseek_v3 glm4_moe glm4_moe_lite dots1 solar_open mimo_v2_flash".split()},
    "exaone_moe": _deepseek("num_experts"),
    "ernie4_5_moe": MixtureSpec("moe_num_experts", choice="gate.moe_statics.e_score_correction_bias", **_OWN_WIDTH),
    "minimax_m2": MixtureSpec("num_local_experts", choice="e_score_correction_bias"),
    "hunyuan_v1_moe": MixtureSpec("num_experts", logits="gate.wg"),
    "afmoe": MixtureSpec("num_experts", router="router", logits="router.gate", choice="expert_bias", **_OWN_WIDTH),
    "jamba": MixtureSpec("num_experts", home="feed_forward", fewest=2, **_ROUTER),
    "lfm2_moe": MixtureSpec("num_experts", home="feed_forward", choice="expert_bias", **_OWN_WIDTH),
}

#: Config fields that only mixtures of experts have.
_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")


def is_mixture(config: Any) -> bool:
    """Whether the config says that tokens are routed to experts, in an architecture of the table or not."""
    spec = MIXTURES.get(getattr(config, "model_type", None) or "unknown")
    keys, fewest = ((spec.count_key,), spec.fewest) if spec else (_KEYS, 2)
    return any(_most(_told(config, key) or 0) >= fewest for key in keys)


def _told(config: Any, key: str) -> Any:
    """A field's value for the model as a whole; transformers raises where layers have other ones."""
    name = getattr(config, "attribute_map", {}).get(key, key)
    return vars(config)[name] if name in vars(config) else getattr(config, name, None)


def _most(number: int | list[int]) -> int:
    return max(number) if isinstance(number, list) else number


def mixture_of(config: Any) -> MixtureSpec:
    """The row for a model's config. Raises: UserError where it has no experts, or they can't be removed."""
    model_type = getattr(config, "model_type", None) or "unknown"
    if model_type in MIXTURES:
        return MIXTURES[model_type]
    if not is_mixture(config):
        raise UserError(f"{model_type} is a dense model: it has no experts to remove")
    raise UserError(f"lmprune can't remove experts of {model_type} models; it can of {', '.join(sorted(MIXTURES))}")


def beside_experts(block: nn.Module, spec: MixtureSpec) -> list[nn.Module]:
    """What is feed-forward in a block of a mixture: experts, those of all tokens, or a dense layer."""
    homes = (getattr(block, name, None) for name in (spec.home, spec.shared) if name)
    return [home for home in homes if home is not None]
