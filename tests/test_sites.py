"""Neuron-major views and the cut, over all families; the numerical check of hand-made specs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import NAMES, logits, tiny_model
from torch import nn

from lmprune.errors import UserError
from lmprune.sites.families import FFNSpec, family_of, parse_spec
from lmprune.sites.find import find_sites
from lmprune.sites.proof import check_ffns, trial_cut


@pytest.mark.parametrize("name", NAMES)
def test_views_are_neuron_major_and_share_memory(name: str) -> None:
    model = tiny_model(name)
    ffns = find_sites(model)
    spec = family_of(model.config)
    assert [ffn.layer for ffn in ffns] == [0, 1, 2]
    for ffn in ffns:
        gated = spec.gate is not None or spec.fused_gate
        assert [w.shape for w in ffn.writers()] == [(ffn.width, 32)] * (2 if gated else 1)
        assert all(b.shape == (ffn.width,) for b in ffn.writer_biases())
        assert ffn.reader().shape == (ffn.width, 32)
        assert (bias := ffn.reader_bias()) is None or bias.shape == (32,)

    before = logits(model)
    ffn = ffns[1]
    for index in range(len(ffn.writers())):
        state = {n: p.clone() for n, p in model.state_dict().items()}
        with torch.no_grad():
            ffn.writers()[index][:5] *= 3
        assert not torch.equal(logits(model), before), "a write into a writer must reach the model"
        model.load_state_dict(state)
    with torch.no_grad():
        ffn.reader()[:5] *= 3
    assert not torch.equal(logits(model), before), "a write into the reader must reach the model"


@pytest.mark.parametrize("name", NAMES)
def test_a_neuron_without_its_row_and_column_is_gone(name: str) -> None:
    """Independent of masks and cuts: zeroing neuron j's reader row equals cutting the neuron."""
    kept = torch.tensor([j for j in range(find_sites(tiny_model(name))[0].width) if j not in (3, 7)])
    zeroed, cut = tiny_model(name), tiny_model(name)
    with torch.no_grad():
        find_sites(zeroed)[0].reader()[[3, 7]] = 0
    find_sites(cut)[0].keep(kept)
    assert torch.allclose(logits(zeroed), logits(cut), atol=1e-5)
    assert not torch.allclose(logits(tiny_model(name)), logits(cut), atol=1e-5)


def test_writers_of_a_fused_gate_are_gate_then_up() -> None:
    fused, split = find_sites(tiny_model("phi3"))[0], find_sites(tiny_model("llama-untied"))[0]
    with torch.no_grad():
        fused.writer_linears[0].weight.copy_(torch.cat([split.writers()[1], split.writers()[0]]))  # type: ignore[operator]
    gate, up = fused.writers()
    assert torch.equal(gate, split.writers()[1]) and torch.equal(up, split.writers()[0])  # type: ignore[union-attr]


def test_keep_leaves_the_rest_of_the_model_alone() -> None:
    model = tiny_model("gpt2")
    before = {name: p.clone() for name, p in model.named_parameters()}
    ffn = find_sites(model)[1]
    kept = torch.tensor([0, 5, 40])
    reader, writer, bias = ffn.reader()[kept].clone(), ffn.writers()[0][kept].clone(), ffn.writer_biases()[0][kept]
    ffn.keep(kept)
    assert ffn.width == 3
    assert torch.equal(ffn.reader(), reader) and torch.equal(ffn.writers()[0], writer)
    assert torch.equal(ffn.writer_biases()[0], bias)
    changed = {name for name, p in model.named_parameters() if p.shape != before[name].shape}
    assert changed == {f"transformer.h.1.mlp.{n}" for n in ("c_fc.weight", "c_fc.bias", "c_proj.weight")}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name not in changed)
    up, down = ffn.linears
    assert (up.nf, down.nx, down.nf) == (3, 3, 32)


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon-new"])
def test_keep_records_sizes_and_requires_grad(name: str) -> None:
    ffn = find_sites(tiny_model(name))[0]
    ffn.reader_linear.weight.requires_grad_(False)  # type: ignore[operator]
    ffn.keep(torch.arange(7))
    if isinstance(ffn.reader_linear, nn.Linear):
        assert ffn.reader_linear.in_features == ffn.writer_linears[0].out_features == 7
    assert not ffn.reader_linear.weight.requires_grad and ffn.writer_linears[0].weight.requires_grad


def test_set_reader_writes_values_and_adds_a_bias() -> None:
    model = tiny_model("llama-untied")
    ffn = find_sites(model)[0]
    reader, bias = torch.randn(48, 32), torch.randn(32)
    ffn.set_reader(reader, bias)
    assert torch.equal(ffn.reader(), reader)
    assert isinstance(ffn.reader_linear.bias, nn.Parameter)
    bias += 1  # the model keeps its own copy
    assert not torch.equal(ffn.reader_bias(), bias)  # type: ignore[arg-type]
    before = logits(model)
    ffn.set_reader(reader, bias)
    assert not torch.equal(logits(model), before)
    half = find_sites(tiny_model("gpt2").to(torch.bfloat16))[0]
    half.set_reader(reader, bias)
    assert half.reader().dtype == half.reader_bias().dtype == torch.bfloat16  # type: ignore[union-attr]


def test_trial_cut_gives_back_the_very_same_parameters() -> None:
    model = tiny_model("llama")
    ids, before = {n: id(p) for n, p in model.named_parameters()}, logits(model)
    ffns = find_sites(model)
    with pytest.raises(KeyError), trial_cut(ffns, [torch.arange(4)] * 3):
        assert [ffn.width for ffn in ffns] == [4, 4, 4]
        raise KeyError
    assert {n: id(p) for n, p in model.named_parameters()} == ids
    assert ffns[0].reader_linear.in_features == 48
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", NAMES)
def test_check_passes_for_every_family(name: str) -> None:
    model = tiny_model(name)
    before = logits(model)
    check_ffns(model, find_sites(model))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama", {"gate": None}),
        ("qwen2", {"gate": "mlp.up_proj", "up": "mlp.up_proj"}),
        ("llama", {"up": "self_attn.q_proj", "gate": None, "down": "self_attn.o_proj"}),
        ("phi3", {"fused_gate": False}),
        ("gpt2", {"fused_gate": True}),
        ("gpt2", {"down": "attn.c_proj"}),
    ],
)
def test_check_raises_for_a_wrong_spec(name: str, wrong: dict) -> None:
    model = tiny_model(name, **({"num_key_value_heads": 4} if name == "llama" else {}))
    before = logits(model)
    ffns = find_sites(model, spec=dataclasses.replace(family_of(model.config), **wrong))
    with pytest.raises(UserError, match="FFN that was named"):
        check_ffns(model, ffns)
    assert torch.equal(logits(model), before), "the model must be as it was"


def test_blocks_are_found_when_not_named() -> None:
    model = tiny_model("llama")
    ffns = find_sites(model, spec=parse_spec("up=mlp.up_proj,gate=mlp.gate_proj,down=mlp.down_proj"))
    assert [ffn.block for ffn in ffns] == list(model.model.layers)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (FFNSpec("model.blocks", "mlp.up_proj", "mlp.down_proj", None), "no list of blocks at 'model.blocks'"),
        (FFNSpec("model.layers", "mlp.w1", "mlp.down_proj", None), "does not have the layer that was named"),
        (FFNSpec("", "mlp.w1", "mlp.w2", None), "no block of LlamaForCausalLM holds 'mlp.w1'"),
    ],
)
def test_a_path_that_is_not_there_is_named(spec: FFNSpec, match: str) -> None:
    with pytest.raises(UserError, match=match):
        find_sites(tiny_model("llama"), spec=spec)


def test_sites_of_several_kinds_come_in_the_order_of_a_forward_pass_each_once() -> None:
    found = find_sites(tiny_model("llama"), ("neurons", "heads", "neurons"))
    assert [str(place.address) for place in found] == [f"{kind}.{n}" for n in range(3) for kind in ("heads", "neurons")]


def test_a_trial_cut_gives_back_counts_that_are_a_layers_own() -> None:
    """phi3 reads its number of heads from the config; a cut layer has a config of its own."""
    model = tiny_model("phi3", num_key_value_heads=4)
    before, sites = logits(model), find_sites(model, ("heads",))
    with trial_cut(sites, [torch.tensor([0, 1])] * 3):
        once = logits(model)
        with trial_cut(sites, [torch.tensor([0])] * 3):
            twice = logits(model)
        assert torch.equal(logits(model), once)
    assert torch.equal(logits(model), before) and not torch.allclose(once, twice, atol=1e-4)
