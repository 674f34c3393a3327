"""What other runtimes make of models that lost attention heads, as many in each layer or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from test_gguf import bpe, difference, field, in_llama_cpp, model_of
from test_heads import CAN, GROUP, GROUPS, HEAD, KEPT
from test_heads import model_of as with_groups
from test_layers import plan_of as plan_of_layers
from tiny_models import NAMES, is_pruned_class, logits, tiny_model, tokens
from torch import Tensor
from transformers import AutoModelForCausalLM

from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.export import Order, export
from lmprune.export.head_counts import heads_by_layer
from lmprune.plan import PrunePlan
from lmprune.runtimes.architectures import GGUF
from lmprune.runtimes.gguf_layout import head_size, num_kv_heads
from lmprune.sites.address import Kind
from lmprune.sites.families import ATTENTION
from lmprune.sites.find import find_sites

#: 4 groups of 2 query heads of 8
_GROUPED = {"num_attention_heads": GROUPS * GROUP, "num_key_value_heads": GROUPS, "head_dim": HEAD}
_SAME = [torch.tensor([0, 2])] * 3


def cut(model: Any, kept: list[Tensor], kind: Kind = "heads") -> Any:
    sites = find_sites(model, (kind,))
    return shrink(model, PrunePlan.of([s.address for s in sites], kept, [s.count for s in sites]))


def order_of(model: Any, to: str = "") -> Order:
    return Order(model, find_sites(model), bpe(), "f32" if to == "gguf" else None, "tiny")


# -- hf-uniform


@pytest.mark.parametrize("case", few(CAN))
@pytest.mark.parametrize("kept", [KEPT, _SAME], ids=["different", "same"])
def test_the_stock_class_opens_padded_heads(case: str, kept: list[Tensor], tmp_path: Path) -> None:
    model = cut(with_groups(case), kept)
    wanted, before, most = logits(model), heads_by_layer(model), max(map(len, kept))
    done = export(Order(model, find_sites(model), None, None, "tiny"), tmp_path / "m", "hf-uniform", verify=False)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert not is_pruned_class(stock) and torch.allclose(logits(stock), wanted, atol=1e-5)
    assert len({*heads_by_layer(stock).values()}) == 1
    per_unit = before[0].queries // len(kept[0])
    assert done["heads"] in range(most * per_unit, (GROUPS + 1) * per_unit)
    assert (done["params_added"] == 0) == (before == heads_by_layer(stock))


def test_as_few_heads_as_the_config_can_say(tmp_path: Path) -> None:
    """Of 4 groups in a model of 32, a layer with 1 of 2 query heads, and one with 2."""
    model = cut(tiny_model("llama", **_GROUPED), [torch.tensor([1]), torch.tensor([0, 3]), torch.tensor([2])])
    done = export(Order(model, find_sites(model), None, None, "tiny"), tmp_path / "m", "hf-uniform")
    assert done["verification"]["verified"] and done["heads"] == 2 * GROUP
    assert done["notes"][0].startswith("padded to 4 heads a layer, which adds ")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "m").config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2 * GROUP, 2, HEAD)


@pytest.mark.parametrize("name", ["llama", "phi3"])  # apart, and stacked in one matrix with runs of two lengths
def test_padding_of_heads_that_counts_would_show(name: str) -> None:
    model = cut(tiny_model(name, **_GROUPED), KEPT)
    wanted = logits(model)
    for site in find_sites(model, ("heads",)):
        site.pad(GROUPS)
    assert torch.allclose(logits(model), wanted, atol=1e-6)
    with torch.no_grad():
        find_sites(model, ("heads",))[0].reader()[-GROUP * HEAD :] = 1.0
        for writer in find_sites(model, ("heads",))[0].writers():
            writer[-HEAD:] = 1.0
    assert not torch.allclose(logits(model), wanted, atol=1e-3)


# -- GGUF


def test_counts_of_heads_are_the_configs_where_none_is_cut() -> None:
    for name in NAMES:
        model = tiny_model(name)
        found = {*heads_by_layer(model).values()}
        assert len(found) == 1, name
        counts = found.pop()
        wanted = (model.config.num_attention_heads, num_kv_heads(model.config), head_size(model.config))
        assert (counts.queries, counts.groups, counts.dim) == wanted, name


@pytest.mark.parametrize("name", ["llama", "mistral", "helium", "llama-tied"])
@pytest.mark.parametrize("kept", [KEPT, [torch.tensor([0, 1, 3])] * 3, _SAME], ids=["different", "three", "two"])
def test_heads_of_each_layer_in_llama_cpp(name: str, kept: list[Tensor], tmp_path: Path) -> None:
    """Three groups of two make 6 heads, which do not divide the width, so the config can't say it; the file can."""
    grouped = _GROUPED | ({"head_dim": 4} if name == "helium" else {})
    model = cut(model_of(name, **grouped), kept)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
    arch = field(tmp_path / "m.gguf", "general.architecture")
    heads = field(tmp_path / "m.gguf", f"{arch}.attention.head_count")
    counts = [len(units) * GROUP for units in kept]
    assert (arch, heads) == (("deci", counts) if kept is KEPT else ("llama", counts[0]))
    assert field(tmp_path / "m.gguf", f"{arch}.attention.key_length") == grouped["head_dim"]


#: in llama.cpp of any number of heads of a size that its file says
_ANY_NUMBER = sorted(
    name for name in NAMES if (spec := GGUF.get(kind := name.split("-")[0])) and not spec.square and kind in ATTENTION
)


@pytest.mark.parametrize("name", _ANY_NUMBER)
def test_fewer_heads_are_an_ordinary_model_to_llama_cpp(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model = cut(model, [torch.tensor([1])] * 3)
    done = export(order_of(model, "gguf"), tmp_path / "m.gguf", "gguf")
    assert done["verification"]["verified"] and done["arch"] == GGUF[name.split("-")[0]].arch


_SQUARE = sorted(
    name for name in NAMES if (spec := GGUF.get(kind := name.split("-")[0])) and spec.square and kind in ATTENTION
)


@pytest.mark.parametrize("name", _SQUARE)
def test_heads_as_wide_as_the_model_are_llama_cpps_or_it_is_refused(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model = cut(model, [torch.tensor([0])] * 3)
    sentence = f"llama.cpp runs {GGUF[name.split('-')[0]].arch} with heads as wide as the model together, 32, but this"
    with pytest.raises(UserError, match=sentence):
        export(order_of(model, "gguf"), tmp_path / "m.gguf", "gguf")
    assert not list(tmp_path.iterdir())


def test_padded_to_all_its_heads_a_square_model_runs_in_llama_cpp(tmp_path: Path) -> None:
    model = cut(model_of("gpt2"), [torch.tensor([0, 2]), torch.tensor([1, 2, 3]), torch.tensor([3])])
    with pytest.raises(UserError, match="has no gpt2 with a number of heads for each layer; export with --to hf-unif"):
        export(order_of(model, "gguf"), tmp_path / "m.gguf", "gguf")
    export(order_of(model), tmp_path / "m", "hf-uniform")
    again = models.load(tmp_path / "m")
    assert export(order_of(again, "gguf"), tmp_path / "m.gguf", "gguf")["verification"]["verified"]


def test_the_guard_sees_another_number_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: two groups said to be one, of the same 4 query heads, and half of the keys."""
    from lmprune.export import gguf_metadata

    right = gguf_metadata._counts

    def wrong(*args: Any, **more: Any) -> dict[str, Any]:
        found = right(*args, **more)
        return {**found, "attention.key_length": HEAD // 2, "attention.value_length": HEAD // 2}

    monkeypatch.setattr(gguf_metadata, "_counts", wrong)
    model = cut(model_of("llama", **_GROUPED), KEPT)
    with pytest.raises(UserError, match=r"computes something else|can't run the file"):
        export(order_of(model, "gguf"), tmp_path / "m.gguf", "gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attentions", [[1, 2], [0, 2]])
def test_heads_neurons_and_attentions_in_one_deci(attentions: list[int], tmp_path: Path) -> None:
    """Llama.cpp takes the size of a head from the first layer, unless the file says it."""
    model = cut(model_of("llama", **_GROUPED), KEPT)
    model = cut(model, [torch.arange(16), torch.arange(32), torch.arange(40)], "neurons")
    shrink(model, plan_of_layers(model, {"attentions": torch.tensor(attentions)}))
    assert export(order_of(model, "gguf"), tmp_path / "m.gguf", "gguf")["verification"]["verified"]


@pytest.mark.parametrize("kept", [KEPT, [torch.tensor([0, 1, 3])] * 3, _SAME], ids=["different", "three", "two"])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_heads_of_each_layer_are_read_back(name: str, kept: list[Tensor], tmp_path: Path) -> None:
    model = cut(model_of(name, **_GROUPED), kept)
    cut(model, [torch.arange(16), torch.arange(32), torch.arange(40)], "neurons")
    export(order_of(model, "gguf"), tmp_path / "m.gguf", "gguf")
    again = models.load(tmp_path / "m.gguf")
    assert heads_by_layer(again) == heads_by_layer(model) and torch.allclose(logits(again), logits(model), atol=1e-5)
    shrunk = checkpoint.save(again, tmp_path / "folder")
    assert torch.equal(logits(models.load(shrunk)), logits(again))
    with torch.no_grad():  # the control
        find_sites(again, ("heads",))[1].reader().mul_(1.5)
    assert not torch.allclose(logits(again), logits(model), atol=1e-3)


# -- vLLM


def for_vllm(kept: dict[Kind, list[int]], layers: int = 4) -> Any:
    model = tiny_model("llama", num_hidden_layers=layers, **_GROUPED)
    return shrink(model, plan_of_layers(model, {kind: torch.tensor(units) for kind, units in kept.items()}))


@pytest.mark.parametrize(
    "kept", [{"attentions": [0, 2]}, {"ffns": [1, 3]}, {"attentions": [0, 1, 3], "ffns": [0, 2]}], ids=str
)
def test_vllm_leaves_out_what_is_gone(kept: dict[Kind, list[int]], tmp_path: Path) -> None:
    model = for_vllm(kept)
    done = export(order_of(model), tmp_path / "m", "vllm")
    assert done["layout"] == "nemotron-nas" and done["verification"]["verified"]
    blocks = json.loads((tmp_path / "m" / "config.json").read_text())["block_configs"]
    parts: dict[str, Kind] = {"attention": "attentions", "ffn": "ffns"}
    for part, kind in parts.items():
        assert [i for i, block in enumerate(blocks) if not block[part]["no_op"]] == kept.get(kind, [0, 1, 2, 3])


def test_the_guard_sees_a_wrong_no_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a layer whose FFN is there and said to be gone."""
    from lmprune.export import vllm

    right = vllm.nemotron_nas_config

    def wrong(*args: Any) -> dict[str, Any]:
        found = right(*args)
        found["block_configs"][1]["ffn"]["no_op"] = True
        return found

    monkeypatch.setattr(vllm, "nemotron_nas_config", wrong)
    with pytest.raises(UserError, match="vLLM would not build this model"):
        export(order_of(for_vllm({"attentions": [0, 2]})), tmp_path / "m", "vllm")


def test_heads_for_vllm(tmp_path: Path) -> None:
    """As many in each layer, beside widths that differ: written. Different ones: padded by hf-uniform only."""
    model = cut(tiny_model("llama", **_GROUPED), _SAME)
    cut(model, [torch.arange(16), torch.arange(32), torch.arange(40)], "neurons")
    assert export(order_of(model), tmp_path / "m", "vllm")["verification"]["verified"]
    model = cut(tiny_model("llama", **_GROUPED), KEPT)
    with pytest.raises(UserError, match="has 8 query heads in every layer here, and one has 4; use --to hf-uniform"):
        export(order_of(model), tmp_path / "n", "vllm")
    with pytest.raises(UserError, match="can't begin with a feed-forward layer, and layer 0 of this model has no att"):
        export(order_of(for_vllm({"attentions": [1, 2]})), tmp_path / "n", "vllm")


# -- ONNX


@pytest.mark.conformance
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_onnx_has_a_cache_of_each_layers_heads(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not here: pip install 'lmprune[onnx]'")
    groups = {} if name == "gpt2" else _GROUPED
    model = cut(model_of(name, **groups), KEPT)
    cut(model, [torch.arange(16), torch.arange(32), torch.arange(40)], "neurons")
    assert export(order_of(model), tmp_path / "m", "onnx")["verification"]["verified"]
    inputs = onnxruntime.InferenceSession(tmp_path / "m" / "model.onnx").get_inputs()
    heads = [each.shape[1] for each in inputs if each.name.endswith(".key")]
    assert heads == [len(kept) for kept in KEPT]


# -- chains


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "phi3"])
def test_heads_then_neurons_then_layers_saved_and_loaded_each_time(name: str, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 3} if name != "gpt2" else {}
    model = cut(tiny_model(name, **sizes, **({} if name == "gpt2" else _GROUPED)), KEPT)
    steps: list[tuple[Kind, list[Tensor]]] = [
        ("neurons", [torch.arange(5, 37)] * 3),
        ("layers", [torch.tensor([0, 2])]),
        ("heads", [torch.tensor([0]), torch.tensor([0])]),
    ]
    for number, (kind, kept) in enumerate(steps):
        model = models.load(checkpoint.save(model, tmp_path / str(number)))
        cut(model, kept, kind)
    wanted = logits(model)
    again = models.load(checkpoint.save(model, tmp_path / "last"))
    assert torch.equal(logits(again), wanted) and len(find_sites(again)) == 2
    assert is_pruned_class(again) == (name == "gpt2")  # which has no word for one head of four
    prompt = tokens(1, 8)
    cached, plain = (again.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)
    export(Order(again, find_sites(again), None, None, "tiny"), tmp_path / "out", "hf-uniform")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not is_pruned_class(stock) and torch.allclose(logits(stock), wanted, atol=1e-5)
