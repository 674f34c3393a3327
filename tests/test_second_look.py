"""A second look at heads: what they are worth, against a model that is really cut, and what follows from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_budgeted import QUICK, text
from tiny_models import tiny_model
from torch.nn import functional

import lmprune
from lmprune.budget.budget import Budget, num_params
from lmprune.budget.choosing import counts_of
from lmprune.budget.levels import Levels
from lmprune.budget.search import Budgeting
from lmprune.budget.target import CostTarget
from lmprune.plan import PrunePlan
from lmprune.progress import silent
from lmprune.sites.address import Address
from lmprune.sites.find import find_sites
from lmprune.sites.site import Site
from lmprune.solve.obs import ObsSettings, end_loss_metrics, error_curves, obs_to_counts
from lmprune.solve.second_look import Look, corrected, dearer, wanted
from lmprune.solve.trials import Tryout

UNITS = ("neurons", "heads")
SETTINGS = ObsSettings()
KEEP = 0.6


def look_at(model: Any) -> Look:
    sites = find_sites(model, UNITS)
    return Look(model, sites, text(), end_loss_metrics(model, sites, text(), SETTINGS), SETTINGS, 0, silent)


def is_head(site: Site) -> bool:
    return site.address.kind == "heads"


@torch.no_grad()
def far(model: Any, dense: Any) -> float:
    """KL from the dense model on the last 8 sequences, by whole forward passes."""
    ours, theirs = (m(text()[-8:]).logits.log_softmax(-1) for m in (model, dense))
    return float(functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean())


@pytest.mark.parametrize(("name", "path"), [("llama", "self_attn"), ("gpt2", "attn")])
def test_what_heads_are_worth_is_what_their_return_to_the_cut_model_takes_away(name: str, path: str):
    dense = tiny_model(name)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    look = look_at(dense)
    counts = [max(site.count // 2, 1) for site in look.sites]
    looked = [place for place, site in enumerate(look.sites) if is_head(site)]
    whole, gains = look._gains(counts, looked)
    torch.testing.assert_close(dict(dense.state_dict()), before, rtol=0, atol=0)
    cut = copy.deepcopy(dense)
    sites = find_sites(cut, UNITS)
    obs_to_counts(cut, sites, text()[:-8], counts, metrics=look.metrics)
    expected = far(cut, dense)
    assert whole == pytest.approx(expected, rel=1e-3) and whole > 0
    assert gains.keys() == set(looked) and len(looked) >= 2
    for place in looked:
        block = sites[place].block
        mine = block.get_submodule(path)
        block.set_submodule(path, copy.deepcopy(look.sites[place].block.get_submodule(path)))
        assert gains[place] == pytest.approx(expected - far(cut, dense), rel=1e-2, abs=1e-3 * whole)
        block.set_submodule(path, mine)


def asked(monkeypatch: pytest.MonkeyPatch, worth: dict[int, float]) -> tuple[Look, list[int], list[int]]:
    """Counts by errors alone and after a second look in which the heads of these layers are worth so many times the
    whole divergence."""
    look = look_at(tiny_model("llama"))
    errors = error_curves(look.model, look.sites, look.input_ids, metrics=look.metrics)
    errors = [error * 1e-6 if is_head(s) else error for s, error in zip(look.sites, errors, strict=True)]
    first = counts_of(look.sites, errors, KEEP)

    def gains(_look: Look, _counts: list[int], looked: list[int]) -> tuple[float, dict[int, float]]:
        return 1.0, {place: worth.get(look.sites[place].layer, 0.0) for place in looked}

    monkeypatch.setattr(Look, "_gains", gains)
    return look, first, look.counts(errors, first, KEEP, 1)


def test_heads_that_are_worth_more_come_back_and_neurons_go_for_them(monkeypatch: pytest.MonkeyPatch):
    look, first, second = asked(monkeypatch, {1: 1e6})
    costs = [site.params for site in look.sites]
    spent = [sum(c * cost for c, cost in zip(counts, costs, strict=True)) for counts in (first, second)]
    assert abs(spent[1] - spent[0]) < max(costs)
    for site, a, b in zip(look.sites, first, second, strict=True):
        if is_head(site):
            assert (a, b) == ((1, site.count) if site.layer == 1 else (1, 1))
    neurons = [(a, b) for s, a, b in zip(look.sites, first, second, strict=True) if not is_head(s)]
    assert sum(b for _, b in neurons) < sum(a for a, _ in neurons)


def test_where_errors_said_it_all_nothing_changes(monkeypatch: pytest.MonkeyPatch):
    _, first, second = asked(monkeypatch, {})
    assert first == second


def test_heads_that_nobody_looked_at_stay(monkeypatch: pytest.MonkeyPatch):
    """Whatever neurons have to go for those that come back."""
    look = look_at(tiny_model("llama"))
    errors = error_curves(look.model, look.sites, look.input_ids, metrics=look.metrics)
    counts = [site.count if is_head(site) else site.count // 2 for site in look.sites]
    place = next(place for place, site in enumerate(look.sites) if is_head(site))
    counts[place] = 1
    monkeypatch.setattr(Look, "_gains", lambda *_: (1.0, {place: 1e9}))
    found = look.counts(errors, counts, KEEP, 1)
    assert all(count == site.count for site, count in zip(look.sites, found, strict=True) if is_head(site))


def test_errors_are_corrected_by_what_heads_cost_the_model_and_never_downwards():
    """Of errors of 4 in all, which are as good as a divergence of 2, the head's are 3, so that 1.5 was said of it."""
    neurons, head, other = torch.tensor([0.5, 9.0, 0.5]), torch.tensor([1.0, 7.0, 2.0]), torch.tensor([8.0, 6.0])
    for gain, expected in ((3.0, [2.0, torch.inf, 4.0]), (0.1, [1.0, torch.inf, 2.0])):
        found = corrected([neurons, head, other], [1, 1, 2], dearer([1.0, 3.0, 0.0], 2.0, {1: gain}), [1, 2])
        assert found[0].tolist() == [0.5, 9.0, 0.5] and found[1].tolist() == expected
        assert found[2].tolist() == [torch.inf, torch.inf]
    assert dearer([0.0, 0.0], 0.0, {1: 1e-9}) == {1: 1.0}  # no multiple of nothing is more
    dead = corrected([neurons, 0 * head], [3, 1], {1: 1.0}, [1])
    assert dead[1].tolist().count(0) == 2 and dead[1].max() == torch.inf


def test_levels_that_cost_more_than_was_said_go_no_further():
    levels = Levels(Address("heads", 0), (4, 3, 2, 1), np.array([0.0, 1.0, 3.0, 6.0]), torch.tensor([2, 0, 1]))
    assert levels.dearer(2.0, 2).errors.tolist() == [0.0, 2.0, 6.0, np.inf]
    assert levels.errors.tolist() == [0.0, 1.0, 3.0, 6.0]


@pytest.mark.parametrize("by", ["ranking", "dp"])
def test_a_budget_looks_at_heads_too(monkeypatch: pytest.MonkeyPatch, by: Budgeting):
    """Those of the middle layer, of which errors say that they are nothing, are worth everything: they come back, no
    others go, and what the model may cost is kept to."""

    def spent(worth: float) -> tuple[dict[Address, int], int]:
        def gains(look: Look, _counts: list[int], looked: list[int]) -> tuple[float, dict[int, float]]:
            return 1.0, {place: worth * (look.sites[place].layer == 1) for place in looked}

        monkeypatch.setattr(Look, "_gains", gains)
        model = tiny_model("llama")
        target = CostTarget("params", 0.8 * num_params(model))
        plan = lmprune.prune(model, units=UNITS, data=text(40), multiple_of=1, budget=Budget(target, by, QUICK))
        assert num_params(model) <= target.amount
        return dict(zip(plan.addresses, map(len, plan.indices()), strict=True)), sum(plan.widths)

    plain = Levels.of

    def cheap(address: Address, gone: torch.Tensor, cost: torch.Tensor, counts: tuple[int, ...]) -> Levels:
        return plain(address, gone, cost * (1e-6 if address.kind == "heads" else 1), counts)

    monkeypatch.setattr(Levels, "of", cheap)
    monkeypatch.setattr(Tryout, "losses", lambda *_: {"loss": 0.0})  # of two, the ranking
    (first, neurons), (second, fewer) = spent(0.0), spent(1e6)
    heads = [Address("heads", layer) for layer in range(3)]
    assert [first[at] for at in heads] == [1, 0, 0], "but of the first layer all of them go"
    assert [second[at] > first[at] for at in heads] == [False, True, False] and fewer < neurons


def test_one_kind_and_shares_of_their_own_are_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Look, "counts", lambda *_: pytest.fail("looked"))

    def pruned(units: tuple[Any, ...], keep: Any, scope: Any = "global") -> PrunePlan:
        return lmprune.prune(tiny_model("llama"), units=units, keep=keep, scope=scope, data=text(), multiple_of=1)

    for units, keep in ((("heads",), 0.5), (UNITS, {"neurons": 0.5, "heads": 0.5})):
        assert pruned(units, keep).kept
    assert pruned(UNITS, 0.5, "local").kept
    sites = find_sites(tiny_model("llama"), UNITS)
    assert wanted(sites, 0.5, "global") and not wanted(sites, 0.5, "local") and not wanted(sites[::2], 0.5, "global")
    with pytest.raises(pytest.fail.Exception, match="looked"):
        pruned(UNITS, 0.5)
