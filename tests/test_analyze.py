"""`lmprune analyze` as a user meets it: its record, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import refused
from test_statistics import hooks_of
from tiny_checkpoints import documented, lmprune, tiny_checkpoint
from tiny_models import LAYERS, WIDTH, tiny_model, tokens

import lmprune as lmprune_py
from lmprune.checkpoints import models
from lmprune.jobs import analysis
from lmprune.plan import PrunePlan
from lmprune.scores.redundancy import measure
from lmprune.sites.address import Address
from lmprune.sites.find import find_sites

QUICK = ("--seq-len", 64, "--max-tokens", 512)


@pytest.fixture(scope="module")
def half(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model pruned to 24, 24, 24 neurons."""
    out = tmp_path_factory.mktemp("half") / "llama"
    done = lmprune("prune", model, "--method", "random", "--keep", 0.5, "--multiple-of", 8, "--out", out)
    assert done.code == 0
    return out


@pytest.fixture(scope="module")
def analysed(model: Path, half: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("analysed") / "a"
    return lmprune("analyze", half, "--baseline", model, "--data", text, *QUICK, "--out", out, "--json").record


def _ids(model: Path, text: Path) -> list[int]:
    """What is read by `QUICK`."""
    return models.load_tokenizer(model)(text.read_text()).input_ids[:512]


def test_the_record_has_the_documented_keys(analysed: dict[str, Any]) -> None:
    assert set(analysed) | set(analysed["layers"][0]) == documented("analyze")
    assert set(analysed["advice"]) == {"method", "scope", "keep", "layers", "train", "why"}


def test_the_numbers_are_those_of_the_models(analysed: dict[str, Any], model: Path, half: Path, text: Path) -> None:
    ids = torch.tensor(_ids(model, text)).view(-1, 64)
    ours, dense = models.load(half), models.load(model)
    found, before = measure(ours, find_sites(ours), ids), measure(dense, find_sites(dense), ids)
    assert analysed["tokens"] == 512 and analysed["uniqueness"] == found.uniqueness
    assert analysed["sensitivity"] == pytest.approx(found.sensitivity)
    assert analysed["sensitivity_ratio"] == pytest.approx(found.sensitivity / before.sensitivity) != 1
    assert analysed["uniqueness_ratio"] == pytest.approx(found.uniqueness / before.uniqueness)
    for layer, mine, theirs in zip(analysed["layers"], found.layers, before.layers, strict=True):
        assert (layer["width"], layer["left"]) == (24, 0.5)
        assert layer["cos_ranges"] == pytest.approx(list(mine.cos_ranges))
        assert layer["baseline_cos_ranges"] == pytest.approx(list(theirs.cos_ranges))
        assert layer["baseline_sensitivity"] == pytest.approx(theirs.sensitivity)


def test_layers_have_their_numbers_where_one_has_no_neurons(model: Path, text: Path, tmp_path: Path) -> None:
    """Layer 2 was called 1, and compared with layer 1 of a baseline that had lost another one; beside a baseline that
    has them all it was refused."""
    for gone, layers in ((1, [0, 2]), (2, [0, 1])):
        net = models.load(model)
        plan = PrunePlan.of([Address("ffns", 0)], [torch.tensor(layers)], [LAYERS])
        lmprune_py.shrink(net, plan)
        lmprune_py.save(net, tmp_path / str(gone), tokenizer=models.load_tokenizer(model), plan=plan)
    without = tmp_path / "1"
    done = lmprune("analyze", without, "--data", text, *QUICK, "--out", tmp_path / "a", "--json").record
    assert [layer["layer"] for layer in done["layers"]] == [0, 2]
    words = refused("analyze", without, "--data", text, *QUICK, "--baseline", tmp_path / "2", "--out", tmp_path / "b")
    assert "layer 2 has 48 neurons, 0 in the baseline" in words
    beside = lmprune("analyze", without, "--data", text, *QUICK, "--baseline", model, "--out", tmp_path / "c", "--json")
    theirs = measure(dense := models.load(model), find_sites(dense), torch.tensor(_ids(model, text)).view(-1, 64))
    assert [layer["layer"] for layer in beside.record["layers"]] == [0, 2]
    for layer in beside.record["layers"]:
        assert layer["left"] == 1
        assert layer["baseline_sensitivity"] == pytest.approx(theirs.layers[layer["layer"]].sensitivity)


def test_what_is_written(analysed: dict[str, Any]) -> None:
    out = Path(analysed["out"])
    charts = ("cos_ranges", "left", "sensitivity", "uniqueness")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["analysis.json", *(f"{c}.{kind}" for c in charts for kind in ("csv", "png", "svg"))]
    )
    whole = json.loads((out / "analysis.json").read_text())
    per_neuron = whole.pop("neurons")
    assert whole == analysed
    assert [len(layer[key]) for layer in per_neuron for key in layer] == [24] * 4 * LAYERS
    assert sum(map(sum, (layer["sensitivity"] for layer in per_neuron))) == pytest.approx(analysed["sensitivity"])
    assert all((out / f"{c}.png").read_bytes()[:4] == b"\x89PNG" for c in charts)


def test_people_are_told(model: Path, half: Path, text: Path, tmp_path: Path) -> None:
    shown = lmprune("analyze", half, "--data", text, *QUICK, "--out", tmp_path / "a")
    assert shown.code == 0 and "512 tokens" in shown.out and "Advice: obs" in shown.out
    assert "50%" in shown.out  # left, from the plan beside the model
    assert "baseline" not in shown.out.split("Advice")[0]
    dense = lmprune("analyze", model, "--data", text, *QUICK, "--out", tmp_path / "b")
    assert "left" not in dense.out.splitlines()[1]


def test_look_alikes_come_with_the_tokens_that_fire_them(tmp_path: Path, text: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "gpt2", "gpt2", n_positions=256)
    model = models.load(folder)
    ffn = find_sites(model)[1]
    with torch.no_grad():
        for rows in [*ffn.writers(), *ffn.writer_biases()]:
            rows[[5, 9]] = rows[2].clone()
    model.save_pretrained(folder)
    record = lmprune("analyze", folder, "--data", text, *QUICK, "--out", tmp_path / "a", "--json").record
    cluster = next(c for c in record["clusters"][1] if 2 in c["neurons"])
    assert {2, 5, 9} <= set(cluster["neurons"]) and 1 <= len(cluster["examples"]) <= 5
    source = text.read_text()
    assert all(x["before"] + x["token"] in source for x in cluster["examples"])
    assert record["layers"][1]["redundant"] >= 2


def test_advice_lets_look_alikes_and_the_least_sensitive_go() -> None:
    model, ids = tiny_model("llama").double(), tokens(4, 16)
    found = measure(model, find_sites(model), ids)
    given = analysis.advice(found)
    total = torch.cat([layer.sensitivity_F for layer in found.layers if layer.sensitivity_F is not None])
    least, held = 0, 0.0
    for value in sorted(total.tolist()):
        held += value
        least += held <= 0.05 * sum(total.tolist())
    redundant = sum(int(layer.redundant_F.sum()) for layer in found.layers)
    assert least > 0 and f"{least} of {WIDTH * LAYERS} neurons" in given["why"]
    assert 1 - (least + redundant) / total.numel() - 0.01 <= given["keep"] <= 1 - least / total.numel() + 0.01
    assert given["keep"] == pytest.approx(sum(given["layers"]) / LAYERS, abs=0.01)
    assert given["scope"] in ("local", "global") and hooks_of(model) == 0


def test_an_existing_folder_is_kept_and_an_analysis_replaced_with_force(
    model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    arguments = ("analyze", model, "--data", text, *QUICK, "--out", out)
    assert "is not empty; choose another --out" in refused(*arguments)
    assert "is not an analysis" in refused(*arguments, "--force")
    (out / "thesis.txt").unlink()
    assert lmprune(*arguments).code == 0
    stamp = (out / "analysis.json").stat().st_mtime_ns
    assert lmprune(*arguments, "--force").code == 0
    assert (out / "analysis.json").stat().st_mtime_ns != stamp
    assert "is a file" in refused(*arguments[:-1], out / "analysis.json")


def test_a_baseline_of_another_shape(model: Path, half: Path, text: Path, tmp_path: Path) -> None:
    rest = ("--data", text, *QUICK, "--out", tmp_path / "a")
    other = tiny_checkpoint(tmp_path / "other", num_hidden_layers=2)
    assert refused("analyze", model, "--baseline", other, *rest) == (
        "the model has 3 layers of hidden size 32, the baseline 2 of 32; "
        "a baseline must be the same model before pruning"
    )
    assert "were the two exchanged?" in refused("analyze", model, "--baseline", half, *rest)
    assert "no model at" in refused("analyze", model, "--baseline", tmp_path / "nowhere", *rest)
    assert not (tmp_path / "a").exists()


def test_sequences_longer_than_the_model_reads(model: Path, text: Path, tmp_path: Path) -> None:
    sentence = refused("analyze", model, "--data", text, "--seq-len", 300, "--out", tmp_path / "a")
    assert "seq_len 300 is more than the model's 256 positions" in sentence
