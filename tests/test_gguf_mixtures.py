"""Mixtures of experts in GGUF: every row in stock llama.cpp against transformers, whole and with experts gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from llamacpp import serving
from test_gguf import VOCABULARY, bpe, difference, field, with_other_norms
from test_gguf_reading import rewritten, some
from tiny_mixtures import EXPERTS, TOP_K, tiny_mixture
from tiny_models import tiny_model
from transformers import CONFIG_MAPPING
from typer.testing import CliRunner

import lmprune
from lmprune.checkpoints import models
from lmprune.checkpoints.shrinking import record_shapes
from lmprune.commands.cli import app
from lmprune.errors import UserError
from lmprune.export import Order, export
from lmprune.export.gguf_metadata import unaccounted
from lmprune.export.verify import distance
from lmprune.runtimes.mixtures import MIXTURES_IN_GGUF, expert_tensors
from lmprune.sites.find import find_sites

#: what llama.cpp's graph takes for granted
_FOR_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "olmoe": {"num_key_value_heads": 4},
    "dots1": {"num_key_value_heads": 4},
    "qwen3_moe": {"norm_topk_prob": True},
}
NAMES = sorted(MIXTURES_IN_GGUF)


def mixture_of_words(name: str, **changes: Any) -> Any:
    """A tiny one for `bpe`, whose norms are no longer the identity."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}
    return with_other_norms(tiny_mixture(name, **{**sizes, **_FOR_LLAMA_CPP.get(name, {}), **changes}))


def written(model: Any, out: Path, to: str = "gguf", dtype: str | None = "f32") -> dict[str, Any]:
    return export(Order(model, [], bpe(), dtype, "tiny"), out, to)


@pytest.mark.parametrize("name", some(NAMES, "qwen3_moe", "granitemoeshared"))
def test_what_is_read_block_by_block_is_what_is_read_as_a_whole(name: str, tmp_path: Path) -> None:
    export(Order(mixture_of_words(name), [], bpe(), "f32", "tiny"), tmp_path / "m.gguf", "gguf", verify=False)
    whole, streamed = models.load(tmp_path / "m.gguf"), models.load(tmp_path / "m.gguf", stream=True)
    ids = torch.randint(1, 200, (4, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(whole(ids).logits, streamed(ids).logits)
    for model in (whole, streamed):
        lmprune.prune(model, units=("experts",), method="reap", keep=0.5, data=ids)
        lmprune.save(model, tmp_path / str(model is streamed))
    assert torch.equal(whole(ids).logits, streamed(ids).logits)
    again = [models.load(tmp_path / place) for place in ("False", "True")]
    assert torch.equal(again[0](ids).logits, again[1](ids).logits)


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    model = mixture_of_words(name)
    lmprune.prune(model, units=("experts",), method="router", keep=0.5)
    told = written(model, tmp_path / "m.gguf")
    assert told["verification"]["verified"] and told["verification"]["difference"] < 1e-4
    arch = MIXTURES_IN_GGUF[name].arch
    counts = [field(tmp_path / "m.gguf", f"{arch}.expert_{key}") for key in ("count", "used_count")]
    assert counts == [EXPERTS // 2, TOP_K]
    with serving(tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
        with torch.no_grad():  # the control: in one layer each expert's output is its neighbour's
            stacked = find_sites(model, ("experts",))[0].stacked  # type: ignore[attr-defined]
            stacked.down_proj.copy_(stacked.down_proj.roll(1, 0))
        assert difference(model, llama) > 5e-3


@pytest.mark.parametrize("name", NAMES)
def test_no_field_of_a_config_is_forgotten(name: str) -> None:
    assert unaccounted(CONFIG_MAPPING[name](), MIXTURES_IN_GGUF[name]) == []


def test_quantised_experts_and_a_router_that_is_not(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    model = mixture_of_words("qwen2_moe", moe_intermediate_size=32, shared_expert_intermediate_size=64)
    assert written(model, tmp_path / "m.gguf", dtype="q8_0")["verification"]["verified"]
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {kind for name, kind in kinds.items() if "_exps" in name} == {"Q8_0"}
    assert {kind for name, kind in kinds.items() if "gate_inp" in name} == {"F32"}
    assert len([name for name in kinds if "gate_inp" in name]) == 2 * model.config.num_hidden_layers


def test_neurons_of_experts_tell_their_width(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    for name in ("mixtral", "qwen3_moe"):
        model = mixture_of_words(name)
        lmprune.prune(model, units=("expert_neurons",), method="magnitude", keep=0.67, multiple_of=8)
        assert written(model, tmp_path / f"{name}.gguf")["verification"]["verified"]
    assert field(tmp_path / "mixtral.gguf", "llama.feed_forward_length") == 32
    assert field(tmp_path / "qwen3_moe.gguf", "qwen3moe.expert_feed_forward_length") == 16


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads as many as there are query heads"),
        ("dots1", {"num_key_value_heads": 2}, "num_key_value_heads as many as there are query heads"),
        ("dots1", {"n_group": 2}, "n_group 1"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob True, but this model has False"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob False or None"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, "mlp_only_layers empty"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 1"),
        ("ernie4_5_moe", {"moe_layer_end_index": 1}, "moe_layer_end_index the last layer"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act silu"),
        ("phimoe", {}, "PhiMoE by another rule"),
        ("flex_olmo", {}, "it can write apertus"),
    ],
)
def test_refused(name: str, changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        written(mixture_of_words(name, **changes), tmp_path / "m.gguf")
    assert sentence in str(caught.value) and list(tmp_path.iterdir()) == []
    assert str(caught.value).endswith("use --to hf-uniform")
    with pytest.raises(UserError, match=r"can't write the experts of .* use --to hf-uniform"):
        written(mixture_of_words(name, **changes), tmp_path / "onnx", "onnx")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("experts", "one number of experts for all layers, and here layers have 4, 6"),
        ("expert_neurons", "one width of experts for all layers, and here layers have 16, 24"),
    ],
)
def test_a_number_for_each_layer(kind: Any, sentence: str, tmp_path: Path) -> None:
    """As a checkpoint has it: its config tells none for the model as a whole."""
    model = mixture_of_words("mixtral")
    for site, left in zip(find_sites(model, (kind,)), (4, 6, 4), strict=True):
        if kind == "experts":
            site.keep(torch.arange(left))
        else:
            site.keep(torch.arange(site.count).view(EXPERTS, -1)[:, : 4 * left].flatten())
    record_shapes(model)
    with pytest.raises(UserError, match=sentence):
        written(model, tmp_path / "m.gguf")
    with pytest.raises(UserError, match=sentence):
        written(model, tmp_path / "uniform", "hf-uniform", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, "moe_intermediate_size") for name in ("dots1", "ernie4_5_moe", "glm4_moe")]
    + [("hunyuan_v1_moe", "intermediate_size")],
)
def test_experts_narrower_than_what_shares_their_field(name: str, field: str, tmp_path: Path) -> None:
    """Layers are alike, and yet no config says how."""
    model = mixture_of_words(name)
    lmprune.prune(model, units=("expert_neurons",), method="magnitude", keep=0.34, multiple_of=8)
    for to, dtype in (("gguf", "f32"), ("vllm", None), ("hf-uniform", None)):
        sentence = rf"takes {field} for .* shared experts .* cut to (8|16); prune whole experts \(--units experts\)"
        with pytest.raises(UserError, match=sentence):
            export(Order(model, [], bpe(), dtype, "tiny"), tmp_path / f"out.{to}", to, verify=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["hf-uniform", "vllm"])
def test_a_stock_checkpoint_stays_one(to: str, tmp_path: Path) -> None:
    model = mixture_of_words("granitemoe")
    lmprune.prune(model, units=("experts",), method="router", keep=0.5)
    assert written(model, tmp_path / "out", to, None)["verification"]["verified"]
    assert models.load(tmp_path / "out").config.num_local_experts == EXPERTS // 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    model, ids = mixture_of_words(name), torch.randint(1, VOCABULARY, (2, 20))
    lmprune.prune(model, units=("experts",), method="router", keep=0.5)
    written(model, tmp_path / "m.gguf")
    again = models.load(tmp_path / "m.gguf")
    with torch.no_grad():
        assert type(again) is type(model) and torch.equal(again(ids).logits, model(ids).logits)
        stacked = find_sites(again, ("experts",))[0].stacked  # type: ignore[attr-defined]
        stacked.gate_up_proj.copy_(stacked.gate_up_proj.roll(1, 1))  # the control
        assert (again(ids).logits - model(ids).logits).abs().max() > 1e-3
    assert [site.count for site in find_sites(again, ("experts",))] == [EXPERTS // 2] * len(
        find_sites(model, ("experts",))
    )


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "dots1",
            {"dots1.expert_gating_func": 1},
            "expert_gating_func = 1, but lmprune knows this architecture with 2",
        ),
        (
            "qwen2_moe",
            {"qwen2moe.expert_gating_func": 2},
            "expert_gating_func = 2, which a model of type qwen2_moe has no",
        ),
        ("qwen3_moe", {"qwen3moe.expert_count": 0}, "has no experts, and qwen3_moe is a mixture"),
        ("ernie4_5_moe", {"ernie4_5-moe.expert_shared_feed_forward_length": 40}, "with 48 only"),
        ("olmoe", {"olmoe.expert_used_count": None}, "lacks olmoe.expert_used_count"),
        ("mixtral", {"llama.expert_count": 7}, "tensor"),
    ],
)
def test_a_file_that_says_otherwise(name: str, changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    written(mixture_of_words(name), tmp_path / "m.gguf")

    def change(keys: dict[str, Any], _: Any) -> None:
        for key, value in changes.items():
            keys[key] = value
            if value is None:
                del keys[key]

    rewritten(tmp_path / "m.gguf", change)
    with pytest.raises(UserError) as caught:
        models.load(tmp_path / "m.gguf")
    assert sentence in str(caught.value)


def test_from_a_checkpoint_to_a_file_and_back(tmp_path: Path) -> None:
    model = mixture_of_words("mixtral")
    lmprune.save(model, tmp_path / "m", tokenizer=bpe())
    shown = CliRunner().invoke(
        app, ["export", str(tmp_path / "m"), "--to", "gguf", "--out", str(tmp_path / "m.gguf"), "--json"]
    )
    record = json.loads(shown.stdout)
    assert record["widths"] == [] and record["params"] == model.num_parameters()
    assert models.skeleton(tmp_path / "m.gguf").config.num_local_experts == EXPERTS


def test_every_expert_has_its_place() -> None:
    """A name that is not in the model would be left out without a word."""
    for name in NAMES:
        model = mixture_of_words(name)
        there = {key for key, _ in [*model.named_parameters(), *model.named_buffers()]}
        found = expert_tensors(model)
        assert found.keys() <= there and len(found) >= 3 * len(find_sites(model, ("experts",)))
    assert expert_tensors(tiny_model("llama")) == {}


def test_a_token_that_went_elsewhere_does_not_decide() -> None:
    """Of 24 positions 6 may be off; where a seventh is, that shows. A dense model's all count."""
    wanted, ids = torch.zeros(24, 5), torch.arange(5).expand(24, 5)
    values = torch.full((24, 5), 1e-4)
    values[:6] = 0.5
    assert distance(wanted, values, ids, routed=True) == pytest.approx(1e-4) and distance(wanted, values, ids) > 0.2
    values[6] = 0.5
    assert distance(wanted, values, ids, routed=True) == pytest.approx(0.5)
