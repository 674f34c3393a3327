"""The demo, on a tiny model: what it measures, that it can be run again, and that its three commands work."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import documented, lmprune, tiny_checkpoint
from tiny_models import LAYERS

from lmprune.checkpoints import models
from lmprune.data import load as load_text
from lmprune.data.prompts import BEGINNINGS
from lmprune.data.tokens import stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.jobs import demo
from lmprune.plan import PLAN_FILE, PrunePlan

SIZES = demo.Sizes(
    calibration_tokens=1024, seq_len=64, eval_tokens=512, context=64, prompt_tokens=16, new_tokens=2, repeats=1,
    answer_tokens=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("dense") / "llama", intermediate_size=128)


@pytest.fixture
def tiny_demo(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lmprune demo` takes the tiny model and little text."""
    monkeypatch.setattr(demo, "run_demo", functools.partial(demo.run_demo, model=str(model), sizes=SIZES))


@pytest.fixture
def record(tiny_demo: None, tmp_path: Path) -> dict[str, Any]:
    return lmprune("demo", "--out", tmp_path / "demo", "--keep", 0.75, "--json").record


def test_the_record(record: dict[str, Any], model: Path) -> None:
    assert set(record) == documented("demo")
    assert record["keep"] == 0.75 and record["method"] == "obs" and record["dequantised_from"] is None
    assert record["calibration"]["split"] == "train" and record["calibration"]["tokens"] == 1024
    assert record["evaluation"]["split"] == "validation" and record["evaluation"]["tokens"] == 512 - 8
    assert len(record["evaluation"]["sha256"]) == 64
    for side in (record["before"], record["after"]):
        assert side["megabytes"] == side["params"] * 4 / 1e6
        assert side["prefill_tokens_per_second"] > 0 and side["decode_tokens_per_second"] > 0
    assert [item["prompt"] for item in record["answers"]["items"]] == [*BEGINNINGS]  # the tiny model has no template


def test_before_and_after_are_measured_on_the_right_models(record: dict[str, Any], model: Path) -> None:
    """By loading both again: the checkpoint is what was measured, and the dense model was not touched."""
    ids, _ = stream(models.load_tokenizer(model), load_text("python-docs", "validation"), 512)
    for side, folder in (("before", model), ("after", record["out"])):
        loaded = models.load(folder)
        result = perplexity(loaded, ids, context=64)
        assert record[side]["perplexity"] == pytest.approx(result.perplexity, rel=1e-6)
        assert record[side]["perplexity_se"] == pytest.approx(result.perplexity_se, rel=1e-6)
        assert record[side]["params"] == sum(p.numel() for p in loaded.parameters())
    plan = PrunePlan.load(Path(record["out"]) / PLAN_FILE)
    assert plan.widths == [96] * LAYERS
    card = (Path(record["out"]) / "README.md").read_text()
    assert f"{record['after']['perplexity']:.2f} ± {record['after']['perplexity_se']:.2f} after" in card


def test_it_can_be_run_again_and_then_replaces_its_own(record: dict[str, Any], tiny_demo: None, tmp_path: Path) -> None:
    again = lmprune("demo", "--out", tmp_path / "demo", "--keep", 0.34, "--json").record
    assert PrunePlan.load(Path(again["out"]) / PLAN_FILE).widths == [32] * LAYERS
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_the_commands_to_try_next_work(record: dict[str, Any]) -> None:
    assert [command[0] for command in record["commands"]] == ["inspect", "eval", "prune"]
    shown = [lmprune(*command, "--json") for command in record["commands"]]
    inspected, evaluated, pruned = (each.record for each in shown)
    assert inspected["params"] == record["after"]["params"]
    assert evaluated["perplexity"] == pytest.approx(record["after"]["perplexity"], rel=1e-6)
    assert evaluated["baseline_perplexity"] == pytest.approx(record["before"]["perplexity"], rel=1e-6)
    assert pruned["params_after"] < record["after"]["params"]


def test_the_card_holds_a_command_that_makes_the_same_checkpoint(record: dict[str, Any], tmp_path: Path) -> None:
    plan = PrunePlan.load(Path(record["out"]) / PLAN_FILE)
    command = [tmp_path / "again" if arg == str(tmp_path / "demo") else arg for arg in plan.provenance["command"][1:]]
    assert lmprune(*command).code == 0
    assert PrunePlan.load(tmp_path / "again" / PLAN_FILE).kept == plan.kept
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "again", tmp_path / "demo")]
    assert weights[0] == weights[1]


def test_people_see_before_and_after(tiny_demo: None, tmp_path: Path) -> None:
    shown = lmprune("demo", "--out", tmp_path / "demo")
    assert shown.code == 0
    for row in ("parameters", "MB in ", "perplexity", "tokens/s, prefill", "tokens/s, decode"):
        assert row in shown.out
    assert all(" ".join(prompt.split()) in shown.out for prompt in BEGINNINGS)
    assert "SHA-256 " in shown.out and "Try next:" in shown.out
    assert str(tmp_path / "demo") in shown.out and "dequantised" not in shown.out
    assert "perplexity before" in shown.err and "pruning" in shown.err and "perplexity after" in shown.err


def test_people_hear_of_dequantised_weights(tiny_demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"source": "tiny", "dequantised_from": "Q4_1"}
    monkeypatch.setattr(demo.reproduce, "origin", lambda *_: origin)
    assert "dequantised from Q4_1" in lmprune("demo", "--out", tmp_path / "demo").out
    assert json.loads((tmp_path / "demo" / PLAN_FILE).read_text())["provenance"]["model"] == origin
