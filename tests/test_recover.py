"""Recovery: a training that ends when held-out text or the clock says so, and gives the best there was on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_bad_input import refused
from tiny_checkpoints import TEXT, documented, lmprune, tiny_checkpoint
from tiny_models import tiny_model
from torch.nn import functional

from lmprune.checkpoints import models
from lmprune.errors import UserError
from lmprune.jobs import recovery
from lmprune.jobs.recovery import steps_before, timetable
from lmprune.jobs.train import Prepared
from lmprune.training import callbacks
from lmprune.training.early_stop import EarlyStop, divergence_of, seconds_of_a_step
from lmprune.training.run_folder import MARK
from lmprune.training.settings import TrainSettings
from lmprune.training.teachers import OnlineTeacher
from lmprune.training.train import train
from lmprune.training.trainer import collate

QUICK = ("--seq-len", 64, "--train-tokens", 8192, "--batch-size", 4, "--grad-accum", 1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of text with both splits."""
    folder = tmp_path_factory.mktemp("texts")
    for split, number in (("train", 3), ("validation", 4)):
        (folder / f"cats.{split}.txt").write_text(TEXT.replace("cat", "dog" * (number - 2)) * 2)
        (folder / f"sums.{split}.txt").write_text("".join(f"{i} + {number} = {i + number}\n" for i in range(2000)))
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A tiny dense model that has learned something of the texts, so that there is something to lose."""
    raw, out = (tmp_path_factory.mktemp(name) / "model" for name in ("raw", "taught"))
    tiny_checkpoint(raw)
    quick = ("--steps", 60, "--lr", 5e-3, *QUICK)
    record = lmprune("finetune", raw, "--data", "mix", "--data-dir", texts, *quick, "--out", out, "--json").record
    assert record["training"]["last_loss"] < record["training"]["first_loss"] - 1
    return out


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, taught: Path, texts: Path) -> Path:
    out = tmp_path_factory.mktemp("cut") / "model"
    asked = ("--method", "magnitude", "--keep", 0.34, "--multiple-of", 1)
    assert lmprune("prune", taught, *asked, "--out", out).code == 0
    return out


def recovered(cut: Path, out: Path, texts: Path, taught: Path, *options: object) -> dict[str, Any]:
    asked = ("recover", cut, "--teacher", taught, "--data-dir", texts, "--out", out, *QUICK, *options, "--json")
    return lmprune(*asked).record


def ratio(model: Path, taught: Path, texts: Path) -> float:
    asked = ("eval", model, "--texts", "--data-dir", texts, "--max-tokens", 1024, "--context", 64)
    return lmprune(*asked, "--baseline", taught, "--json").record["mean_log_ratio"]


def test_a_pruned_model_comes_nearer_to_its_teacher(cut: Path, texts: Path, taught: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = recovered(cut, out, texts, taught, "--steps", 40, "--lr", 2e-3)
    training = record["training"]
    assert set(record) == documented("recover")
    assert training["kl"] < 0.5 * training["first_kl"] and training["ended_by"] == "the last step"
    assert training["decay"] == "cosine" and training["steps_done"] == 40
    assert ratio(out, taught, texts) < 0.5 * ratio(cut, taught, texts)
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["kl"] for line in log if "kl" in line}
    assert list(measured) == list(range(0, 41, 4)) and measured[training["best_step"]] == training["kl"]
    card = (out / "README.md").read_text()
    assert "distilled from" in card and "lmprune recover" in card


def test_it_stops_where_held_out_text_gets_no_better_and_keeps_the_best(
    cut: Path, texts: Path, taught: Path, tmp_path: Path
) -> None:
    """A rate that destroys the model: what comes out is the model as it went in, after `patience` measurements."""
    out = tmp_path / "out"
    options = ("--steps", 40, "--lr", 3.0, "--eval-every", 2, "--patience", 2)
    training = recovered(cut, out, texts, taught, *options)["training"]
    assert training["ended_by"] == "no better on held-out text" and training["steps_done"] == 4
    assert training["best_step"] == 0 and training["kl"] == training["first_kl"]
    before, after = (models.load(str(path)).state_dict() for path in (cut, out))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_minutes_become_steps_and_end_the_run(cut: Path, texts: Path, taught: Path, tmp_path: Path) -> None:
    training = recovered(cut, tmp_path / "out", texts, taught, "--minutes", 0.05)["training"]
    assert training["steps"] > 3  # of 3 seconds, at a few milliseconds a step
    clock = recovered(cut, tmp_path / "two", texts, taught, "--steps", 10_000, "--minutes", 0.02)["training"]
    assert clock["ended_by"] == "the time" and 0 < clock["steps_done"] < 10_000 and clock["steps"] == 10_000


@pytest.mark.parametrize("judging", [0.01, 3, 40, 400])
@pytest.mark.parametrize("every", [None, 5])
def test_steps_and_held_out_text_go_into_the_minutes(judging: float, every: int | None) -> None:
    """Up to the last step, whose rate is the lowest, or else a run would end while its rate is high."""
    steps, every_so_many = timetable(1000, 10, judging, every)
    readings = 1 + -(-steps // every_so_many)
    taken = 10 * steps + judging * readings
    assert every in (None, every_so_many) and steps >= 1 and (taken <= 950 or steps == 1)
    assert readings <= 11 if every is None else taken > 750
    if every is None and judging < 40:
        assert judging * readings <= 0.2 * 1000 and taken > 800


def test_a_resumed_run_has_the_steps_it_had(tmp_path: Path) -> None:
    file = tmp_path / "steps"
    for said, found in (("12 3", (12, 3)), ("1 1", (1, 1))):
        file.write_text(said)
        assert steps_before(file) == found
    for damaged in ("", "12", "12 0", "12 x", "12 3 4", "-1 3", "99999999999 1"):
        file.write_text(damaged)
        with pytest.raises(UserError, match="is damaged: it holds no number of steps; throw the run away"):
            steps_before(file)


@pytest.mark.parametrize(
    ("options", "lr"), [((99,), 1e-4), ((100,), 3e-4), ((100, "--lr", 2e-4), 2e-4), ((20, "--lora-rank", 2), 1e-3)]
)
def test_a_short_run_has_a_lower_rate(
    cut: Path, texts: Path, taught: Path, tmp_path: Path, options: Sequence[object], lr: float
) -> None:
    training = recovered(cut, tmp_path / "out", texts, taught, "--minutes", 0.01, "--steps", *options)["training"]
    assert training["lr"] == lr


@pytest.mark.conformance
def test_lora_recovers_too(cut: Path, texts: Path, taught: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = ("--steps", 20, "--lr", 1e-2, "--lora-rank", 4)
    training = recovered(cut, tmp_path / "out", texts, taught, *options)["training"]
    assert training["kl"] < training["first_kl"]
    assert ratio(tmp_path / "out", taught, texts) < ratio(cut, taught, texts)


def test_the_divergence_is_that_of_the_two_models_predictions() -> None:
    student, dense = tiny_model("llama"), tiny_model("llama", seed=1)
    rows = [torch.arange(5) + 3, torch.arange(9)]
    found = divergence_of(student, OnlineTeacher(dense, student, 1.0), [collate([{"input_ids": row} for row in rows])])
    expected = []
    for row in rows:
        with torch.no_grad():
            p, q = (m.eval()(row[None]).logits[0, :-1].log_softmax(-1) for m in (dense, student))
        expected += functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).tolist()
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5) and found > 0
    assert divergence_of(student, OnlineTeacher(student, student, 1.0), [collate([{"input_ids": rows[0]}])]) < 1e-6


@pytest.mark.parametrize(("kl_weight", "bf16"), [(1.0, False), (0.5, True)])
def test_timing_leaves_the_model_as_it_is(kl_weight: float, bf16: bool) -> None:
    model = tiny_model("llama")
    teacher = OnlineTeacher(tiny_model("llama", seed=1), model, 2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seconds = seconds_of_a_step(
        model, teacher, collate([{"input_ids": torch.arange(9)}]), 4, kl_weight=kl_weight, bf16=bf16
    )
    assert seconds > 0 and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cosine_falls_as_a_cosine(tmp_path: Path) -> None:
    examples = [{"input_ids": torch.arange(8)}] * 4
    settings = TrainSettings(steps=8, lr=1.0e-3, warmup=0, batch_size=1, decay="cosine")
    rates = [line["lr"] for line in train(tiny_model("llama"), examples, settings).log]
    assert rates[4] == pytest.approx(0.5e-3, rel=0.4) and rates[-1] < 0.1e-3
    linear = [
        line["lr"] for line in train(tiny_model("llama"), examples, TrainSettings(8, 1e-3, warmup=0, batch_size=1)).log
    ]
    assert rates[1] > linear[1] and rates[-2] < linear[-2]
    with pytest.raises(UserError, match="unknown decay 'step'; known: linear, cosine"):
        TrainSettings(steps=1, decay="step")


def test_a_better_state_of_a_run_that_was_resumed_does_not_count_against_it(tmp_path: Path) -> None:
    model = tiny_model("llama")
    teacher = OnlineTeacher(tiny_model("llama", seed=1), model, 1.0)
    batches = [collate([{"input_ids": torch.arange(9)}])]
    stop = EarlyStop(teacher, batches, every=1, patience=1, minutes=None, folder=tmp_path)
    stop._measure(model, 5)
    again = EarlyStop(teacher, batches, every=1, patience=1, minutes=None, folder=tmp_path)
    again._measure(model, 4)  # as near, and before: the run that made the other went no further
    assert again._worse == 0 and again.best is not None and again.best[1] == 4
    again._measure(model, 5)
    assert again._worse == 1 and again.best[1] == 4


def test_a_resumed_run_that_ends_early_has_done_the_steps_that_its_weights_had(tmp_path: Path) -> None:
    """Killed after step 7, whose weights are the best; taken up at step 4, and out of time at step 5."""
    stop = EarlyStop(OnlineTeacher(tiny_model("llama"), tiny_model("llama"), 1.0), [], every=1, patience=3, minutes=1,
                     folder=tmp_path)  # fmt: skip
    save_file({"w": torch.zeros(1)}, stop.file, {"lmprune": json.dumps({"kl": 0.25, "step": 7})})
    log = [{"step": 0, "kl": 0.5}, {"step": 4, "kl": 0.375}, {"step": 5, "loss": 1.0, "kl": 0.375}]
    told = recovery._told(Prepared([], TrainSettings(steps=9), None, [], stop), log)
    assert told["kl"] == 0.25 and told["best_step"] == told["steps_done"] == 7
    assert recovery._told(Prepared([], TrainSettings(9), None, [], stop), [*log, {"step": 9}])["steps_done"] == 9


@pytest.mark.parametrize(
    ("measured", "worse"),
    [((0.42, 0.45, 0.44, 0.43, 0.40), 0), ((0.42, 0.45, 0.46, 0.47), 3), ((0.42, 0.45, 0.44, 0.44, 0.45), 2)],
)
def test_what_has_begun_to_fall_again_is_waited_for(tmp_path: Path, measured: Sequence[float], worse: int) -> None:
    """SmolLM2 at the top of a rate of 3e-4: worse than the model began, and nearer again with every step."""
    model = tiny_model("llama")
    stop = EarlyStop(OnlineTeacher(model, model, 1.0), [], every=1, patience=3, minutes=None, folder=tmp_path)
    better = [stop._is_better(found) for found in measured]
    assert stop._worse == worse
    assert better == [found < min(measured[:place], default=2.0) for place, found in enumerate(measured)]


@pytest.mark.parametrize("saved", [2, 3])
def test_a_resumed_run_is_as_patient_as_the_whole_one(cut: Path, taught: Path, texts: Path, tmp_path: Path, saved: int):
    """It ends after the same step, whatever it had measured when it was stopped."""
    options = ("--steps", 20, "--lr", 3.0, "--eval-every", 1, "--patience", 4, "--save-every", saved)
    whole, out = tmp_path / "whole", tmp_path / "o"
    training = recovered(cut, whole, texts, taught, *options)["training"]
    assert training["steps_done"] == 4

    def stopped(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (self.folder.path / f"checkpoint-{saved}" / MARK).exists():
            raise KeyError("killed")

    with pytest.MonkeyPatch.context() as dying, pytest.raises(KeyError):
        dying.setattr(callbacks.Log, "on_step_begin", stopped)
        recovered(cut, out, texts, taught, *options)
    again = recovered(cut, out, texts, taught, *options, "--resume")["training"]
    assert again["steps_done"] == 4 and again["best_step"] == training["best_step"]
    assert (out / "training_log.jsonl").read_text() == (whole / "training_log.jsonl").read_text()


def test_what_recover_refuses(cut: Path, texts: Path, taught: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def ask(*options: object, teacher: object = taught, folder: Path = texts) -> str:
        named = () if teacher is None else ("--teacher", teacher)
        sentence = refused("recover", cut, *named, "--data-dir", folder, "--out", out, *QUICK, *options)
        assert not out.exists() and not list(tmp_path.glob("*.training"))
        return sentence

    assert ask(teacher=None) == "name the dense model with --teacher: what it predicts is what is recovered"
    assert ask() == "say how long to recover, with --minutes, --steps or --epochs"
    assert ask("--minutes", 0) == "minutes must be above 0, got 0"
    assert ask("--minutes", "nan") == "minutes must be above 0, got nan"
    assert "recover asks the teacher about held-out text too" in ask("--steps", 1, teacher=tmp_path / "t.safetensors")
    assert ask("--steps", 1, "--decay", "step").startswith("unknown decay 'step'")
    assert "no KIND.train.txt" in ask("--steps", 1, folder=tmp_path)
    assert "has no validation split" in refused(
        "recover", cut, "--teacher", taught, "--data", texts / "cats.train.txt", "--steps", 1, "--out", out, *QUICK
    )
    stranger = tmp_path / "stranger"
    tiny_checkpoint(stranger)
    tokenizer = json.loads((stranger / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (stranger / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "the teacher has another tokenizer" in ask("--steps", 1, teacher=stranger)
