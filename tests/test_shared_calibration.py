"""Calibration that several processes share: the plan of one, and the same weights in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from test_several_processes import environment, on_two
from tiny_checkpoints import TEXT, as_many_threads, lmprune, tiny_checkpoint
from tiny_models import tiny_model, tokens

import lmprune as library
from lmprune.budget.budget import Budget
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.processes import Share, of_first, together

#: what is summed in another way: moments and curvature, forward and gradient statistics, gradients of weights
CASES: tuple[dict[str, Any], ...] = (
    {"method": "obs", "scope": "global"},
    {"method": "obs", "units": ("neurons", "heads"), "scope": "global"},
    {"method": "obs", "units": ("neurons", "heads"), "scope": "global", "keep": 0.2},  # with a second look at heads
    {"method": "activation"},
    {"method": "taylor", "units": ("heads",)},
    {"method": "llm_pruner"},
    {"method": "flap"},
    {"method": "obs", "budget": Budget(by="ranking")},
)


def pruned(case: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    model = tiny_model("llama")
    plan = library.prune(model, data=tokens(7, 16), multiple_of=1, **{"keep": 0.5, **case})
    return plan.kept, [parameter.detach() for parameter in model.parameters()]


def in_one_of_several(number: int, rank: int, port: int, answer: Any, _die: Any) -> None:
    os.environ.update(environment(rank, port, number))
    as_many_threads()
    PartialState(cpu=True)
    with together():
        found = [pruned(case) for case in CASES]
        mine, agreed = Share(tokens(7, 16)).mine, of_first(rank)
        try:
            library.prune(tiny_model("llama"), method="activation", data=(tokens(7, 16) + rank) % 128, multiple_of=1)
            said = ""
        except UserError as error:
            said = str(error)
    alone = Share(tokens(7, 16)).mine  # outside, nothing is shared
    weights = [[float(parameter.double().sum()) for parameter in each] for _, each in found]
    answer.send(([kept for kept, _ in found], [w[0] for w in weights], weights, len(mine), len(alone), said, agreed))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.conformance)])
def test_several_processes_make_the_plan_of_one(forks: Any, number: int) -> None:
    first, *others = on_two(forks, number, in_one_of_several, number=number)
    assert len(others) == number - 1 and all(other[2] == first[2] for other in others), "the same weights, to the bit"
    assert sum(each[3] for each in (first, *others)) == 7 and first[3] == -(-7 // number) and first[4] == 7
    assert first[5].startswith("process 1 has another calibration text than process 0") and others[0][5] == first[5]
    assert [each[6] for each in (first, *others)] == [0] * number, "what depends on a clock is the first one's"
    for case, kept, weights in zip(CASES, first[0], first[2], strict=True):
        expected, whole = pruned(case)
        assert kept == expected, case
        assert weights == pytest.approx([float(p.double().sum()) for p in whole], abs=1e-3), case


@pytest.mark.slow
def test_the_command_in_two_processes(forks: Any, tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text(TEXT)
    line = ["prune", tiny_checkpoint(tmp_path / "m"), "--data", text, "--seq-len", 32, "--calibration-tokens", 512]
    line += ["--keep", 0.5, "--multiple-of", 1, "--answer-tokens", 0]
    assert lmprune(*line, "--out", tmp_path / "one").code == 0
    first, second = on_two(forks, [*line, "--out", tmp_path / "two", "--json"])
    assert (first.code, second.code) == (0, 0) and second.out == "", first.err + second.err
    kept = [PrunePlan.load(tmp_path / name / PLAN_FILE).kept for name in ("one", "two")]
    assert kept[0] == kept[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "one", "text.txt", "two"]


@pytest.mark.conformance
def test_the_command_by_torchrun(tmp_path: Path) -> None:
    """Processes that were not forked from one: nothing that they compare may be an address in memory."""
    (text := tmp_path / "text.txt").write_text(TEXT)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lmprune", "prune"]
    line += [tiny_checkpoint(tmp_path / "m"), "--data", text, "--seq-len", 32, "--calibration-tokens", 512]
    line += ["--method", "activation", "--keep", 0.5, "--multiple-of", 1, "--answer-tokens", 0]
    line += ["--out", tmp_path / "two"]
    subprocess.run([*map(str, line)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert PrunePlan.load(tmp_path / "two" / PLAN_FILE).kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "why"), [(("--stream",), "read block by block in one process"), (("--time-budget", "1m"), "one process")]
)
def test_what_several_processes_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], why: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (text := tmp_path / "text.txt").write_text(TEXT)
    told = lmprune("prune", tiny_checkpoint(tmp_path / "m"), "--data", text, "--out", tmp_path / "out", *more)
    assert told.code == 2 and why in told.err and "torchrun" in told.err
