"""How long it takes is known before, told on the way, and can be asked for."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_bad_input import refused
from tiny_checkpoints import lmprune
from tiny_models import tiny_model, tokens

from lmprune.commands import bars
from lmprune.errors import UserError
from lmprune.jobs import timing
from lmprune.methods import get_method
from lmprune.plan import PLAN_FILE
from lmprune.progress import Clock, Phase, duration
from lmprune.sites.find import find_sites
from lmprune.solve.duration import Pace, Work, measure

PACE = Pace(blocks=1e-3, forward=2e-3, backward=6e-3, single=1e-10, double=1e-9)


class Watch:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_the_rest_takes_what_was_expected_put_right_by_what_was():
    watch = Watch()
    clock = Clock([Phase("a", 10.0), Phase("b", 30.0)], watch)
    assert clock.share == 0.0 and clock.seconds_left == pytest.approx(40.0)
    clock.begin("a")
    watch.at = 5.0
    clock.update("a", 1, 4)  # twice as slow as expected
    assert clock.share == pytest.approx(0.25 * 10 / 40)
    assert clock.seconds_left == pytest.approx(15.0 + 30.0 * (5 + 4) / (2.5 + 4))
    watch.at = 20.0
    clock.update("a", 4, 4)
    assert clock.seconds_left == pytest.approx(30.0 * (20 + 4) / (10 + 4))
    clock.begin("b")
    watch.at = 50.0
    clock.update("b", 1, 2)
    assert clock.seconds_left == pytest.approx(30.0)  # by its own pace
    clock.update("b", 2, 2)
    assert clock.share == 1.0 and clock.seconds_left == 0.0
    clock.update("not expected", 1, 2)
    assert clock.share == 1.0


def test_seconds_for_people():
    assert [duration(s) for s in (0.4, 89, 91, 5000, 7260)] == ["0 s", "89 s", "2 min", "83 min", "2 h 1 min"]


def test_a_line_a_minute_where_there_is_no_terminal():
    watch, told = Watch(), io.StringIO()
    minutes = bars._Minutes(Console(file=told, force_terminal=False, width=80), watch)
    for watch.at in (1.0, 59.0, 61.0, 90.0, 122.0):
        minutes.tell("pruning", 3, 30, 600.0)
    assert told.getvalue().splitlines() == [
        f"pruning: 3 of 30, {gone} gone, about 10 min left" for gone in ("61 s", "2 min")
    ]
    shown = io.StringIO()
    seen = bars._Minutes(Console(file=shown, force_terminal=True), watch)
    watch.at += 1000
    seen.tell("pruning", 3, 30, 600.0)
    assert shown.getvalue() == ""


def test_a_step_of_minutes_has_a_time_left():
    """rich's own column forgets a step after half a minute, and then knows nothing."""
    from rich.progress import Progress

    watch = Watch()
    with Progress(console=Console(file=io.StringIO()), get_time=watch, auto_refresh=False) as progress:
        progress.add_task("slow", total=4)
        (task,) = progress.tasks
        watch.at = 100.0
        progress.update(task.id, completed=1)
        watch.at = 190.0
        assert bars._Left().render(task).plain == "10 min left"  # 190 s for a quarter
        progress.update(task.id, completed=4)
        assert bars._Left().render(task).plain == ""


def test_phases_are_the_stages_that_come():
    """By their very names, for every scope, and for what reads gradients."""
    for method, scope in (
        ("obs", "local"),
        ("obs", "global"),
        ("plain_obs", "local"),
        ("taylor", "local"),
        ("flap", "global"),
    ):
        model, seen = tiny_model("llama", vocab_size=257), []
        solver = get_method(method).solver_of(("neurons",))
        sites, ids = find_sites(model), tokens(4, 16)
        work = Work(sites, ids.numel(), 16, 0.5, scope)  # type: ignore[arg-type]
        expected = [phase.name for phase in solver.phases(work, measure(model, 16, gradients=True))]

        def stages(name: str, seen: list[str] = seen) -> None:
            seen.append(name)

        solver.solve(model, sites, ids, 0.5, stages, scope=scope, multiple_of=1, seed=0)  # type: ignore[arg-type]
        assert seen == expected, method


def test_more_text_takes_longer_and_a_smaller_keep_too():
    sites = find_sites(tiny_model("llama"))
    solver = get_method("obs").solver_of(("neurons",))

    def seconds(**changes: Any) -> float:
        work = replace(Work(sites, 4096, 512, 0.5, "local"), **changes)
        return timing.total(solver.phases(work, PACE))

    assert seconds(tokens=8192) == pytest.approx(2 * seconds(), rel=0.01)
    assert seconds(keep=0.25) > seconds() > seconds(keep=0.75)
    few = solver.phases(Work(sites, 100_000, 512, 0.5, "local"), PACE)[0].seconds
    assert few == solver.phases(Work(sites, 50_000, 512, 0.5, "local"), PACE)[0].seconds, "8,192 tokens are read back"


def test_as_much_as_fits():
    def phases(number: int) -> list[Phase]:
        return [Phase("pruning", 2.0 + number / 100)]

    assert timing.fitting(phases, 10_000, 512, 60.0, 10.0) == 9 * 512  # 4,800 tokens would take the 48 s that are left
    assert timing.fitting(phases, 2048, 512, 600.0, 10.0) == 2048
    with pytest.raises(UserError, match="too small: with one sequence of 512 tokens it takes about 17 s"):
        timing.fitting(phases, 10_000, 512, 12.0, 10.0)


def test_quick_and_a_budget_are_of_calibration_and_the_command_says_what_was_read(
    model: Path, text: Path, tmp_path: Path
):
    args = ["--data", text, "--seq-len", 64, "--multiple-of", 1, "--answer-tokens", 2, "--json"]
    record = lmprune("prune", model, "--out", tmp_path / "q", "--quick", *args).record
    command = record["command"]
    assert command[command.index("--calibration-tokens") + 1] == str(timing.QUICK_TOKENS)
    assert "--quick" not in command and "--time-budget" not in command
    assert record["estimated_seconds"] > 0
    plan = json.loads((tmp_path / "q" / PLAN_FILE).read_text())
    assert plan["settings"]["calibration_tokens"] <= timing.QUICK_TOKENS and plan["provenance"]["command"] == command
    told = lmprune("prune", model, "--out", tmp_path / "b", "--time-budget", "10m", *args)
    assert "tokens of calibration fit into 10m" in told.err and told.record["out"].endswith("b")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--time-budget", "soon"], "is no time"),
        (["--time-budget", "0s"], "is no time"),
        (["--time-budget", "0.001s"], "is too small: with one sequence of 64 tokens"),
        (["--time-budget", "9s", "--units", "layers", "--method", "sleb"], "is not known beforehand"),
        (["--quick", "--calibration-tokens", 512], "drop --calibration-tokens, or --quick"),
        (["--quick", "--steps", 2], "drop --quick"),
        (["--time-budget", "1m", "--steps", 2], "drop --time-budget"),
        (["--time-budget", "1m", "--plan", "p.json"], "drop --time-budget, or --plan"),
    ],
)
def test_times_that_can_t_be_kept(args: list[Any], says: str, model: Path, text: Path, tmp_path: Path):
    told = refused("prune", model, "--out", tmp_path / "o", "--data", text, "--seq-len", 64, *args)
    assert says in told and not (tmp_path / "o").exists()
