"""Folders for stock transformers and for vLLM, and `lmprune export` as a user meets it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from in_parts import few
from test_bad_input import refused
from test_checkpoint import per_layer_plan, uniform_plan, with_reader_bias
from test_gguf import bpe, model_of
from tiny_checkpoints import byte_tokenizer, documented, lmprune, tiny_checkpoint
from tiny_models import NAMES, WIDTH, is_pruned_class, logits, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.export import TARGETS, Order, export
from lmprune.plan import PLAN_FILE
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    hf_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a width for each layer, a tokenizer and a card."""
    model = model_of("llama-tied")
    plan = per_layer_plan(model)
    shrink(model, plan)
    out = tmp_path_factory.mktemp("pruned") / "llama"
    return checkpoint.save(model, out, tokenizer=bpe(), plan=plan, card="# A card\n")


def written(model: Any, out: Path, to: str, *, dtype: str | None = None) -> dict[str, Any]:
    return export(Order(model, find_sites(model), None, dtype, "tiny"), out, to)


# -- hf-uniform


@pytest.mark.parametrize("name", few(NAMES))
def test_padded_to_one_width_the_stock_class_opens_it(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    shrink(model, per_layer_plan(model))
    wanted, before = logits(model), sum(p.numel() for p in model.parameters())
    details = written(model, tmp_path / "out", "hf-uniform")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not is_pruned_class(stock) and torch.allclose(logits(stock), wanted, atol=1e-5)
    hard_coded = FAMILIES[name.split("-")[0]].width_key is None
    assert {ffn.width for ffn in find_sites(stock)} == {128 if hard_coded else 32}
    assert sum(p.numel() for p in stock.parameters()) == before + details["params_added"]
    assert f"adds {details['params_added']:,} parameters" in details["notes"][0]


def test_padding_that_counts_would_show() -> None:
    model = tiny_model("llama")
    wanted = logits(model)
    for ffn in find_sites(model):
        ffn.pad(WIDTH + 8)
    assert torch.allclose(logits(model), wanted, atol=1e-6)
    with torch.no_grad():
        for tensor in (*find_sites(model)[0].writers(), find_sites(model)[0].reader()):
            tensor[WIDTH:] = 1.0
    assert not torch.allclose(logits(model), wanted, atol=1e-3)


def test_one_width_is_left_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    shrink(model, uniform_plan(model, 17))
    assert written(model, tmp_path / "out", "hf-uniform")["params_added"] == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").n_inner == 17


def test_a_bias_that_the_stock_class_lacks(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    shrink(model, per_layer_plan(model))
    with pytest.raises(UserError, match="Qwen2ForCausalLM has no place for the bias"):
        written(with_reader_bias(model), tmp_path / "out", "hf-uniform")
    with pytest.raises(UserError, match="with a width for each layer, only llama and mistral; use --to onnx"):
        written(model, tmp_path / "out", "vllm")
    assert list(tmp_path.iterdir()) == []


def test_dtype(tmp_path: Path) -> None:
    written(tiny_model("gpt2"), tmp_path / "out", "hf-uniform", dtype="bf16")
    assert models.load(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


# -- vLLM


def fields_that_vllm_reads(config: Any, layer: int) -> dict[str, Any]:
    """What vLLM's nemotron_nas.py (commit 00bd1493) and the classes under it take from the config, as it takes it."""
    block = config.block_configs[layer]
    assert not block.attention.no_op and not block.ffn.no_op
    assert not hasattr(block.ffn, "ffn_mult"), "vLLM would compute the width from it"
    assert not hasattr(block.ffn, "hidden_act") and not hasattr(config, "qkv_bias")
    return {
        "kv_heads": config.num_attention_heads // block.attention.n_heads_in_group,
        "width": block.ffn.intermediate_size,
        "mlp_bias": getattr(config, "mlp_bias", False),
        "attention_bias": getattr(config, "attention_bias", False) or getattr(config, "bias", False),
        **{
            name: getattr(config, name)
            for name in (
                "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps",
                "hidden_act", "vocab_size", "tie_word_embeddings", "rope_parameters", "head_dim",
            )
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral"])
def test_vllm_finds_every_field(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    model = tiny_model(name, **({"sliding_window": None} if name == "mistral" else {}))
    shrink(model, per_layer_plan(model))
    wanted = dict(model.config.to_dict())
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert written(model, tmp_path / "out", "vllm")["layout"] == "nemotron-nas"
    assert {"decilm.py", "config.json", "model.safetensors"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "shim.py").exists()
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert config.model_type == "nemotron-nas" and config.architectures == ["DeciLMForCausalLM"]
    for layer, width in enumerate((24, 16, 12)):
        found = fields_that_vllm_reads(config, layer)
        assert (found["width"], found["kv_heads"]) == (width, wanted["num_key_value_heads"])
        assert found["mlp_bias"] == (name == "llama")
        for key in set(found) & set(wanted) - {"mlp_bias"}:
            assert found[key] == wanted[key], key
    again = copy.deepcopy(config)  # vLLM copies and prints configs
    assert again.block_configs[1].ffn.intermediate_size == 16 and '"intermediate_size": 16' in again.to_json_string()
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored and all(torch.equal(weights[key], value) for key, value in stored.items())


def test_vllm_is_told_the_dtype_of_the_weights(tmp_path: Path) -> None:
    model = tiny_model("llama")
    shrink(model, per_layer_plan(model))
    written(model, tmp_path / "out", "vllm", dtype="bf16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_stock_model_stays_one_for_vllm(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.config.auto_map = {"AutoConfig": "configuration_x.X"}  # code that it was published with, and that stays there
    assert written(model, tmp_path / "out", "vllm")["layout"] == "stock"
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_what_nemotron_nas_is_not(tmp_path: Path) -> None:
    for name, changes, why in (
        ("gpt2", {}, "no gpt2 with a width for each layer"),
        ("mistral", {"sliding_window": 8}, "has no sliding window"),
        ("llama-tied", {}, "only some have one"),
    ):
        model = tiny_model(name, **changes)
        shrink(model, per_layer_plan(model))
        if name == "llama-tied":
            with_reader_bias(model)
        with pytest.raises(UserError, match=why):
            written(model, tmp_path / "out", "vllm")
    assert list(tmp_path.iterdir()) == []


# -- the command


def test_export_prints_one_object_with_the_documented_keys(pruned: Path, tmp_path: Path) -> None:
    record = lmprune("export", pruned, "--to", "gguf", "--out", tmp_path / "m.gguf", "--json").record
    assert set(record) == documented("export")
    assert record["details"] == {"arch": "deci"} and record["widths"] == [24, 16, 12] and record["dtype"] == "f16"
    assert record["megabytes"] == pytest.approx((tmp_path / "m.gguf").stat().st_size / 1e6)
    plan = json.loads(gguf.GGUFReader(tmp_path / "m.gguf").fields["lmprune.plan"].contents())
    assert plan == json.loads((pruned / PLAN_FILE).read_text())


def test_card_and_plan_come_along_into_a_folder(pruned: Path, tmp_path: Path) -> None:
    shown = lmprune("export", pruned, "--to", "hf-uniform", "--out", tmp_path / "o")
    assert shown.code == 0 and "padded to 32 neurons a layer" in shown.out
    assert (tmp_path / "o" / PLAN_FILE).read_bytes() == (pruned / PLAN_FILE).read_bytes()
    of_original, of_copy = ((folder / "README.md").read_text() for folder in (pruned, tmp_path / "o"))
    title = of_original.index("# ")
    assert of_copy.startswith(of_original[:title]) and of_copy.endswith(of_original[title:])
    assert "--to hf-uniform" in of_copy and "padded to 32 neurons a layer" in of_copy
    assert lmprune("export", pruned, "--to", "hf-uniform", "--out", tmp_path / "o", "--force").code == 0


def export_fails(tmp_path: Path, *args: object) -> str:
    before = sorted(tmp_path.rglob("*"))
    sentence = refused("export", *args)
    assert sorted(tmp_path.rglob("*")) == before
    return sentence


def test_what_can_not_be_asked_for(pruned: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert "did you mean gguf" in export_fails(tmp_path, pruned, "--to", "ggf", "--out", out)
    assert "did you mean" in export_fails(tmp_path, pruned, "--to", "gguf", "--out", out, "--dtype", "f17")
    assert "llama-quantize" in export_fails(tmp_path, pruned, "--to", "gguf", "--out", out, "--dtype", "q3_k_m")
    assert "known: as it is, f32" in export_fails(tmp_path, pruned, "--to", "vllm", "--out", out, "--dtype", "q8_0")
    assert "should end in .gguf" in export_fails(tmp_path, pruned, "--to", "gguf", "--out", tmp_path / "m")


def test_what_a_gguf_file_can_not_say(tmp_path: Path) -> None:
    """Its whole numbers have 32 bits, and no sign."""
    ends = {"vocab_size": 258, "bos_token_id": 257, "eos_token_id": 257}
    model = tiny_checkpoint(tmp_path / "m", tokenizer=False, **ends)
    byte_tokenizer(merges=[("a", "t")]).save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    asked = ("--to", "gguf", "--out", tmp_path / "m.gguf")
    for length, why in (
        (2**40, f"a GGUF file can't say that llama.context_length is {2**40}; look at config.json"),
        (-64, f"{model}: config.json has 'max_position_embeddings' = -64; no model has that"),
    ):
        (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": length}))
        assert export_fails(tmp_path, model, *asked) == why


def test_a_target_that_exists(pruned: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "m.gguf", tmp_path / "o"
    out.write_text("my thesis")
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    assert "exists; choose another --out" in export_fails(tmp_path, pruned, "--to", "gguf", "--out", out)
    assert "is not a GGUF file" in export_fails(tmp_path, pruned, "--to", "gguf", "--out", out, "--force")
    assert "is not empty" in export_fails(tmp_path, pruned, "--to", "hf-uniform", "--out", folder)
    assert out.read_text() == "my thesis"
    out.unlink()
    for force in ([], ["--force"]):
        assert lmprune("export", pruned, "--to", "gguf", "--out", out, *force).code == 0


def test_a_checkpoint_with_missing_shards(tmp_path: Path) -> None:
    model = model_of("llama-tied")
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    bpe().save_pretrained(tmp_path / "in")
    shards = sorted((tmp_path / "in").glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    sentence = export_fails(tmp_path, tmp_path / "in", "--to", "gguf", "--out", tmp_path / "m.gguf")
    assert shards[1].name in sentence or "lacks" in sentence


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint.save(tiny_model("gpt2"), tmp_path / "in")
    sentence = export_fails(tmp_path, tmp_path / "in", "--to", "gguf", "--out", tmp_path / "m.gguf")
    assert "comes with none" in sentence


def test_every_target_has_a_writer() -> None:
    for target in TARGETS.values():
        assert callable(target.write) and target.summary
