"""`prune --recover N`: passes over the calibration text after the cut, towards what the dense model predicts there."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import exact_model, exactly
from test_bad_input import refused
from tiny_checkpoints import TEXT, lmprune, tiny_checkpoint
from tiny_models import VOCABULARY, tiny_model

import lmprune as library
from lmprune.checkpoints import models
from lmprune.errors import UserError
from lmprune.jobs import passes as job
from lmprune.jobs.needs import Needs
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.find import find_sites
from lmprune.solve import memory
from lmprune.solve.duration import Pace, Work, recovery
from lmprune.solve.memory import Held, Memory, Shape
from lmprune.training.passes import RATE, settings_of, towards

CUT = ("--calibration-tokens", 4096, "--seq-len", 64, "--multiple-of", 4, "--keep", 0.34, "--answer-tokens", 0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A tiny model that has learned something of the text, so that there is something to lose."""
    raw, out = (tmp_path_factory.mktemp(name) / "model" for name in ("raw", "taught"))
    tiny_checkpoint(raw)
    quick = ("--steps", 60, "--lr", 5e-3, "--seq-len", 64, "--batch-size", 4)
    record = lmprune("finetune", raw, "--data", text, *quick, "--out", out, "--json").record
    assert record["training"]["last_loss"] < record["training"]["first_loss"] - 1
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT * 2)
    return file


def pruned(model: Path, text: Path, out: Path, *options: object) -> dict[str, Any]:
    return lmprune("prune", model, "--data", text, *CUT, *options, "--out", out, "--json").record


# -- what it computes


def by_hand(dense: Any, model: Any, rows: list[list[int]], steps: list[list[int]]) -> None:
    """AdamW on KL(dense ‖ model), a mean over all tokens but the last of each sequence, gradients clipped to 1."""
    decays = [p for name, p in model.named_parameters() if p.ndim > 1 and "ln" not in name]
    others = [p for p in model.parameters() if not any(p is d for d in decays)]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-8)
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * number / len(steps)))
        ids = torch.tensor([rows[row] for row in step])
        p, q = (m(ids).logits[:, :-1].softmax(-1) for m in (dense, model.train()))
        (p.detach() * (p.detach() / q).log()).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("wrong", [None, "rate", "teacher"])
def test_a_pass_is_the_one_written_out(monkeypatch: pytest.MonkeyPatch, wrong: str | None):
    """Twenty-four sequences, three steps of eight; which ones go first is the Trainer's draw, so it is listened to."""
    with exactly():
        dense, model, hand = exact_model(seed=1).eval(), exact_model(), exact_model()
        rows = torch.randint(VOCABULARY, (24, 12), generator=torch.Generator().manual_seed(3))
        seen: list[int] = []
        plain = dense.forward

        def listening(**inputs: Any) -> Any:
            seen.extend(int((rows == row).all(1).nonzero()) for row in inputs["input_ids"])
            return plain(**inputs)

        monkeypatch.setattr(dense, "forward", listening)
        monkeypatch.setattr("lmprune.training.passes.RATE", RATE * (1.01 if wrong == "rate" else 1))
        found = towards(dense, model, rows)
        assert sorted(seen) == [*range(24)] and len(found.log) == 3
        monkeypatch.undo()
        teacher = exact_model(seed=2 if wrong == "teacher" else 1).eval()
        by_hand(teacher, hand, rows.tolist(), [seen[:8], seen[8:16], seen[16:]])
        assert not model.training and all(p.grad is None for p in model.parameters())
    far = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), hand.parameters(), strict=True))
    assert (far < 1e-9) if wrong is None else (far > 1e-7)


@pytest.mark.parametrize(("sequences", "passes", "steps"), [(128, 1, 16), (32, 3, 12), (9, 1, 2), (4, 2, 2), (1, 1, 1)])
def test_steps_go_over_the_text_so_often(sequences: int, passes: int, steps: int):
    settings = settings_of(sequences, passes)
    assert settings.steps == steps and settings.batch_size * settings.grad_accum <= min(8, sequences)
    assert settings.lr == 3e-4 and settings.warmup == 0  # one step of a handful would learn nothing
    assert settings_of(128, 2).warmup == 0.1
    for wrong in ((0, 1), (8, 0)):
        with pytest.raises(UserError, match="at least"):
            settings_of(*wrong)


@pytest.mark.parametrize(("sequences", "passes"), [(15, 1), (9, 4), (3, 2), (1, 2)])
def test_a_pass_reads_every_sequence_once(sequences: int, passes: int, monkeypatch: pytest.MonkeyPatch):
    dense, rows = tiny_model("llama"), torch.arange(1, 1 + sequences)[:, None].expand(sequences, 12)
    seen, plain = list[int](), dense.forward

    def listening(**inputs: Any) -> Any:
        seen.extend(inputs["input_ids"][:, 0].tolist())
        return plain(**inputs)

    monkeypatch.setattr(dense, "forward", listening)
    towards(dense, tiny_model("llama", seed=1), rows, passes)
    assert sorted(seen) == sorted([*range(1, 1 + sequences)] * passes)


def test_both_models_are_as_they_were_but_for_the_weights():
    dense, model = tiny_model("llama"), tiny_model("llama", seed=1)
    model.model.embed_tokens.requires_grad_(False)
    before, theirs = copy.deepcopy(model.state_dict()), copy.deepcopy(dense.state_dict())
    towards(dense, model, torch.randint(VOCABULARY, (8, 16)))
    assert all(p.requires_grad for p in dense.parameters()) and not model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    assert all(torch.equal(theirs[name], value) for name, value in dense.state_dict().items())
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_can_not_be_trained_is_said(tmp_path: Path):
    model = tiny_model("llama").half()
    with pytest.raises(UserError, match="weights in float16 can't be trained"):
        towards(tiny_model("llama"), model, torch.zeros(8, 8, dtype=torch.long))


# -- the command


def distance(dense: Path, model: Path, text: Path) -> float:
    ids = library.load_tokenizer(str(dense))(text.read_text(), return_tensors="pt").input_ids[:, -2048:].view(32, 64)
    with torch.no_grad():
        p, q = (models.load(str(m), dtype="float32")(ids).logits.log_softmax(-1) for m in (dense, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("how", [(), ("--method", "magnitude"), ("--budget", "dp", "--units", "neurons,heads")])
def test_what_is_left_predicts_more_as_the_dense_model_does(taught: Path, text: Path, tmp_path: Path, how: tuple[str]):
    alone = pruned(taught, text, tmp_path / "alone", *how)
    record = pruned(taught, text, tmp_path / "more", *how, "--recover", 2)
    training = record["training"]
    assert training["steps"] == 16 and training["lr"] == RATE and training["last_loss"] < training["first_loss"]
    assert "training" not in alone and record["params_after"] == alone["params_after"]
    near, far = (distance(taught, tmp_path / name, text) for name in ("more", "alone"))
    assert near < 0.9 * far
    plans = [PrunePlan.load(tmp_path / name / PLAN_FILE) for name in ("alone", "more")]
    assert all(torch.equal(a, b) for a, b in zip(*(plan.indices() for plan in plans), strict=True))
    assert plans[1].settings["training"]["teacher"] == str(taught)
    log = [json.loads(line) for line in (tmp_path / "more" / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [*range(1, 17)]
    card = (tmp_path / "more" / "README.md").read_text()
    assert "and fine-tuned afterwards for 16 steps" in card and "distilled from" in card
    assert "without any training afterwards" in (tmp_path / "alone" / "README.md").read_text()


def test_it_is_the_same_again_and_a_plan_can_be_recovered_too(taught: Path, text: Path, tmp_path: Path):
    first = pruned(taught, text, tmp_path / "a", "--recover", 1)
    assert first["command"][-2:] != ["--recover", "0"] and "--recover" in first["command"]
    pruned(taught, text, tmp_path / "b", "--recover", 1)
    pruned(taught, text, tmp_path / "alone")
    by_plan = ("--calibration-tokens", 4096, "--seq-len", 64, "--answer-tokens", 0, "--recover", 1, "--json")
    plan = ("--plan", tmp_path / "alone" / PLAN_FILE)
    assert lmprune("prune", taught, "--data", text, *plan, *by_plan, "--out", tmp_path / "c").code == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and len(a) == len(c)
    assert distance(taught, tmp_path / "c", text) < distance(taught, tmp_path / "alone", text)


def test_people_see_the_passes(taught: Path, text: Path, tmp_path: Path):
    shown = lmprune("prune", taught, "--data", text, *CUT, "--recover", 1, "--out", tmp_path / "o")
    assert "trained for 8 steps: loss" in shown.out
    assert "trained for 8 steps on" in lmprune("inspect", tmp_path / "o").out


def test_the_dry_run_counts_them(taught: Path, text: Path, tmp_path: Path):
    args = ("prune", taught, "--data", text, *CUT, "--out", tmp_path / "o", "--dry-run", "--json")
    alone, more = lmprune(*args).record, lmprune(*args, "--recover", 3).record
    assert set(more["ways"]) == {"whole"} and set(alone["ways"]) == {"whole", "streamed"}
    assert more["ways"]["whole"]["seconds"] > alone["ways"]["whole"]["seconds"]
    pace = Pace(blocks=1.0, forward=2.0, backward=5.0, single=0.0, double=0.0)
    assert recovery(pace, 10, 0) == [] and [phase.seconds for phase in recovery(pace, 10, 3)] == [270.0]


def test_the_memory_told_is_that_of_a_training_beside_the_dense_model():
    model, vocabulary = tiny_model("llama"), 1000
    sites = find_sites(model, ["neurons"])
    shape = replace(Shape.of(model, sites, number=4, streamed=False), vocabulary=vocabulary)
    before = sum(p.numel() for p in model.parameters())
    after, work = before // 2, Work(sites, 4096, 64, 0.5, "local")
    alone, more = (Needs(1e6, shape, 4, before, after, Memory.of(Held(10.0)), work, passes) for passes in (False, True))
    assert alone.peak is not None and more.peak is not None and more.peak > alone.peak
    trained = 4 * 4 * after + 4 * 128 * vocabulary * 4  # weights, gradients, two averages; logits
    assert more.peak == 1e6 + 4 * before + memory.recovery(shape, after, 64)
    assert trained < memory.recovery(shape, after, 64) < 2 * trained


def test_a_time_budget_has_them_in_it(taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pace = Pace(blocks=1e-4, forward=1e-3, backward=2e-3, single=1e-12, double=1e-12)
    monkeypatch.setattr("lmprune.jobs.timing.measure", lambda *_args, **_how: pace)
    read = {}
    for passes in (0, 8):
        out, how = tmp_path / f"{passes}", ("--time-budget", "20s", "--recover", passes)
        read[passes] = pruned(taught, text, out, *how)["estimated_seconds"], PrunePlan.load(out / PLAN_FILE).settings
    assert read[0][1]["calibration_tokens"] == 4096 > read[8][1]["calibration_tokens"] >= 64
    assert read[8][0] <= 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--steps", 80), "drop --recover, or the options of a training"),
        (("--max-ppl-ratio", 1.2), "--max-ppl-ratio judges models as they are cut"),
        (("--stream",), "--recover trains the whole model, and --stream leaves it in its files"),
        (("--max-memory", "4GB"), "--recover trains the whole model, and --stream leaves it in its files"),
        (("--dtype", "float16"), "drop --recover, or --dtype float16"),
        (("--recover", -1), "Invalid value for '--recover'"),
    ],
)
def test_what_does_not_go_with_passes(taught: Path, text: Path, tmp_path: Path, options: tuple[str], sentence: str):
    out = tmp_path / "out"
    cut = CUT[:6] if "--max-ppl-ratio" in options else CUT
    shown = lmprune("prune", taught, "--data", text, *cut, "--recover", 1, *options, "--out", out)
    assert shown.code == 2 and sentence in shown.err.replace("\n", " ") and not out.exists()


def test_where_no_training_runs_is_said_before_the_cut(monkeypatch: pytest.MonkeyPatch):
    """Not after it, with all that it took."""

    def elsewhere(model: Any) -> None:
        raise UserError("a training runs on cuda:0, and the model is on cuda:1")

    monkeypatch.setattr("lmprune.training.train.check_place", elsewhere)
    with pytest.raises(UserError, match="a training runs on cuda:0"):
        job.dense_copy(1, tiny_model("llama"))
    assert job.dense_copy(0, tiny_model("llama")) is None


def test_several_processes_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--recover trains in one process"):
        job.check_passes({"recover": 1, "max_ppl_ratio": None, "stream": False, "dtype": "float32"}, None)


def test_text_that_is_too_short(taught: Path, tmp_path: Path):
    short = tmp_path / "short.txt"
    short.write_text("The cat.")
    assert "tokens" in refused("prune", taught, "--data", short, *CUT, "--recover", 1, "--out", tmp_path / "o")
