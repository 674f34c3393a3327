"""Conformance of every family: the mask at the seam is the cut, the cut model generates, saves and reloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import LAYERS, NAMES, is_pruned_class, logits, tiny_config, tiny_model, tokens
from torch import Tensor
from transformers import AutoModelForCausalLM

from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.sites.families import COUPLED, FAMILIES, FFNSpec, family_of, parse_spec, register_family
from lmprune.sites.find import find_sites
from lmprune.sites.masks import masked

KEPT = {"uniform": (0.5, 0.5, 0.5), "per_layer": (0.75, 0.25, 0.5)}


def draw_plan(model, ratios: tuple[float, ...] = KEPT["uniform"], *, seed: int = 0) -> PrunePlan:
    generator = torch.Generator().manual_seed(seed)
    widths = [ffn.width for ffn in find_sites(model)]
    kept = [
        tuple(torch.randperm(width, generator=generator)[: int(width * ratio)].sort().values.tolist())
        for width, ratio in zip(widths, ratios, strict=True)
    ]
    return PrunePlan.of_neurons(tuple(kept), tuple(widths))


def as_masks(plan: PrunePlan) -> list[Tensor]:
    masks = [torch.zeros(width) for width in plan.widths_before]
    for mask, kept in zip(masks, plan.indices(), strict=True):
        mask[kept] = 1
    return masks


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * a.std())


@pytest.mark.parametrize("shape", KEPT)
@pytest.mark.parametrize("name", NAMES)
def test_mask_equals_cut_saves_and_reloads(name: str, shape: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    plan, other = (draw_plan(model, KEPT[shape], seed=seed) for seed in (0, 1))
    dense = logits(model)
    with masked(find_sites(model), as_masks(plan)):
        by_mask = logits(model)
    assert not close(dense, by_mask)
    assert not close(by_mask, logits(shrink(tiny_model(name), other))), "a wrong cut must differ"

    shrink(model, plan)
    by_cut = logits(model)
    assert close(by_mask, by_cut)
    assert [ffn.width for ffn in find_sites(model)] == plan.widths
    stock_can = shape == "uniform" and FAMILIES[model.config.model_type].width_key is not None
    assert is_pruned_class(model) is not stock_can

    path = checkpoint.save(model, tmp_path / "out", plan=plan)
    again = models.load(path)
    assert torch.equal(logits(again), by_cut)
    assert type(again).__name__ == type(model).__name__
    if stock_can:
        assert type(model).__module__.startswith("transformers.")
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), by_cut)
    else:
        with pytest.raises((RuntimeError, ValueError)):  # the stock class must not load it into other shapes
            AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)


@pytest.mark.parametrize("name", NAMES)
def test_generation_with_cache_equals_without(name: str) -> None:
    model = shrink(tiny_model(name), draw_plan(tiny_model(name), KEPT["per_layer"]))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    prompt = tokens(2, 10)
    mask = torch.ones_like(prompt)
    cached = model.generate(prompt, attention_mask=mask, use_cache=True, **options)
    plain = model.generate(prompt, attention_mask=mask, use_cache=False, **options)
    assert cached.sequences.shape == (2, 16)
    assert torch.equal(cached.sequences, plain.sequences)
    assert close(torch.stack(cached.logits), torch.stack(plain.logits))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gemma", "bloom"])
@pytest.mark.parametrize("shape", KEPT)
def test_tied_embeddings_stay_tied(name: str, shape: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    shrink(model, draw_plan(model, KEPT[shape]))
    for m in (model, models.load(checkpoint.save(model, tmp_path / "out"))):
        assert m.get_input_embeddings().weight is m.get_output_embeddings().weight
    untied = tiny_model("llama-untied")
    assert untied.get_input_embeddings().weight is not untied.get_output_embeddings().weight


def test_every_family_is_in_the_table_of_tiny_models() -> None:
    assert {name.split("-")[0] for name in NAMES} == set(FAMILIES)
    assert all(tiny_config(name).num_hidden_layers == LAYERS for name in NAMES)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "encoder"),
        ("t5", "encoder"),
        ("mixtral", "mixture of experts"),
        ("qwen2_moe", "mixture of experts"),
        ("hunyuan_v1_moe", "mixture of experts"),
        ("gemma3n", "activation sparsity"),
        ("gemma3n_text", "activation sparsity"),
        ("bitnet", "norm over all neurons"),
        ("mamba", "add_a_family.md"),
    ],
)
def test_refused_with_the_reason(model_type: str, reason: str) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**({"num_experts": 2} if model_type == "hunyuan_v1_moe" else {}))
    with pytest.raises(UserError, match=reason) as caught:
        family_of(config)
    assert model_type in str(caught.value)
    assert "\n" not in str(caught.value)


def test_coupled_families_are_not_in_the_table() -> None:
    assert not set(COUPLED) & set(FAMILIES)


def test_registered_family_is_treated_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(UserError, match="not in lmprune's table"):
        find_sites(model)
    register_family("llama", FFNSpec("model.layers", "mlp.up_proj", "mlp.down_proj", None, gate="mlp.gate_proj"))
    assert len(find_sites(model)) == LAYERS


@pytest.mark.parametrize("shape", KEPT)
def test_family_named_by_hand_reloads_without_naming_it_again(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("qwen2")
    plan = draw_plan(model, KEPT[shape])
    monkeypatch.delitem(FAMILIES, "qwen2")
    spec = parse_spec("up=mlp.up_proj,down=mlp.down_proj,gate=mlp.gate_proj")
    shrink(model, plan, spec)
    again = models.load(checkpoint.save(model, tmp_path / "out", spec=spec))
    assert torch.equal(logits(again), logits(model))
    assert [ffn.width for ffn in find_sites(again)] == plan.widths


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("up=a", "needs down"),
        ("", "can't read"),
        ("up=a,down=b,left=c", "can't read 'left=c'"),
        ("up=a,down=", "can't read 'down='"),
    ],
)
def test_parse_spec_says_what_it_can_not_read(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_spec(text)


def test_parse_spec_reads_every_field() -> None:
    text = "blocks=b,up=u,down=d,gate=g,width_key=w,fused_gate=true"
    assert parse_spec(text) == FFNSpec("b", "u", "d", "w", gate="g", fused_gate=True)
