"""Survivors of a search that are trained before they are compared: with masks, as if they were cut, and put back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_budgeted import QUICK, UNITS, text, walk_of
from tiny_checkpoints import lmprune as command
from tiny_models import tiny_model
from torch.nn import functional

import lmprune
from lmprune.budget.budget import Budget
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites
from lmprune.solve import trials
from lmprune.solve.stitched import DenseEnds
from lmprune.solve.trials import Tryout, tune


def masked(model):
    """Its sites, with every other unit's inputs zero in the readers."""
    sites = find_sites(model, UNITS)
    for site in sites:
        reader = site.reader().detach().clone()
        reader[~kept_inputs(site)] = 0
        site.set_reader(reader)
    return sites


def kept_inputs(site) -> torch.Tensor:
    return site.on_inputs((torch.arange(site.count) % 2 == 0).float()).bool()


def distance(dense, model, ids: torch.Tensor) -> float:
    with torch.no_grad():
        p, q = (m(ids).logits.log_softmax(-1) for m in (dense, model))
    return float(functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_masked_model_is_trained_as_the_cut_one_would_be(name: str):
    """Plain torch, on a model that is really cut: AdamW on its readers alone, eight sequences a step, a cosine."""
    dense, model, ids = tiny_model(name), tiny_model(name), text(20, 7)
    ends = DenseEnds(model, find_sites(model, UNITS), ids)
    sites = masked(model)
    cut = copy.deepcopy(model)
    for site in find_sites(cut, UNITS):
        site.keep(torch.arange(0, site.count, 2))
    weights: list[Any] = [site.reader_linear.weight for site in find_sites(cut, UNITS)]
    optimizer, before = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0), distance(dense, cut, ids)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5)).tolist()
    for places, rate in ((order[:8], 1e-3), (order[8:16], 7.5e-4), (order[16:], 2.5e-4)):
        optimizer.param_groups[0]["lr"] = rate
        with torch.no_grad():
            p = dense(ids[places]).logits.log_softmax(-1)
        q = cut(ids[places]).logits.log_softmax(-1)
        optimizer.zero_grad()
        functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().backward()
        optimizer.step()
    tune(model, sites, ends, 1, seed=5)
    for site, one in zip(sites, find_sites(cut, UNITS), strict=True):
        there = kept_inputs(site)
        torch.testing.assert_close(site.reader()[there], one.reader(), rtol=1e-3, atol=2e-5)
        assert not site.reader()[~there].any()
    assert distance(dense, model, ids) == pytest.approx(distance(dense, cut, ids), rel=1e-2)
    assert distance(dense, model, ids) < 0.98 * before


def test_nothing_but_the_readers_is_trained():
    model, ids = tiny_model("llama"), text(8)
    ends = DenseEnds(model, find_sites(model, UNITS), ids)
    sites = masked(model)
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tune(model, sites, ends, 2)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if name.endswith(("down_proj.weight", "o_proj.weight"))}
    assert asked == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_survivor_is_nearer_once_it_is_trained_and_is_then_put_back():
    model = tiny_model("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    walk = walk_of(model)
    counts = [max(1, site.count // 2) for site in walk.sites]
    judged, trained = (DenseEnds(model, walk.sites, text(rows, 5)) for rows in (4, 20))
    trial = Tryout(walk, judged, trained, 4, lambda _name: None)
    found = trial.losses(counts)
    assert 0 < found["tuned"] < found["loss"]
    assert found == trial.losses(counts)  # the same seed, the same end
    assert found["loss"] == replace(trial, trained=None).losses(counts)["loss"]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)


def plan_by(**effort: int) -> PrunePlan:
    budget = Budget(by="evolution", effort=replace(QUICK, **effort))
    return lmprune.prune(tiny_model("llama"), data=text(40), keep=0.5, multiple_of=1, budget=budget)


@pytest.mark.parametrize("better", [0, 1, 2])
def test_the_nearest_after_its_training_is_taken(monkeypatch: pytest.MonkeyPatch, better: int):
    tried = list[tuple[int, ...]]()

    def losses(_self: Tryout, counts: list[int]) -> dict[str, float]:
        tried.append(tuple(counts))
        return {"loss": float(len(tried)), "tuned": 0.1 if len(tried) == better + 1 else 0.2}

    monkeypatch.setattr(Tryout, "losses", losses)
    plan = plan_by(survivors=3, tune=1)
    lines = [line for line in plan.provenance["search"] if "tuned" in line]
    assert [line["by"] for line in lines] == ["ranking, cut", *["search, cut"] * (len(tried) - 1)]
    assert len(tried) == len(set(tried)) >= 3
    assert tuple(plan.widths) == tried[better]


def test_survivors_are_the_best_that_were_judged_on_all_text(monkeypatch: pytest.MonkeyPatch):
    tried = list[int]()
    monkeypatch.setattr(Tryout, "losses", lambda _self, counts: tried.append(sum(counts)) or {"loss": 1.0})
    plan = plan_by(survivors=2)
    judged = sorted({line["loss"] for line in plan.provenance["search"] if "evaluations" in line})
    assert len(judged) >= 2 and 2 <= len(tried) <= 3
    assert not any("tuned" in line for line in plan.provenance["search"])


def test_what_cannot_be_trained_is_refused_before_the_search(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trials, "tune", lambda *_a, **_k: pytest.fail("searched for nothing"))
    budget, half = Budget(by="dp", effort=replace(QUICK, tune=1)), tiny_model("llama").half()
    with pytest.raises(UserError, match="can't be trained in float16, as --tune-survivors does; take --dtype float32"):
        lmprune.prune(half, data=text(40), keep=0.5, multiple_of=1, budget=budget)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--survivors", 2), "--survivors is about a search; name it with --budget dp or evolution"),
        (("--budget", "ranking", "--tune-survivors", 1), "--tune-survivors is about a search"),
        (("--budget", "dp", "--survivors", 0), "survivors must be at least 1, got 0"),
        (("--budget", "dp", "--tune-survivors", 0), "tune-survivors must be at least 1, got 0"),
        (("--budget", "dp", "--tune-survivors", 1, "--stream"), "--stream leaves it in its files; drop one of the two"),
        (("--budget", "dp", "--tune-survivors", 1, "--dtype", "float16"), "drop --tune-survivors, or --dtype float16"),
    ],
)
def test_what_survivors_can_not_be_told(options: tuple[object, ...], said: str):
    found = command("prune", "no-model", "--out", "nowhere", *options)
    assert found.code == 2 and said in found.err
