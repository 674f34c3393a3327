"""Budgets on models: the database, the judge beside a model that is really cut, and `prune` within its target."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import lmprune as command
from tiny_models import tiny_model
from torch.nn import functional

import lmprune
from lmprune.budget.budget import Budget, num_params
from lmprune.budget.levels import Levels, grid
from lmprune.budget.search import BUDGETS, Budgeting, Effort
from lmprune.budget.target import CostTarget
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites
from lmprune.solve.budgeted import Walk
from lmprune.solve.database import Database
from lmprune.solve.obs import ObsSettings, end_loss_metrics, obs_to_counts
from lmprune.solve.stitched import DenseEnds, Stitched, as_before
from lmprune.solve.trials import Tryout

UNITS = ("neurons", "heads")
QUICK = Effort(reweighings=2, generations=2, offspring=3)


def text(rows: int = 20, seed: int = 3) -> torch.Tensor:
    return torch.randint(1, 128, (rows, 16), generator=torch.Generator().manual_seed(seed))


def walk_of(model) -> Walk:
    sites = find_sites(model, UNITS)
    return Walk(model, sites, text(), end_loss_metrics(model, sites, text(), ObsSettings()), ObsSettings(), 0)


def filled(model, folder: Path, counts=None) -> tuple[Walk, Database]:
    walk = walk_of(model)
    database = Database(folder, walk.about(counts))
    walk.fill(database, counts, lambda _name: None)
    return walk, database


def levels_of(walk: Walk, database: Database) -> list[Levels]:
    return [database.levels(s.address, grid(s.count, step=8 if s.size == 1 else 1, least=1)) for s in walk.sites]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma2", "gpt_neox-parallel"])
def test_the_database_leaves_the_model_as_it_was(name: str, tmp_path: Path):
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    counts = [max(1, site.count // 2) for site in find_sites(model, UNITS)]
    filled(model, tmp_path / "levels", counts)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("gone", [(), ("heads.1", "neurons.2")])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_level_behind_the_prefix_is_the_sequential_refit(name: str, gone: tuple[str, ...], tmp_path: Path):
    """At the counts that the database was filled at, the stitched model is the one that `obs` cuts to them."""
    model = tiny_model(name)
    sites = find_sites(model, UNITS)
    counts = [0 if str(site.address) in gone else max(1, site.count // 2) for site in sites]
    walk, database = filled(model, tmp_path / "levels", counts)
    cut = copy.deepcopy(model)
    obs_to_counts(cut, find_sites(cut, UNITS), text(), counts, metrics=walk.metrics)
    with as_before(walk.sites):
        for site, count in zip(walk.sites, counts, strict=True):
            site.set_reader(*database.reader(database.levels(site.address, (site.count, count)), count))
        with torch.no_grad():
            ours, theirs = model(text(2, 9)).logits, cut(text(2, 9)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(model(text(2, 9)).logits, theirs, rtol=1e-3, atol=1e-4)  # the dense one is not it


@pytest.mark.parametrize("counted", [False, True])
def test_a_database_goes_on_where_it_stopped(tmp_path: Path, counted: bool):
    model = tiny_model("llama")
    counts = [max(1, site.count // 2) for site in find_sites(model, UNITS)] if counted else None
    walk, whole = filled(model, tmp_path / "whole", counts)
    wanted = levels_of(walk, whole)
    stopped = Database(tmp_path / "stopped", walk.about(counts))
    for site in walk.sites[:3]:  # with a half of a block
        file = f"{site.address}.safetensors"
        (tmp_path / "stopped" / file).write_bytes((tmp_path / "whole" / file).read_bytes())
    untouched = (tmp_path / "stopped" / "neurons.0.safetensors").stat().st_mtime_ns
    walk.fill(stopped, counts, lambda _name: None)
    assert (tmp_path / "stopped" / "neurons.0.safetensors").stat().st_mtime_ns == untouched
    assert len(stopped) == len(whole) == len(walk.sites)
    for ours, theirs in zip(levels_of(walk, stopped), wanted, strict=True):
        assert torch.equal(ours.gone, theirs.gone)
        torch.testing.assert_close(torch.tensor(ours.errors), torch.tensor(theirs.errors), rtol=1e-3, atol=1e-9)


def test_a_damaged_file_of_a_database_is_made_again(tmp_path: Path):
    """To the bit what it was, and never used."""
    walk, whole = filled(tiny_model("llama"), tmp_path / "levels")
    file = tmp_path / "levels" / f"{walk.sites[1].address}.safetensors"
    before = file.read_bytes()
    for harm in (before[:-8] + b"\0\0\0\0\1\0\0\0", before[:-5], b"nothing"):
        file.write_bytes(harm)
        again = Database(tmp_path / "levels", walk.about(None))
        assert walk.sites[1].address not in again and walk.sites[0].address in again
        with pytest.raises(UserError, match="is damaged"):
            again.levels(walk.sites[1].address, (walk.sites[1].count,))
        walk.fill(again, None, lambda _name: None)
        assert file.read_bytes() == before and len(again) == len(whole)


def without_a_head(model):
    """As a cut of another kind leaves it, without a refit."""
    plan = lmprune.prune(model, units=["heads"], method="magnitude", keep=0.5)
    assert plan.kept


@pytest.mark.parametrize(
    "changed",
    [
        lambda model: model.load_state_dict(tiny_model("llama", seed=1).state_dict()),
        lambda model: model.model.layers[0].mlp.up_proj.weight.data.mul_(2),
        lambda model: model.model.embed_tokens.weight.data.mul_(2),
        lambda model: model.lm_head.weight.data.mul_(2),
        without_a_head,
    ],
)  # fmt: skip
def test_a_database_of_something_else_is_refused(tmp_path: Path, changed):
    model = tiny_model("llama")
    filled(model, tmp_path / "levels")
    filled(model, tmp_path / "levels")
    changed(model)
    with pytest.raises(UserError, match="holds levels of another model, text or setting"):
        filled(model, tmp_path / "levels")


def test_its_size_is_said_before(tmp_path: Path):
    walk, database = filled(tiny_model("llama"), tmp_path / "levels")
    files = sum(file.stat().st_size for file in (tmp_path / "levels").glob("*.safetensors"))
    assert 0.7 * files < database.bytes_of(walk.sites) < files  # tiny files are a third headers


def judge_of(model, folder: Path) -> tuple[Walk, Stitched]:
    ends = DenseEnds(model, find_sites(model), text(4, 5))
    walk, database = filled(model, folder)
    return walk, Stitched(model, walk.sites, levels_of(walk, database), database, ends, (1, 2, 4))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_judges_loss_is_the_divergence_of_the_model_put_together(name: str, tmp_path: Path):
    model = tiny_model(name)
    dense = copy.deepcopy(model)
    walk, judge = judge_of(model, tmp_path / "levels")
    choice = tuple(min(2, len(levels.counts) - 1) for levels in judge.levels)
    later = (*choice[:-1], choice[-1] + 1)
    with as_before(walk.sites):
        assert judge.loss((0,) * len(choice), 2) < 1e-6  # on a dense prefix with everything kept
        for asked in (choice, later):
            found = judge.loss(asked, 2)
            with torch.no_grad():
                p, q = (m(text(4, 5)).logits.log_softmax(-1) for m in (dense, model))
            expected = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
            assert found == pytest.approx(float(expected), rel=1e-3, abs=1e-8) and found > 1e-6
        judge.settle(choice)  # from now on what is the same as in this choice is not run again
        assert judge.loss(later, 2) == pytest.approx(found, rel=1e-5)
        assert judge._first_difference(later) == 2
        assert judge.loss(choice, 0) != judge.loss(choice, 2)


def test_changes_are_what_the_judge_says_of_each_site_alone(tmp_path: Path):
    model = tiny_model("llama")
    walk, judge = judge_of(model, tmp_path / "levels")
    last = [len(levels.counts) - 1 for levels in judge.levels]
    choice = (1, last[1], *(1 for _ in last[2:]))
    with as_before(walk.sites):
        changes = judge.changes(choice)
        for place, (level, near) in enumerate(zip(choice, changes, strict=True)):
            ((other, change),) = near.items()
            assert other in ((level + 1, level + 2) if level < last[place] else (level - 1, level - 2))
            judge.base = None  # nothing is used again
            moved = judge.loss((*choice[:place], other, *choice[place + 1 :]), 0)
            assert change == pytest.approx(moved - judge.loss(choice, 0), rel=1e-3, abs=1e-6)
            assert abs(change) > 1e-6


# -- prune


@pytest.mark.parametrize("by", BUDGETS)
@pytest.mark.parametrize("wish", ["params", "bytes"])
def test_prune_stays_within_its_target(by, wish):
    model = tiny_model("llama")
    params = num_params(model)
    size = 1 if wish == "params" else 4
    budget = Budget(CostTarget(wish, 0.85 * params * size), by=by, effort=QUICK)
    plan = lmprune.prune(model, units=UNITS, data=text(), budget=budget, multiple_of=4)
    assert 0.78 * params < num_params(model) <= 0.85 * params
    assert plan.settings["budget"] == by and plan.settings["target"] == {wish: 0.85 * params * size}
    assert plan.settings["keep"] == pytest.approx(plan.shares())
    assert ("search" in plan.provenance) == (by in ("dp", "evolution"))
    assert json.loads(plan.to_json())["settings"]["budget"] == by
    assert all(count % 4 == 0 for count in plan.widths)


def test_a_search_with_a_ratio_spends_what_it_leaves():
    model, uniform = tiny_model("llama"), tiny_model("llama")
    lmprune.prune(uniform, data=text(), keep=0.5, multiple_of=1)
    plan = lmprune.prune(model, data=text(), keep=0.5, multiple_of=1, budget=Budget(by="dp", effort=QUICK))
    assert num_params(model) == num_params(uniform) and plan.settings["scope"] == "global"


def test_seconds_need_a_table():
    with pytest.raises(UserError, match="seconds are read off a --latency-table; `lmprune latency MODEL"):
        Budget(CostTarget("latency", 0.01))


def test_what_can_not_be_spent_leaves_the_model_whole():
    model = tiny_model("llama")
    params = num_params(model)
    for budget, method, why in (
        (Budget(CostTarget("params", 10), by="dp"), "obs", "the best possible is"),
        (Budget(CostTarget("params", 0.8 * params), by="dp"), "magnitude", "only obs knows what errors grow by"),
    ):
        with pytest.raises(UserError, match=why):
            lmprune.prune(model, data=text(), budget=budget, method=method, multiple_of=1)
        assert num_params(model) == params
    with pytest.raises(UserError, match="did you mean dp"):
        Budget(by="dpp")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give --keep one ratio"):
        keep = {"neurons": 0.5, "heads": 0.5}
        lmprune.prune(model, units=UNITS, data=text(), keep=keep, budget=Budget(by="dp"))


def test_the_plan_of_a_search_is_carried_out_again(tmp_path: Path):
    model, again = tiny_model("llama"), tiny_model("llama")
    plan = lmprune.prune(model, data=text(), multiple_of=4, keep=0.6, budget=Budget(by="dp", effort=QUICK))
    (tmp_path / "plan.json").write_text(plan.to_json())
    lmprune.prune(again, data=text(), plan=PrunePlan.load(tmp_path / "plan.json"))
    torch.testing.assert_close(again(text(2)).logits, model(text(2)).logits, rtol=1e-4, atol=1e-5)


def test_levels_are_kept_and_used_again(model: Path, text: Path, tmp_path: Path):
    options = ("--data", text, "--calibration-tokens", 1024, "--seq-len", 64, "--levels", tmp_path / "levels")
    options = (*options, "--multiple-of", 4, "--budget", "dp", "--answer-tokens", 0, "--json")
    first = command("prune", model, "--out", tmp_path / "a", "--target-params", "31k", *options)
    assert first.code == 0, first
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "levels" / "dense").glob("*.safetensors")}
    assert len(files) == 3
    second = command("prune", model, "--out", tmp_path / "b", "--target-params", "33k", *options)
    assert second.code == 0, second
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert len(list((tmp_path / "levels").iterdir())) == 3  # the dense model's, and one for each prefix
    other = command("prune", model, "--out", tmp_path / "c", "--target-params", "33k", *options, "--seed", 1)
    assert other.code == 2 and "holds levels of another model, text or setting" in other.err


# -- a cut for a try


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_cut_for_a_try_is_as_far_from_the_dense_model_as_the_cut(name: str):
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    walk, cut = walk_of(model), copy.deepcopy(model)
    counts = [max(1, site.count // 2) for site in walk.sites]
    obs_to_counts(cut, find_sites(cut, UNITS), text(), counts, metrics=walk.metrics)
    trial = Tryout(walk, DenseEnds(model, walk.sites, text(4, 5)), None, 0, lambda _name: None)
    found = trial.losses(counts)["loss"]
    with torch.no_grad():
        p, q = (m(text(4, 5)).logits.log_softmax(-1) for m in (model, cut))
    expected = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert found == pytest.approx(float(expected), rel=1e-3) and found > 1e-5
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("worse", [True, False])
def test_what_a_search_found_must_be_nearer_when_it_is_cut(monkeypatch: pytest.MonkeyPatch, worse: bool):
    """Its judge likes whatever is unlike the ranking; the cut says whether that was right."""
    notes, first = list[str](), list[tuple[int, ...]]()

    def unlike(_self: Stitched, choice: tuple[int, ...], _amount: int) -> float:
        first.append(choice)
        return -float(sum(abs(level - other) for level, other in zip(choice, first[0], strict=True)))

    def plan_by(by: Budgeting) -> PrunePlan:
        budget = Budget(by=by, effort=QUICK, note=notes.append)
        return lmprune.prune(tiny_model("llama"), data=text(40), keep=0.5, multiple_of=1, budget=budget)

    said = iter([0.1, 0.2] if worse else [0.2, 0.1])
    monkeypatch.setattr(Stitched, "loss", unlike)
    monkeypatch.setattr(Tryout, "losses", lambda *_: {"loss": next(said)})
    ranked, searched = plan_by("ranking"), plan_by("evolution")
    *_, ranking, found = searched.provenance["search"]
    assert (ranking["by"], found["by"]) == ("ranking, cut", "search, cut")
    assert (searched.widths == ranked.widths) is worse and (found["loss"] > ranking["loss"]) is worse
    told = "really cut, what the search found is no nearer to the dense model: the ranking stays"
    assert (notes[-1] == told) is worse
