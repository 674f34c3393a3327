"""Plan, card and JSON are of this checkpoint: not of the plan that it was made with, nor of the model it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from test_hub import FakeHub
from tiny_checkpoints import documented, lmprune

from lmprune.checkpoints import hub
from lmprune.jobs.inspection import find_plan
from lmprune.plan import PLAN_FILE, PrunePlan

SHORT = ("--seq-len", 32, "--train-tokens", 640)


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("other") / "dogs.txt"
    file.write_text("".join(f"The dog {i} dug {i % 5} holes and slept.\n" for i in range(300)))
    return file


@pytest.fixture(scope="module")
def trained(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pruned while it was trained on `text`."""
    out = tmp_path_factory.mktemp("trained") / "o"
    how = ("--method", "gum", "--keep", 0.5, "--multiple-of", 8, "--steps", 12)
    assert lmprune("prune", model, *how, "--data", text, *SHORT, "--out", out).code == 0
    return out


def plan_of(folder: Path) -> PrunePlan:
    return PrunePlan.load(folder / PLAN_FILE)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_plan_lends_its_neurons_and_not_its_history(
    trained: Path, model: Path, other_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    args = ("prune", model, "--plan", trained / PLAN_FILE, "--data", other_text, "--out", out, "--json")
    record = lmprune(*args).record
    assert "training" not in record and record["plan"] == str(trained / PLAN_FILE) and record["method"] == "gum"
    before, plan = plan_of(trained), plan_of(out)
    assert plan.kept == before.kept and plan.provenance["plan"] == before.record()
    assert plan.settings == before.chosen | {"seed": 0}
    assert not {"training", "calibration"} & plan.provenance.keys()
    card = card_of(out)
    assert "without any training afterwards" in card and "training_log" not in card and "Trained for" not in card
    assert "Its neurons were chosen before: Method `gum`" in card and ", trained for 12 steps on" in card
    shown = lmprune("inspect", out).out
    assert "pruned from" in shown and "trained for" not in shown


def test_a_plan_that_refits_names_the_text_of_both(model: Path, text: Path, other_text: Path, tmp_path: Path) -> None:
    quick = ("--keep", 0.5, "--multiple-of", 8, "--calibration-tokens", 256, "--seq-len", 32)
    first, again = tmp_path / "first", tmp_path / "again"
    assert lmprune("prune", model, *quick, "--data", text, "--seed", 5, "--out", first).code == 0
    refit = ("--calibration-tokens", 128, "--seq-len", 64, "--data", other_text)
    assert lmprune("prune", model, "--plan", first / PLAN_FILE, *refit, "--out", again).code == 0
    before, plan = plan_of(first), plan_of(again)
    assert (plan.settings["calibration_tokens"], plan.settings["seq_len"], plan.settings["seed"]) == (128, 64, 0)
    assert (before.settings["calibration_tokens"], before.settings["seq_len"], before.settings["seed"]) == (256, 32, 5)
    assert plan.provenance["calibration"]["sha256"] != before.provenance["calibration"]["sha256"]
    assert f"Refitted on 128 tokens of `{other_text}`" in card_of(again)
    assert f"on 256 tokens of `{text}`" in card_of(again)


def test_finetune_tells_teacher_text_and_steps(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", fake)
    out = tmp_path / "o"
    args = ("finetune", model, "--data", text, *SHORT, "--steps", 3, "--teacher", model, "--out", out)
    record = lmprune(*args, "--push-to-hub", "me/tuned", "--json").record
    assert set(record) == documented("finetune") and record["pushed"] == "https://hub/me/tuned"
    assert fake.uploaded == {path.name: path.read_bytes() for path in out.iterdir()}
    plan = plan_of(out)
    assert plan.widths == list(plan.widths_before) == [48] * 3 and plan.keep == 1
    assert plan.settings["training"]["steps"] == 3 and plan.settings["training"]["teacher"] == str(model)
    assert plan.provenance["training"] == record["data"] and plan.provenance["command"] == record["command"]
    assert plan.provenance["model"]["source"] == str(model) and "plan" not in plan.provenance
    card = card_of(out)
    assert ModelCard(card).data.tags == ["lmprune"] and f"# {model.name}, fine-tuned" in card
    assert f"Trained for 3 steps on `{text}`" in card and f", distilled from `{model.name}` (" in card
    assert "Nothing was cut out of it" in card and "neurons were chosen" not in card and "Method" not in card
    assert "This is" in card and "trained for 3 steps on" in lmprune("inspect", out).out


def test_finetune_of_a_pruned_model_tells_both(trained: Path, other_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert lmprune("finetune", trained, "--data", other_text, *SHORT, "--steps", 2, "--out", out).code == 0
    before, plan = plan_of(trained), plan_of(out)
    assert plan.kept == before.kept and plan.provenance["plan"] == before.record()
    assert plan.settings["training"]["steps"] == 2 and before.settings["training"]["steps"] == 12
    assert plan.provenance["training"]["source"] == str(other_text)
    assert plan.provenance["model"]["source"] == str(trained)
    assert plan.first_source() == before.provenance["model"]["source"]
    card = card_of(out)
    assert "fine-tuned by lmprune for 2 steps" in card and "Its neurons were chosen before: Method `gum`" in card
    assert "Trained for 2 steps" in card and ", trained for 12 steps on" in card
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((trained / "config.json").read_text())


def test_a_plan_of_other_widths_in_the_folder_is_left_aside(model: Path, text: Path, tmp_path: Path) -> None:
    from shutil import copytree

    folder = copytree(model, tmp_path / "m")
    (folder / PLAN_FILE).write_text(PrunePlan.of_neurons(((0,),), (4,), {"method": "obs"}).to_json())
    shown = lmprune("finetune", folder, "--data", text, *SHORT, "--steps", 2, "--out", tmp_path / "o")
    assert "is of a model with other widths, and left aside" in shown.err
    assert plan_of(tmp_path / "o").keep == 1


def test_pruning_a_pruned_model_tells_of_the_first(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    how = ("--method", "magnitude", "--keep", 0.5, "--multiple-of", 8)
    assert lmprune("prune", trained, *how, "--out", out).code == 0
    plan = plan_of(out)
    assert plan.provenance["model"]["record"] == plan_of(trained).record() and "training" not in plan.settings
    assert "is itself lmprune's: Method `gum`" in card_of(out) and "Trained for" not in card_of(out)


def test_what_a_later_version_wrote_is_kept_and_said(model: Path, text: Path, tmp_path: Path) -> None:
    out, again, tuned = (tmp_path / name for name in ("o", "again", "tuned"))
    how = ("--method", "magnitude", "--keep", 0.5, "--multiple-of", 8)
    assert lmprune("prune", model, *how, "--out", out).code == 0
    written: dict[str, Any] = json.loads((out / PLAN_FILE).read_text())
    (out / PLAN_FILE).write_text(json.dumps(written | {"heads": [[0, 1]]}))
    assert plan_of(out).unknown == {"heads": [[0, 1]]} and json.loads(plan_of(out).to_json())["heads"] == [[0, 1]]
    said = "the plan says more than this lmprune understands, which is kept and not acted on: heads"
    shown = lmprune("prune", model, "--plan", out / PLAN_FILE, "--out", again)
    assert shown.code == 0 and said in " ".join(shown.err.split())
    assert plan_of(again).provenance["plan"]["heads"] == [[0, 1]]
    shown = lmprune("finetune", out, "--data", text, *SHORT, "--steps", 2, "--out", tuned)
    assert said in " ".join(shown.err.split()) and plan_of(tuned).unknown == {"heads": [[0, 1]]}
    assert said in " ".join(lmprune("inspect", out).err.split()) and find_plan(str(out)) is not None
