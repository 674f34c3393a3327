"""`--fsdp`: a training whose weights are spread over 2 or 4 processes is the one of a single process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import refused
from test_several_processes import command, environment, on_two, one_of_two, outcome, pairs, same_weights
from tiny_checkpoints import TEXT, lmprune, tiny_checkpoint
from tiny_models import tiny_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lmprune.checkpoints import models
from lmprune.errors import UserError
from lmprune.gradual import GradualPruner, similarity
from lmprune.training import callbacks
from lmprune.training.run_folder import MARK
from lmprune.training.settings import TrainSettings
from lmprune.training.train import train

QUICK = ("--multiple-of", 1, "--seq-len", 32, "--steps", 12)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("teacher") / "llama", seed=1)


def one_that_weighs(
    args: list[object], rank: int, port: int, answer: Any, die_after: int | None, number: int = 2
) -> None:  # fmt: skip
    """Answers with the share of the model's numbers that this process has while it trains."""
    shares: list[float] = []

    def weigh(_self: Any, _args: Any, _state: Any, _control: Any, model: Any = None, **_how: Any) -> None:
        parameters = list(model.parameters())
        assert isinstance(model, FSDPModule) and all(isinstance(p, DTensor) for p in parameters)
        own = sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))
        shares.append(own / sum(p.numel() for p in parameters))

    callbacks.Log.on_pre_optimizer_step = weigh  # type: ignore[method-assign]

    class Both:
        def send(self, found: Any) -> None:
            answer.send((found, shares))

    one_of_two(args, rank, port, Both(), die_after, number)


@pytest.mark.parametrize(
    ("number", "batch", "accum"), [(2, 1, 2), pytest.param(4, 1, 1, marks=pytest.mark.conformance)]
)
def test_two_and_four_processes_prune_as_one_does(
    number: int,
    batch: int,
    accum: int,
    model: Path,
    text: Path,
    teacher: Path,
    forks: Any,
    tmp_path: Path,
) -> None:
    assert lmprune(*command(model, text, teacher, tmp_path / "one", 4, 1)).code == 0
    spread = [*command(model, text, teacher, tmp_path / "spread", batch, accum), "--fsdp", "--json"]
    found = on_two(forks, spread, partial(one_that_weighs, number=number), number=number)
    assert [each.code for each, _ in found] == [0] * number, [each.err for each, _ in found]
    assert all(share == pytest.approx(1 / number, rel=0.1) for _, shares in found for share in shares)
    assert len(found[0][1]) == 12 and found[1][0].out == ""
    assert outcome(tmp_path / "spread")[0] == outcome(tmp_path / "one")[0]
    assert outcome(tmp_path / "spread")[1] == pytest.approx(outcome(tmp_path / "one")[1], rel=2e-4)
    same_weights(tmp_path / "one", tmp_path / "spread")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model whose embeddings are its output matrix."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tied") / "qwen2", "qwen2", tie_word_embeddings=True)


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("prune", ("--method", "soft", "--keep", 0.5, *QUICK, "--compute", "full", "--gradient-checkpointing")),
        ("prune", ("--method", "magnitude", "--keep", 0.5, *QUICK)),
        ("prune", ("--method", "obs", "--schedule", "oneshot", "--keep", 0.5, *QUICK)),
        ("finetune", ("--seq-len", 32, "--steps", 6, "--bf16")),
    ],
)  # fmt: skip
def test_every_way_to_train(
    verb: str,
    options: tuple[object, ...],
    tied: Path,
    text: Path,
    forks: Any,
    tmp_path: Path,
) -> None:
    line = [verb, tied, "--data", text, *options]
    usual = [*line, "--batch-size", 2, "--out", tmp_path / "usual"]
    spread = [*line, "--batch-size", 2, "--out", tmp_path / "spread", "--fsdp"]
    assert [each.code for each in on_two(forks, usual)] == [0, 0]
    found = on_two(forks, spread, one_that_weighs)
    assert [each.code for each, _ in found] == [0, 0], [each.err for each, _ in found]
    assert found[0][1], "it was spread"
    kept, values = outcome(tmp_path / "usual")
    assert outcome(tmp_path / "spread") == (kept, pytest.approx(values, rel=2e-4))
    same_weights(tmp_path / "usual", tmp_path / "spread")
    whole = models.load(tmp_path / "spread")
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight


@pytest.mark.conformance
def test_other_processes_go_on_where_some_were_killed(
    model: Path,
    text: Path,
    teacher: Path,
    forks: Any,
    tmp_path: Path,
) -> None:
    """Of 2 processes, on 2 to the same bits, and on 4 to the same as far as rounding goes."""

    def line(out: str, batch: int) -> list[object]:
        return [*command(model, text, teacher, tmp_path / out, batch, 1), "--save-every", 4, "--fsdp"]

    four = partial(one_of_two, number=4)
    assert [each.code for each in on_two(forks, line("whole", 2))] == [0, 0]
    for out in ("two", "four"):
        assert on_two(forks, line(out, 2), die_after=7) == []
        state = tmp_path / f"{out}.training" / "checkpoint-4"
        assert (state / MARK).exists()
        shares = [file.stat().st_size for file in sorted((state / "optimizer_0").glob("__*.distcp"))]
        assert len(shares) == 2 and max(shares) < 0.65 * sum(shares), "each saves what it has"
    other = on_two(forks, [*line("four", 2), "--resume"], four, number=4)
    assert [each.code for each in other] == [2] * 4
    assert "had other settings: sequences-a-step (was 4, is now 8)" in other[0].err
    assert [each.code for each in on_two(forks, [*line("two", 2), "--resume"])] == [0, 0]
    found = on_two(forks, [*line("four", 1), "--resume"], four, number=4)
    assert [each.code for each in found] == [0] * 4, [each.err for each in found]
    kept, values = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "two") == (kept, values)
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "two")]
    assert weights[0] == weights[1]
    assert outcome(tmp_path / "four") == (kept, pytest.approx(values, rel=2e-4))
    same_weights(tmp_path / "whole", tmp_path / "four")


@pytest.mark.conformance
def test_recovery_ends_with_the_best_weights(model: Path, teacher: Path, forks: Any, tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(TEXT)
    line = ["recover", model, "--teacher", teacher, "--data", tmp_path / "cats.txt", "--holdout", 0.2, "--steps", 6,
            "--seq-len", 32, "--train-tokens", 4096, "--eval-every", 2, "--grad-accum", 1, "--lr", 1e-2]  # fmt: skip
    one = lmprune(*line, "--batch-size", 4, "--out", tmp_path / "one", "--json").record["training"]
    found = on_two(forks, [*line, "--batch-size", 2, "--out", tmp_path / "two", "--fsdp", "--json"])
    assert [each.code for each in found] == [0, 0], [each.err for each in found]
    two = found[0].record["training"]
    assert one["best_step"] == two["best_step"] and one["kl"] == pytest.approx(two["kl"], rel=2e-4)
    same_weights(tmp_path / "one", tmp_path / "two")


def test_rows_are_dealt_out_by_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes saw rows 0 to 9 in turn, of which each has the newest 4; three go on, with 3 each."""
    pruner = GradualPruner(tiny_model("llama"), method="gum", keep=0.5, num_steps=12)
    estimate = pruner.estimate
    assert estimate is not None
    estimate.max_rows = 8
    states = []
    for process in (0, 1):
        monkeypatch.setattr(similarity, "_num_processes", lambda: 2)
        state = estimate.state()
        for layer in range(len(estimate.masks)):
            rows = similarity.Rows(4, 1, torch.device("cpu"))
            rows.add(torch.arange(process, 10, 2.0)[:, None])
            state |= {f"{layer}.rows": rows.seen.clone(), f"{layer}.next": torch.tensor(rows.next)}
        states.append(state)
    assert states[0]["0.rows"].flatten().tolist() == [8, 2, 4, 6], "the oldest is in the middle"
    monkeypatch.setattr(similarity, "_num_processes", lambda: 3)
    dealt = [estimate.dealt(states, mine) for mine in range(3)]
    assert [each["1.rows"].flatten().tolist() for each in dealt] == [[2, 5, 8], [3, 6, 9], [4, 7]]
    assert [int(each["1.next"]) for each in dealt] == [0, 0, 2], "where the next row goes: the oldest's place"


def test_what_cant_be_spread(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(*options: object) -> str:
        return refused("prune", model, "--data", text, "--keep", 0.5, "--steps", 12, "--out", tmp_path / "o", *options)

    assert "this is one; start it with torchrun" in why("--method", "gum", "--fsdp")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "leave out one of the two" in why("--method", "gum", "--fsdp", "--lora-rank", 4)
    assert "method 'obs' prunes copies of the whole model" in why("--method", "obs", "--fsdp")
    assert "--warm-start prunes copies of the whole model" in why("--method", "gum", "--fsdp", "--warm-start")
    with monkeypatch.context() as patch:
        patch.setattr("lmprune.jobs.training_checks.version", {"accelerate": "1.14.2"}.__getitem__)
        assert "needs accelerate 1.15 or newer, and this is 1.14.2" in why("--method", "gum", "--fsdp")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "say --fsdp" in why("--method", "gum")
    assert [*tmp_path.iterdir()] == []


def test_learned_scores_want_float32(model: Path, text: Path, forks: Any, tmp_path: Path) -> None:
    line = ["prune", model, "--data", text, "--method", "gum", "--keep", 0.5, *QUICK, "--fsdp", "--dtype", "bfloat16"]
    found = on_two(forks, [*line, "--out", tmp_path / "o"])
    assert [each.code for each in found] == [2, 2]
    assert "learned scores are in float32, the weights in torch.bfloat16; take --dtype float32" in found[0].err
    assert [*tmp_path.iterdir()] == []


def test_spread_where_there_is_no_training_to_spread() -> None:
    batch = [{"input_ids": list(range(16))}] * 4
    with pytest.raises(UserError, match="and this is one; start it with torchrun"):
        train(tiny_model("llama"), batch, TrainSettings(steps=1, fsdp=True))


def accelerators_elsewhere(_what: Any, rank: int, port: int, answer: Any, _die: None) -> None:
    """As if there were accelerators, and the training asked to be on the processor."""
    os.environ.update(environment(rank, port))
    torch.accelerator.is_available = lambda: True  # type: ignore[method-assign]
    torch.accelerator.current_accelerator = lambda: torch.device("cuda")  # type: ignore[assignment]
    try:
        train(tiny_model("llama"), [{"input_ids": list(range(16))}] * 8, TrainSettings(steps=1, fsdp=True))
    except UserError as error:
        answer.send(str(error))


def test_a_training_on_processors_beside_accelerators(forks: Any) -> None:
    found = on_two(forks, None, accelerators_elsewhere)
    assert len(found) == 2 and all("use --device cuda, or leave --fsdp out" in each for each in found)
