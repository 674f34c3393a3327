"""Layers, attentions and feed-forward layers: skipped is removed, in every family, with its cache and its config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from tiny_checkpoints import lmprune, tiny_checkpoint
from tiny_models import NAMES, is_pruned_class, logits, tiny_config, tiny_model, tokens
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from lmprune.checkpoints import checkpoint, models, shim
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.jobs.inspection import parameters_by_part
from lmprune.plan import PrunePlan
from lmprune.sites.address import LAYER_KINDS, Kind, LayerKind
from lmprune.sites.branches import WHOLE_ONLY
from lmprune.sites.find import find_sites
from lmprune.sites.layers import Layers
from lmprune.sites.masks import masked

LAYERS = 5
KEPT = torch.tensor([1, 2, 4])  # the first goes, which transformers asks for the length of the text
_SLIDING = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_WINDOWS = {"layer_types": _SLIDING, "sliding_window": 8}

#: what makes a family's layers unlike each other
_UNLIKE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "local", "global", "local"], 1]]},
    "smollm3": {"no_rope_layer_interval": 2, "sliding_window": 8, "use_sliding_window": True},
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo3", "exaone4", "cohere2", "ministral"), _WINDOWS),
    **{name: {**_WINDOWS, "use_sliding_window": True} for name in ("qwen2", "qwen3")},
}

#: variants of a block: case -> (case of `tiny_models`, changes)
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_scaled_by_index": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "opt_norms_on_the_stream": ("opt", {"do_layer_norm_before": False}),
    "bloom_norms_on_the_stream": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
    "falcon_sequential": ("falcon-old", {"parallel_attn": False}),
    "falcon_alibi": ("falcon-old", {"alibi": True}),
    "llama_biases": ("llama", {"attention_bias": True}),
}
CASES = [*NAMES, *_VARIANTS]


def model_of(case: str) -> Any:
    """A tiny model with 5 layers, of as many kinds as its family knows."""
    name, changes = _VARIANTS.get(case, (case, {}))
    known = tiny_config(name).__dict__
    layers = {key: LAYERS for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in known}
    return tiny_model(name, **layers, **_UNLIKE.get(name, {}), **changes)


def site_of(model: Any, kind: LayerKind) -> Layers:
    (site,) = find_sites(model, (kind,))
    assert isinstance(site, Layers)
    return site


def plan_of(model: Any, kept: dict[Kind, Tensor]) -> PrunePlan:
    sites = find_sites(model, tuple(kept))
    return PrunePlan.of([s.address for s in sites], [kept[s.address.kind] for s in sites], [s.count for s in sites])


def zero_one(count: int, kept: Tensor) -> Tensor:
    return torch.zeros(count).index_fill(0, kept, 1.0)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * a.std())


def written(model: Any, use_cache: bool) -> tuple[Tensor, Tensor]:
    """What the model writes after 10 tokens, past the windows of 8, and its logits on the way."""
    prompt = tokens(2, 10)
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, max_new_tokens=6, min_new_tokens=6,
        do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


def without_gradient(model: Any) -> set[str]:
    model.zero_grad()
    model(tokens(), labels=tokens()).loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 1e-9}


@pytest.mark.parametrize("kind", LAYER_KINDS)
@pytest.mark.parametrize("case", few(CASES))
def test_every_family_skipped_is_removed_saved_and_read_again(case: str, kind: LayerKind, tmp_path: Path) -> None:
    model = model_of(case)
    if kind != "layers" and (reason := WHOLE_ONLY.get(model.config.model_type)):
        with pytest.raises(UserError, match=f"can lose whole layers only: {reason[:20]}"):
            find_sites(model, (kind,))
        return
    site, dense, idle = site_of(model, kind), logits(model), without_gradient(model)
    with masked([site], [zero_one(LAYERS, KEPT)]):
        by_mask = logits(model)
    assert torch.equal(logits(model), dense)
    wrong = shrink(copy.deepcopy(model), plan_of(model, {kind: torch.tensor([0, 1, 3])}))
    leaving = sum(site.unit_params[unit] for unit in (0, 3))
    before = model.num_parameters()

    shrink(model, plan_of(model, {kind: KEPT}))
    by_cut = logits(model)
    assert close(by_mask, by_cut)
    assert not close(by_cut, dense) and not close(by_cut, logits(wrong)), "a wrong cut must differ"
    assert before - model.num_parameters() == leaving
    assert {name.split(".", 3)[-1] for name in without_gradient(model)} <= {name.split(".", 3)[-1] for name in idle}

    again = models.load(checkpoint.save(model, tmp_path / "out"))
    assert torch.equal(logits(again), by_cut) and type(again) is type(model)
    tokens_cached, cached = written(again, True)
    tokens_plain, plain = written(again, False)
    assert torch.equal(tokens_cached, tokens_plain) and close(cached, plain)
    stock_can = kind == "layers" and case not in ("diffllama", "gpt2_scaled_by_index")
    assert is_pruned_class(again) is not stock_can
    if stock_can:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), by_cut)
    else:
        with pytest.raises((RuntimeError, ValueError)):  # the stock class must not fill the gaps
            AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_every_kind_of_a_gap_is_in_config_lists_and_cache() -> None:
    """Entries follow the blocks that stay; a block without attention leaves its place in the cache to the others."""
    model = shrink(model_of("gemma3_text"), plan_of(model_of("gemma3_text"), {"layers": torch.tensor([0, 2, 3])}))
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2]
    model = model_of("gemma3_text")
    shrink(model, plan_of(model, {"attentions": torch.tensor([2, 3, 4])}))
    assert model.config.layer_types[:2] == ["full_attention"] * 2
    assert [block.self_attn.layer_idx for block in list(model.model.layers)[2:]] == [0, 3, 1]
    cache = DynamicCache()  # one that knows no config
    model(tokens(), past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == tokens().shape[1]
    neo = shrink(model_of("gpt_neo"), plan_of(model_of("gpt_neo"), {"layers": torch.tensor([1, 3])}))
    assert neo.config.attention_layers == ["local", "global"] == type(neo.config)(
        **neo.config.to_dict()
    ).attention_layers  # fmt: skip


def test_all_kinds_in_one_plan_and_again_afterwards(tmp_path: Path) -> None:
    """Heads and neurons in place, then branches, then layers; what is left can be pruned again."""
    model = tiny_model("llama", num_hidden_layers=LAYERS)
    kinds: tuple[Kind, ...] = ("neurons", "heads", "attentions", "ffns", "layers")
    kept: dict[Kind, Tensor] = {
        "neurons": torch.arange(0, 48, 2),
        "heads": torch.tensor([1]),
        "attentions": torch.tensor([0, 2, 4]),
        "ffns": torch.tensor([1, 2, 3, 4]),
        "layers": torch.tensor([1, 2, 3]),
    }
    plan = plan_of(model, kept)
    assert PrunePlan.from_json(plan.to_json()) == plan and plan.kinds == ["heads", "neurons", *kinds[2:]]
    sites = find_sites(model, kinds)
    with masked(sites, [zero_one(site.count, kept[site.address.kind]) for site in sites]):
        by_mask = logits(model)
    shrink(model, plan)
    assert close(logits(model), by_mask)
    assert [site_of(model, kind).members for kind in LAYER_KINDS] == [[1], [0, 1, 2], [0, 1, 2]]
    again = models.load(checkpoint.save(model, tmp_path / "once", plan=plan))
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(UserError, match="no attention would be left; keep at least one in a layer that stays"):
        shrink(again, plan_of(again, {"layers": torch.tensor([0, 2])}))
    assert torch.equal(logits(again), logits(model))
    with masked([site_of(again, "layers")], [zero_one(3, torch.tensor([1]))]):
        by_mask = logits(again)
    shrink(again, plan_of(again, {"layers": torch.tensor([1])}))
    assert close(logits(again), by_mask) and not is_pruned_class(again)
    twice = models.load(checkpoint.save(again, tmp_path / "twice"))
    assert torch.equal(logits(twice), logits(again)) and twice.config.num_hidden_layers == 1


def test_a_record_of_a_later_format_is_refused(tmp_path: Path) -> None:
    model = shrink(model_of("llama"), plan_of(model_of("llama"), {"attentions": KEPT}))
    assert model.config.lmprune["format"] == 3 == shim.FORMAT
    model.config.lmprune["format"] = 4
    checkpoint.write_model(model, tmp_path / "out")
    with pytest.raises(UserError, match=r"pruned by a later lmprune \(format 4\): update lmprune"):
        models.load(tmp_path / "out")


def test_unknown_families_are_refused() -> None:
    model = tiny_model("llama")
    model.config.model_type = "not_a_llama"
    from lmprune.sites.families import FAMILIES

    with pytest.raises(UserError, match="can't remove layers of not_a_llama models; it can of apertus, arcee"):
        find_sites(model, ("layers",), spec=FAMILIES["llama"])


def test_parts_of_a_model_with_gaps_are_told() -> None:
    """A block without a feed-forward layer is a block: its attention counts as such."""
    model = model_of("llama")
    dense = parameters_by_part(model, find_sites(model))
    shrink(model, plan_of(model, {"ffns": KEPT}))
    parts = parameters_by_part(model, find_sites(model))
    assert parts["attention"] == dense["attention"] and parts["ffn"] == dense["ffn"] * len(KEPT) // LAYERS
    assert sum(parts.values()) == model.num_parameters()


@pytest.mark.parametrize(
    ("family", "method", "told"), [("gemma2", "obs", True), ("gemma2", "shortgpt", False), ("llama", "obs", False)]
)
def test_who_asks_for_a_refit_that_there_is_not_is_told(
    family: str, method: str, told: bool, text: Path, tmp_path: Path
):
    """Behind a norm `obs` chooses layers as `shortgpt` does, and can do no more."""
    model = tiny_checkpoint(tmp_path / "model", family)
    how = ("--units", "layers", "--keep", 0.67, "--data", text, "--calibration-tokens", 1024, "--seq-len", 64)
    shown = lmprune("prune", model, *how, "--method", method, "--answer-tokens", 0, "--out", tmp_path / "out")
    assert shown.code == 0 and ("nothing is refitted, so that this is what shortgpt does" in shown.err) is told
