"""A checkpoint is saved in the dtype it came in, whatever computed with it; what is said of it is so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_bad_input import refused
from test_demo import SIZES
from test_gguf import model_of, written
from tiny_checkpoints import lmprune
from tiny_models import NAMES, is_pruned_class, logits, tiny_model
from transformers import AutoModelForCausalLM

import lmprune as library
from lmprune.checkpoints import checkpoint, dtypes, models
from lmprune.errors import UserError
from lmprune.jobs import demo
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.find import find_sites

QUICK = ("--method", "magnitude", "--multiple-of", 8, "--keep", 0.5)


LAYERS = ("--units", "layers", "--method", "random", "--keep", 0.67)


def kinds(folder: Path) -> dict[str, str]:
    """The dtype of each tensor in the file, as safetensors tells it."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def of_layers(folder: Path) -> list[str]:
    """The dtype of each layer."""
    found = dict[str, str]()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys() if "up_proj.weight" in name}  # noqa: SIM118
    return [found[name] for name in sorted(found)]


def told(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["dtype"]


def stored_as(dense: Path, folder: Path, dtype: torch.dtype, *, but: Mapping[str, torch.dtype] = {}) -> Path:
    """A copy of a checkpoint with its tensors in `dtype`, but those whose names hold a word of `but`."""
    shutil.copytree(dense, folder)
    tensors = {
        name: tensor.to(next((kind for word, kind in but.items() if word in name), dtype))
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    return folder


@pytest.fixture
def bf16(model: Path, tmp_path: Path) -> Path:
    return stored_as(model, tmp_path / "bf16", torch.bfloat16)


def test_a_pruned_copy_is_not_larger_than_its_source(bf16: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    shown = lmprune("prune", bf16, *QUICK, "--out", out)
    assert set(kinds(out).values()) == {"BF16"} and told(out) == "bfloat16"
    assert (out / "model.safetensors").stat().st_size < (bf16 / "model.safetensors").stat().st_size
    assert "computed in float32, saved in bfloat16: as the original is; --save-dtype float32 keeps" in shown.err
    assert "Computed in float32, saved in bfloat16." in (out / "README.md").read_text()
    assert PrunePlan.load(out / PLAN_FILE).provenance["dtype"] == {"computed": "float32", "saved": "bfloat16"}


@pytest.mark.parametrize("computed", ["float32", "bfloat16", "float64", "auto"])
def test_the_dtype_that_computes_does_not_decide(computed: str, bf16: Path, model: Path, tmp_path: Path) -> None:
    record = lmprune("prune", bf16, *QUICK, "--dtype", computed, "--out", tmp_path / "o", "--json").record
    assert set(kinds(tmp_path / "o").values()) == {"BF16"} and record["dtype"] == "bfloat16"
    shown = lmprune("prune", model, *QUICK, "--dtype", computed, "--out", tmp_path / "p")
    assert set(kinds(tmp_path / "p").values()) == {"F32"} and told(tmp_path / "p") == "float32"
    assert ("saved in" in shown.err) == (computed in ("bfloat16", "float64"))


def test_save_dtype_decides(bf16: Path, tmp_path: Path) -> None:
    shown = lmprune("prune", bf16, *QUICK, "--save-dtype", "float16", "--out", tmp_path / "o")
    assert set(kinds(tmp_path / "o").values()) == {"F16"} and told(tmp_path / "o") == "float16"
    assert "saved in" not in shown.err
    sentence = refused("prune", bf16, *QUICK, "--save-dtype", "bfloat61", "--out", tmp_path / "p")
    assert "unknown save-dtype 'bfloat61'; did you mean bfloat16" in sentence and not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", few(NAMES))
def test_mixed_dtypes_stay_as_they_were_in_every_family(name: str, tmp_path: Path) -> None:
    """One layer's `down` in float32 among bfloat16: cut, and saved as it was."""
    dense = checkpoint.save(tiny_model(name), tmp_path / "dense")
    net = models.load(dense)
    down: Any = find_sites(net)[1].reader_linear
    full = next(key for key, parameter in net.named_parameters() if parameter is down.weight)
    odd = next(key for key in load_file(dense / "model.safetensors") if full.endswith(key))
    mixed = stored_as(dense, tmp_path / "mixed", torch.bfloat16, but={odd: torch.float32})
    before = kinds(mixed)
    assert before[odd] == "F32" and set(before.values()) == {"F32", "BF16"}
    model = models.load(mixed)
    widths = [site.count for site in find_sites(model)]
    library.shrink(model, PrunePlan.of_neurons((tuple(range(16)),) * len(widths), tuple(widths)))
    after = kinds(checkpoint.save(model, tmp_path / "out"))
    assert after == {key: before[key] for key in after} and set(before) == set(after)


@pytest.fixture
def by_layer(model: Path, tmp_path: Path) -> Path:
    """Each layer is stored in a dtype of its own."""
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    return stored_as(
        model, tmp_path / "by-layer", torch.bfloat16, but={f".layers.{i}.": d for i, d in enumerate(kinds)}
    )


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["as a whole", "block by block"])
def test_a_layer_that_stays_keeps_its_own(stream: tuple[str, ...], by_layer: Path, tmp_path: Path) -> None:
    """And not that of the layer whose number it has now."""
    chosen = []
    for seed in range(3):
        out = tmp_path / f"{seed}"
        shown = lmprune("prune", by_layer, *LAYERS, "--seed", seed, *stream, "--out", out)
        kept = PrunePlan.load(out / PLAN_FILE).indices()[0].tolist()
        assert shown.code == 0 and of_layers(out) == [of_layers(by_layer)[layer] for layer in kept]
        chosen += [kept]
    assert any(kept != [*range(len(kept))] for kept in chosen), chosen


@pytest.mark.parametrize("said", ["bfloat16", "float16", None])
def test_auto_rounds_nothing_whatever_the_config_says(said: str | None, model: Path, tmp_path: Path) -> None:
    """An export to f32 reads a checkpoint with `auto`."""

    def read(name: str, dtype: torch.dtype, **but: torch.dtype) -> Any:
        folder = stored_as(model, tmp_path / name, dtype, but=but)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": said}))
        return models.load(folder, dtype="auto")

    exact = load_file(model / "model.safetensors")["model.norm.weight"]
    assert read("all", torch.float32).dtype == torch.float32
    assert read("most", torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(read("some", torch.bfloat16, norm=torch.float32).model.norm.weight, exact)
    assert read("both", torch.bfloat16, norm=torch.float16).dtype == torch.float32


def test_from_python(bf16: Path, tmp_path: Path) -> None:
    model = library.load(bf16)
    assert model.dtype == torch.float32 and set(kinds(library.save(model, tmp_path / "a")).values()) == {"BF16"}
    assert set(kinds(library.save(model, tmp_path / "b", dtype="float32")).values()) == {"F32"}
    assert set(kinds(library.save(model, tmp_path / "c", dtype=torch.float16)).values()) == {"F16"}
    assert set(kinds(library.save(model.half(), tmp_path / "d")).values()) == {"F16"}  # somebody's own choice
    elsewhere = AutoModelForCausalLM.from_pretrained(bf16, dtype=torch.float32)
    assert set(kinds(library.save(elsewhere, tmp_path / "e")).values()) == {"F32"}
    assert model.config.dtype == torch.float16 or model.config.dtype == "float16"
    with pytest.raises(UserError, match="unknown save-dtype 'f16'"):
        library.save(model, tmp_path / "f", dtype="f16")


def test_saving_leaves_the_model_and_rounds_only_the_file(bf16: Path, tmp_path: Path) -> None:
    model = library.load(bf16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    before = logits(model)
    again = library.load(library.save(model, tmp_path / "a"))
    assert torch.equal(logits(model), before) and not torch.equal(logits(again), before)
    dtypes.round_to_saved(model)
    assert torch.equal(logits(model), logits(again)) and model.dtype == torch.float32


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    dense = checkpoint.save(tiny_model("llama-tied"), tmp_path / "dense")
    bf16 = stored_as(dense, tmp_path / "bf16", torch.bfloat16)
    assert set(kinds(checkpoint.save(models.load(bf16), tmp_path / "o"))) == set(kinds(bf16))


def test_a_number_that_float16_can_not_hold(model: Path, tmp_path: Path) -> None:
    net = models.load(model)
    with torch.no_grad():
        find_sites(net)[0].reader()[0, 0] = 1e5
    with pytest.raises(UserError, match=r"has numbers that float16 can't hold; save it in another dtype"):
        checkpoint.save(net, tmp_path / "o", dtype="float16")
    assert not (tmp_path / "o").exists() and set(kinds(checkpoint.save(net, tmp_path / "p"))) == set(kinds(model))


@pytest.mark.parametrize(
    ("kind", "expected"), [("q8_0", "BF16"), ("q4_0", "BF16"), ("f16", "F16"), ("bf16", "BF16"), ("f32", "F32")]
)
def test_gguf_files(kind: str, expected: str, tmp_path: Path) -> None:
    """Quantised weights can't be so again: bfloat16. Others stay what they are."""
    file = tmp_path / "m.gguf"
    written(model_of("llama-tied", intermediate_size=64), file, dtype=kind)
    shown = lmprune("prune", file, *QUICK, "--out", tmp_path / "o")
    assert set(kinds(tmp_path / "o").values()) == {expected}, shown.err
    quantised = kind.startswith("q")
    assert ("its weights were quantised, and can't be so again" in shown.err) == quantised


def test_exported_folders_keep_it_too(bf16: Path, tmp_path: Path) -> None:
    uneven = tmp_path / "uneven"
    assert lmprune("prune", bf16, *QUICK, "--scope", "global", "--multiple-of", 1, "--out", uneven).code == 0
    assert is_pruned_class(models.load(uneven)) and set(kinds(uneven).values()) == {"BF16"}
    for target in ("hf-uniform", "vllm"):
        for asked, expected in ((None, "BF16"), ("f32", "F32")):
            out = tmp_path / f"{target}-{asked}"
            how = ("--dtype", asked) if asked else ()
            assert lmprune("export", uneven, "--to", target, *how, "--out", out).code == 0
            assert set(kinds(out).values()) == {expected}
            assert told(out) == {"BF16": "bfloat16", "F32": "float32"}[expected]


# -- training


def test_training_is_in_float32_and_its_result_is_saved_as_it_came(bf16: Path, text: Path, tmp_path: Path) -> None:
    how = ("--data", text, "--seq-len", 32, "--steps", 10, "--lr", 1e-2)
    shown = lmprune("finetune", bf16, *how, "--out", tmp_path / "o")
    assert set(kinds(tmp_path / "o").values()) == {"BF16"} and "saved in bfloat16: as the original is" in shown.err
    record = lmprune("prune", bf16, "--method", "top_v", *how, "--out", tmp_path / "p", "--json").record
    assert set(kinds(tmp_path / "p").values()) == {"BF16"} and record["dtype"] == "bfloat16"


def test_what_waits_for_a_resumed_run_stays_exact(
    bf16: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut model is kept in the dtype it is trained in; what the resumed run writes is the other's, bit for bit."""
    how = ("--method", "magnitude", "--multiple-of", 8, "--data", text, "--seq-len", 32, "--steps", 4)
    args = ("prune", bf16, *how, "--schedule", "oneshot", "--save-every", 2)
    assert lmprune(*args, "--out", tmp_path / "whole").code == 0

    def stop(*_: Any, **__: Any) -> None:
        raise UserError("enough")

    with monkeypatch.context() as patch:
        patch.setattr("lmprune.jobs.train.train", stop)
        lmprune(*args, "--out", tmp_path / "o")
    assert set(kinds(tmp_path / "o.training" / "cut").values()) == {"F32"}
    assert lmprune(*args, "--out", tmp_path / "o", "--resume").code == 0
    assert set(kinds(tmp_path / "o").values()) == {"BF16"}
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "o"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_that_goes_on_knows_each_layer_s_own(
    by_layer: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads again has other numbers than the dense model."""
    args = ("prune", by_layer, *LAYERS, "--data", text, "--seq-len", 32, "--steps", 2)
    args = (*args, "--schedule", "oneshot", "--save-every", 1, "--seed", 1, "--out", tmp_path / "o")

    def stop(*_: Any, **__: Any) -> None:
        raise UserError("enough")

    with monkeypatch.context() as patch:
        patch.setattr("lmprune.jobs.train.train", stop)
        lmprune(*args)
    assert of_layers(tmp_path / "o.training" / "cut") == ["F32", "F32"]
    assert lmprune(*args, "--resume").code == 0
    kept = PrunePlan.load(tmp_path / "o" / PLAN_FILE).indices()[0].tolist()
    assert kept != [0, 1] and of_layers(tmp_path / "o") == [of_layers(by_layer)[layer] for layer in kept]


def test_the_demo_measures_what_it_writes(bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, model=str(bf16), sizes=SIZES))
    record = lmprune("demo", "--out", tmp_path / "o", "--json").record
    assert record["dtype"] == "bfloat16" and set(kinds(tmp_path / "o").values()) == {"BF16"}
    assert record["after"]["megabytes"] == record["after"]["params"] * 2 / 1e6
    how = ("--data", "python-docs", "--max-tokens", SIZES.eval_tokens, "--context", SIZES.context, "--json")
    assert lmprune("eval", tmp_path / "o", *how).record["perplexity"] == record["after"]["perplexity"]
