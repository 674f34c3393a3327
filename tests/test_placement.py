"""The model that is read is the model that was saved: nothing unplaced, missing or cast, in any family."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from safetensors.torch import load_file, save_file
from tiny_checkpoints import lmprune, tiny_checkpoint
from tiny_models import LAYERS, NAMES, VOCABULARY, logits, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from lmprune.checkpoints import checkpoint, models
from lmprune.errors import UserError
from lmprune.jobs.inspection import parameters_by_part
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def said(model: Any) -> dict[str, Any]:
    return {key: value for key, value in model.config.to_dict().items() if "dtype" not in key}


def outcome(folder: Path) -> tuple[Any, list[str]]:
    """The model and what was said, or the sentence it is refused with; looking at it tells the same as loading it."""
    found: list[tuple[Any, list[str]]] = []
    for read in (models.load, models.skeleton):
        notes: list[str] = []
        try:
            found.append((read(folder, note=notes.append), notes))
        except UserError as error:
            assert "\n" not in str(error)
            found.append((str(error), notes))
    (model, told), (outline, looked) = found
    assert told == looked
    if isinstance(model, str):
        assert model == outline
    else:
        assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in outline.named_parameters()}
        assert said(model) == said(outline)
        assert not any(parameter.is_meta for parameter in model.parameters())
        assert all(parameter.is_meta for parameter in outline.parameters())
    return model, told


def refused(folder: Path) -> str:
    sentence, _ = outcome(folder)
    assert isinstance(sentence, str), f"{folder} opens"
    return sentence.removeprefix(f"{folder}: ")


def opens(folder: Path) -> list[str]:
    model, notes = outcome(folder)
    assert not isinstance(model, str), model
    return [note.removeprefix(f"{folder}: ") for note in notes]


def names_by(config: Any) -> set[str] | None:
    """The tensors of the model that a config describes; None where there is no such model."""
    try:
        with torch.device("meta"):
            return set(AutoModelForCausalLM.from_config(config).state_dict())
    except Exception:
        return None


@pytest.mark.parametrize("name", few(NAMES))
def test_a_checkpoint_with_more_layers_than_its_config(name: str, tmp_path: Path) -> None:
    folder = checkpoint.save(tiny_model(name), tmp_path / "m")
    assert opens(folder) == []
    blocks = FAMILIES[name.split("-")[0]].blocks
    last, next_one = f"{blocks}.{LAYERS - 1}.", f"{blocks}.{LAYERS}."
    change_weights(
        folder,
        lambda old: old | {k.replace(last, next_one): v.clone() for k, v in old.items() if k.startswith(last)},
    )
    assert f"first {next_one}" in refused(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_with_fewer_layers_than_its_checkpoint(name: str, tmp_path: Path) -> None:
    folder = checkpoint.save(tiny_model(name), tmp_path / "m")
    config = AutoConfig.from_pretrained(folder)
    change_config(folder, **{config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): LAYERS - 1})
    for key in ("layer_types", "no_rope_layers"):
        if isinstance(getattr(config, key, None), list):
            change_config(folder, **{key: getattr(config, key)[:-1]})
    if hasattr(config, "attention_types"):
        change_config(folder, attention_types=[[["global", "local"], 1]], attention_layers=["global", "local"])
    blocks = FAMILIES[name.split("-")[0]].blocks
    sentence = refused(folder)
    assert "no place for " in sentence and f"tensors of the checkpoint, first {blocks}.2." in sentence


@cache
def switches(name: str) -> list[str]:
    """The config's fields of yes or no that decide which tensors a model has."""
    config = tiny_config(name)
    yes_or_no = [key for key, value in config.to_dict().items() if isinstance(value, bool)]
    return [
        key for key in yes_or_no if names_by(config) != names_by(tiny_config(name, **{key: not getattr(config, key)}))
    ]


@pytest.mark.conformance
def test_switches_that_decide_which_tensors_there_are() -> None:
    assert {"attention_bias", "mlp_bias"} <= set(switches("llama")) and "enable_bias" in switches("opt")
    assert sum(bool(switches(name)) for name in NAMES) > 25


@pytest.mark.parametrize("name", few(NAMES))
def test_a_config_that_denies_or_invents_tensors(name: str, tmp_path: Path) -> None:
    """stories260k with `attention_bias` set to false evaluated to another perplexity, without a word."""
    for key in switches(name):
        for stored in (True, False):
            try:
                model = tiny_model(name, **{key: stored})
                model(torch.ones(1, 2, dtype=torch.long))
            except Exception:
                continue  # transformers itself refuses it, or makes what it can't run
            folder = checkpoint.save(model, tmp_path / f"{key}-{stored}")
            assert opens(folder) == []
            change_config(folder, **{key: not stored})
            assert refused(folder)


def test_tensors_of_no_model(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    change_weights(folder, lambda old: old | {"v_head.summary.weight": torch.zeros(1, 32)})
    expected = (
        "the model that config.json describes has no place for 1 tensor of the checkpoint, "
        "first v_head.summary.weight; config and weights don't belong together"
    )
    assert refused(folder) == expected
    for command in (("eval", folder, "--data", "python-docs"), ("inspect", folder)):
        shown = lmprune(*command)
        assert shown.code == 2 and expected in shown.err


def test_two_tensors_for_one_place(tmp_path: Path) -> None:
    """A base model's names have no `model.`; either is fine, both are not."""
    folder = tiny_checkpoint(tmp_path / "m")
    before = logits(models.load(folder))
    change_weights(folder, lambda old: {name.removeprefix("model."): tensor for name, tensor in old.items()})
    assert opens(folder) == [] and torch.equal(logits(models.load(folder)), before)
    change_weights(folder, lambda old: old | {"model.norm.weight": old["norm.weight"] + 1})
    assert refused(folder) == "the checkpoint holds both model.norm.weight and norm.weight, which have one place"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_our_own_checkpoints_of_several_widths(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    for ffn, width in zip(find_sites(model), (16, 24, 40), strict=True):
        ffn.keep(torch.arange(width))
    folder = checkpoint.save(model, tmp_path / "m")
    assert opens(folder) == []
    assert torch.equal(logits(models.load(folder)), logits(model))
    change_weights(folder, lambda old: old | {"more": torch.zeros(2, 2)})
    assert "first more" in refused(folder)


# -- what is rightly left out


def test_masks_that_older_checkpoints_hold(tmp_path: Path) -> None:
    """`attn.bias` of GPT-2, GPT-J, GPT-Neo and CodeGen: the model makes the same mask itself."""
    mask = torch.ones(64, 64).tril()[None, None]
    names = {
        "gpt2": "transformer.h.{}.attn.bias",
        "gptj": "transformer.h.{}.attn.bias",
        "codegen": "transformer.h.{}.attn.causal_mask",
        "gpt_neo": "transformer.h.{}.attn.attention.bias",
        "gpt_neox-parallel": "gpt_neox.layers.{}.attention.bias",
    }
    for family, pattern in names.items():
        model = tiny_model(family)
        folder = checkpoint.save(model, tmp_path / family)
        first = pattern.format(0)
        old = {pattern.format(i): mask.bool().clone() for i in range(LAYERS)}
        old |= {first.rsplit(".", 1)[0] + ".masked_bias": torch.tensor(-1e4)}
        change_weights(folder, lambda weights, old=old: weights | old)
        (note,) = opens(folder)
        assert note == f"4 tensors left out that the model makes itself or does not use, first {first}"
        assert torch.equal(logits(models.load(folder, note=print)), logits(model))
        saved = checkpoint.save(models.load(folder, note=print), tmp_path / f"{family}-again")
        assert opens(saved) == []


def test_a_mask_that_is_another(tmp_path: Path) -> None:
    folder = checkpoint.save(tiny_model("gptj"), tmp_path / "m")
    seen = torch.ones(1, 1, 64, 64)
    change_weights(folder, lambda old: old | {"transformer.h.0.attn.bias": seen})
    assert "no place for 1 tensor" in refused(folder)
    change_weights(folder, lambda old: {k: v for k, v in old.items() if v is not seen and "attn.bias" not in k})
    assert opens(folder) == []
    change_weights(folder, lambda old: old | {"transformer.h.0.attn.scale": torch.tensor(2.0)})
    assert "first transformer.h.0.attn.scale" in refused(folder)


@pytest.mark.parametrize("field", ["num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers"])
@pytest.mark.parametrize("kind", ["named", "further block"])
def test_multi_token_prediction_heads(field: str, kind: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    last, place = "model.layers.2.", {"named": "model.mtp_layers.0.", "further block": "model.layers.3."}[kind]

    def with_head(old: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        block = {k.replace(last, place): v.clone() for k, v in old.items() if k.startswith(last)}
        return old | block | {f"{place}eh_proj.weight": torch.zeros(32, 64)}

    change_weights(folder, with_head)
    assert f"first {place}" in refused(folder)  # the config knows of no such head
    change_config(folder, **{field: 1})
    (note,) = opens(folder)
    assert note.startswith(f"the multi-token-prediction head was left out (13 tensors, first {place}")
    assert note.endswith(f"transformers does not run it; the config's {field} is 0 now")
    saved = checkpoint.save(models.load(folder, note=print), tmp_path / "again")
    assert json.loads((saved / "config.json").read_text())[field] == 0
    assert lmprune("inspect", folder).err.count("the multi-token-prediction head was left out") == 1
    with pytest.warns(UserWarning, match="multi-token-prediction"):
        models.load(folder)


def test_a_layer_more_is_no_head(tmp_path: Path) -> None:
    """The config says that there is a head, but the block after the last is like the others."""
    folder = tiny_checkpoint(tmp_path / "m")
    change_config(folder, num_nextn_predict_layers=1, num_hidden_layers=2)
    assert "first model.layers.2." in refused(folder)


# -- what a weight is stored as


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8"), (torch.int32, "I32")],
)
@pytest.mark.parametrize("scale", [True, False])
def test_quantised_weights_that_no_config_declares(dtype: Any, kind: str, scale: bool, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    name = "model.layers.1.mlp.up_proj.weight"

    def quantise(old: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scales = {f"{name}_scale": torch.ones(48, 1)} if scale else {}
        return old | {name: (old[name] * 10).to(dtype)} | scales

    change_weights(folder, quantise)
    assert refused(folder) == (
        f"{folder} is quantised or packed: {name} is stored as {kind}, not as float16, bfloat16, float32 or float64; "
        "start from the original model"
    )


def test_packed_weights_that_no_config_declares(tmp_path: Path) -> None:
    """Four bits each, as GPTQ and AWQ name them: there is no `weight` at all."""
    folder = tiny_checkpoint(tmp_path / "m")
    name = "model.layers.1.mlp.up_proj"

    def pack(old: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rest = {k: v for k, v in old.items() if k != f"{name}.weight"}
        return rest | {f"{name}.qweight": torch.zeros(4, 48).int(), f"{name}.scales": torch.ones(1, 48).half()}

    change_weights(folder, pack)
    assert f"{name}.qweight is stored as I32" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_four_types_of_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    change_weights(folder, lambda old: {name: tensor.to(dtype) for name, tensor in old.items()})
    assert opens(folder) == []


# -- the output head


def own_head(folder: Path) -> torch.Tensor:
    """Puts a head of its own into a tied checkpoint."""
    head = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(5))
    change_weights(folder, lambda old: old | {"lm_head.weight": head})
    return head


def test_a_tied_config_with_a_head_in_the_file(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama-tied", vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    head = own_head(folder)
    (note,) = opens(folder)
    assert note.startswith("config.json says that the output head is the embedding, but the weights have a head of ")
    model = models.load(folder, note=print)
    assert torch.equal(model.lm_head.weight, head)
    skeleton = models.skeleton(folder)
    assert parameters_by_part(skeleton, find_sites(skeleton))["output_head"] == VOCABULARY * 32
    record = lmprune("inspect", folder, "--json").record
    assert record["parts"]["output_head"] == VOCABULARY * 32 and not record["tied_embedding"]
    saved = checkpoint.save(model, tmp_path / "again")
    assert json.loads((saved / "config.json").read_text())["tie_word_embeddings"] is False
    assert opens(saved) == []
    stock = AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(logits(stock), logits(model)) and torch.equal(stock.lm_head.weight, head)


def test_a_tied_head_that_is_stored_twice(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama-tied")
    change_weights(folder, lambda old: old | {"lm_head.weight": old["model.embed_tokens.weight"].clone()})
    assert opens(folder) == []
    model = models.load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings
    assert lmprune("inspect", folder, "--json").record["tied_embedding"]
    change_weights(folder, lambda old: {k: v for k, v in old.items() if k != "model.embed_tokens.weight"})
    assert opens(folder) == [], "the head alone is enough"


def test_a_head_that_differs_in_its_last_row_only(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama-tied", vocab_size=3000)

    def change_last(old: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = old["model.embed_tokens.weight"].clone()
        head[-1, -1] += 1
        return old | {"lm_head.weight": head}

    change_weights(folder, change_last)
    assert len(opens(folder)) == 1


def test_a_config_that_transformers_refuses(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "qwen3")
    change_config(folder, num_hidden_layers=2)
    assert "`num_hidden_layers` (2) must be equal to the number of `layer_types` (3)" in refused(folder)
    change_config(folder, num_hidden_layers="three")
    assert "can't load the model of" in refused(folder)
    change_config(folder, num_hidden_layers=3, num_attention_heads=0)
    assert "can't load the model of" in refused(folder)
