"""The same global batch on one process, in parts, or on two processes: the same neurons, and the same losses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_resume import run_and_die
from tiny_checkpoints import TEXT, as_many_threads, lmprune, tiny_checkpoint
from tiny_models import tiny_model, tokens
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lmprune.checkpoints import models
from lmprune.gradual import GradualPruner, GradualSettings, milestones
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.pruning import prune
from lmprune.training.run_folder import MARK
from lmprune.training.trainer import separate

STEPS = 12
GUM = ("--method", "gum", "--keep", 0.5, "--multiple-of", 1, "--steps", STEPS, "--seq-len", 32, "--eval-every", 6)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("pairs"))


def pairs(folder: Path) -> Path:
    """32 blocks, so that 4 at once come out even; of different lengths the counts of tokens would differ as well."""
    file = folder / "cats.jsonl"
    lines = [{"context": TEXT[i : i + 9], "completion": TEXT[i + 9 : i + 16 + i % 13]} for i in range(0, 1280, 40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("teacher") / "llama", seed=1)


def environment(rank: int, port: int, number: int = 2) -> dict[str, str]:
    """What torchrun tells each of two processes, or more."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, map(str, (rank, rank, number, number, "127.0.0.1", port)), strict=True))


def one_of_two(
    args: list[object], rank: int, port: int, answer: Any, die_after: int | None, number: int = 2
) -> None:  # fmt: skip
    os.environ.update(environment(rank, port, number))
    as_many_threads()
    if die_after is not None:
        run_and_die(args, "after", die_after)
    answer.send(lmprune(*args))


def on_two(forks: Any, what: Any, target: Any = one_of_two, die_after: int | None = None, number: int = 2) -> list[Any]:
    """What two processes answer, or more; one that was killed does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [forks.Pipe(duplex=False) for _ in range(number)]
    started = [
        forks.Process(target=target, args=(what, rank, port, pipes[rank][1], die_after)) for rank in range(number)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return [receiver.recv() for receiver, _ in pipes if receiver.poll()]


def outcome(out: Path) -> tuple[Any, list[float]]:
    lines = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    values = [line[key] for line in lines for key in ("loss", "penalty", "similarity", "perplexity") if key in line]
    return PrunePlan.load(out / PLAN_FILE).kept, values


def same_weights(one: Path, other: Path) -> None:
    first, second = (dict(models.load(out).named_parameters()) for out in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=2e-4)


def command(model: Path, text: Path, teacher: Path, out: Path, batch: int, accum: int) -> list[object]:
    sizes = ("--batch-size", batch, "--grad-accum", accum)
    return ["prune", model, "--data", text, "--teacher", teacher, *GUM, *sizes, "--out", out]


def test_one_process_in_parts_and_two_processes_agree(
    model: Path,
    text: Path,
    teacher: Path,
    forks: Any,
    tmp_path: Path,
) -> None:
    assert lmprune(*command(model, text, teacher, tmp_path / "whole", 4, 1)).code == 0
    assert lmprune(*command(model, text, teacher, tmp_path / "parts", 1, 4)).code == 0
    first, second = on_two(forks, [*command(model, text, teacher, tmp_path / "two", 2, 1), "--json"])
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    assert first.record["training"]["steps"] == STEPS and second.out == "", "only the first process speaks"
    kept, values = outcome(tmp_path / "whole")
    for name in ("parts", "two"):
        assert outcome(tmp_path / name)[0] == kept, name
        assert outcome(tmp_path / name)[1] == pytest.approx(values, rel=2e-4), name
        same_weights(tmp_path / "whole", tmp_path / name)
    assert lmprune(*command(model, text, teacher, tmp_path / "half", 2, 1)).code == 0
    assert outcome(tmp_path / "half")[1] != pytest.approx(values, rel=2e-4), "control: the batch matters"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "parts", "two", "whole"]


def one_of_two_that_differ(args: list[object], rank: int, port: int, answer: Any, _: None) -> None:
    """As if the second process's machine computed something else."""
    if rank == 1:
        milestones.prune = lambda *a, **how: prune(*a, **{**how, "data": how["data"] % 7})  # type: ignore[attr-defined]
    one_of_two(args, rank, port, answer, None)


def test_what_the_first_process_chooses_and_refits_is_done_on_all(
    model: Path, text: Path, forks: Any, tmp_path: Path
) -> None:
    line = ["prune", model, "--data", text, "--method", "obs", "--keep", 0.5, "--multiple-of", 1, "--steps", STEPS]
    line += ["--seq-len", 32, "--calibration-tokens", 128]
    assert lmprune(*line, "--batch-size", 4, "--out", tmp_path / "one").code == 0
    found = on_two(forks, [*line, "--batch-size", 2, "--out", tmp_path / "two"], one_of_two_that_differ)
    assert [each.code for each in found] == [0, 0], [each.err for each in found]
    kept, values = outcome(tmp_path / "one")
    assert outcome(tmp_path / "two") == (kept, pytest.approx(values, rel=2e-4))


def one_that_reads_something_else(args: list[object], rank: int, port: int, answer: Any, _: None) -> None:
    if rank == 1:
        args = [
            arg.with_name("dogs.jsonl") if isinstance(arg, Path) and arg.suffix == ".jsonl" else arg for arg in args
        ]
    one_of_two(args, rank, port, answer, None)


def test_processes_that_disagree_on_the_text(
    model: Path, text: Path, teacher: Path, forks: Any, tmp_path: Path
) -> None:
    (tmp_path / "cats.jsonl").write_bytes(text.read_bytes())
    (tmp_path / "dogs.jsonl").write_bytes(text.read_bytes().replace(b"cat", b"dog"))
    line = command(model, tmp_path / "cats.jsonl", teacher, tmp_path / "out", 2, 1)
    found = on_two(forks, line, one_that_reads_something_else)
    assert [each.code for each in found] == [2, 2]
    assert "process 1 has another training text than process 0: start all with the same" in found[0].err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats.jsonl", "dogs.jsonl"]


@pytest.mark.conformance
def test_two_processes_go_on_where_they_were_killed(
    model: Path,
    text: Path,
    teacher: Path,
    forks: Any,
    tmp_path: Path,
) -> None:
    whole, broken = (
        [*command(model, text, teacher, tmp_path / out, 2, 1), "--save-every", 4] for out in ("whole", "broken")
    )
    assert [each.code for each in on_two(forks, whole)] == [0, 0]
    assert on_two(forks, broken, die_after=7) == []
    folder = tmp_path / "broken.training"
    assert (folder / "checkpoint-4" / MARK).exists() and len([*folder.glob("checkpoint-4/pruner-*")]) == 2
    alone = lmprune(*broken, "--resume")
    assert alone.code == 2 and "had other settings: processes (was 2, is now 1)" in alone.err
    assert [each.code for each in on_two(forks, [*broken, "--resume"])] == [0, 0]
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")
    assert (tmp_path / "broken" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


# -- FSDP2, by hand; the command line's is in test_fsdp.py


def pruned_by_hand(method: str, compute: Any, share: slice, spread: Any = None) -> tuple[list[float], list[list[int]]]:
    """The losses of a training loop without a Trainer, and the neurons that it kept. share: of each batch."""
    model = tiny_model("llama")
    settings = GradualSettings(compute=compute, similarity_every=4)
    pruner = GradualPruner(model, method=method, keep=0.5, num_steps=STEPS, settings=settings)
    if spread is not None:
        spread(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if scores := pruner.masks.scores:
        assert all(isinstance(s, DTensor) for s in scores) == (spread is not None)
        separate(optimizer, pruner.score_group(1e-2))
    model.train()
    losses = []
    for step in range(STEPS):
        pruner.begin_step(step)
        batch = tokens(4, 16, seed=step)[share]
        loss = model(batch, labels=batch).loss
        losses.append(float(loss.detach()))
        if (penalty := pruner.penalty()) is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.end_step()
    return losses, [kept.tolist() for kept in pruner.masks.kept]


def sharded(what: tuple[str, str], rank: int, port: int, answer: Any, _die: None) -> None:
    os.environ.update(environment(rank, port))
    as_many_threads()
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))

    def spread(model: Any) -> None:
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    answer.send(pruned_by_hand(*what, slice(rank, None, 2), spread))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("method", "compute"), [("gum", "gathered"), ("top_v", "full"), ("soft", "full"), ("magnitude", "gathered")]
)
def test_fsdp_keeps_the_same_neurons(method: str, compute: str, forks: Any) -> None:
    losses, kept = pruned_by_hand(method, compute, slice(None))
    first, second = on_two(forks, (method, compute), target=sharded)
    assert first[1] == second[1] == kept
    both = [(a + b) / 2 for a, b in zip(first[0], second[0], strict=True)]
    assert both == pytest.approx(losses, rel=1e-4)
    assert first[0] != pytest.approx(losses, rel=1e-4), "control: each saw its own half"


# -- the real thing


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    # the flag is what makes it start two; without GPUs they are on the CPU
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"],
}  # fmt: skip

SPREAD = ("spread", LAUNCHERS["torchrun"], ["--fsdp"])


@pytest.mark.conformance
@pytest.mark.slow
def test_launched_by_others(model: Path, text: Path, teacher: Path, tmp_path: Path) -> None:
    assert lmprune(*command(model, text, teacher, tmp_path / "whole", 4, 1)).code == 0
    kept, values = outcome(tmp_path / "whole")
    for name, launcher, more in [*((name, told, []) for name, told in LAUNCHERS.items()), SPREAD]:
        args = [str(arg) for arg in [*command(model, text, teacher, tmp_path / name, 2, 1), *more]]
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "lmprune", *args, "--json"],
            capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["training"]["steps"] == STEPS
        assert outcome(tmp_path / name) == (kept, pytest.approx(values, rel=2e-4))
