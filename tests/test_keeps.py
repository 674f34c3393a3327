"""How much stays of each kind, and one ranking over kinds of unlike cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmprune.budget.by_cost import counts_by_cost
from lmprune.budget.keeps import check_keeps, check_reachable, keep_of, parse_keep, parse_units, spelt_keep
from lmprune.budget.selection import select
from lmprune.errors import UserError

SITES = st.lists(
    st.tuples(st.lists(st.floats(0, 1e3), min_size=1, max_size=12), st.integers(1, 50)), min_size=1, max_size=5
)


def scores_and_costs(sites: list[tuple[list[float], int]]) -> tuple[list[Tensor], list[int]]:
    return [torch.tensor(scores) for scores, _ in sites], [cost for _, cost in sites]


@given(sites=SITES, keep=st.floats(0.01, 1), seed=st.integers(0, 3))
def test_the_budget_is_kept_and_used(sites, keep: float, seed: int):
    scores, costs = scores_and_costs(sites)
    ones = [1] * len(scores)
    counts = counts_by_cost(scores, costs, keep, least=ones, multiples=ones, seed=seed)
    spent = sum(count * cost for count, cost in zip(counts, costs, strict=True))
    total = sum(len(s) * cost for s, cost in zip(scores, costs, strict=True))
    assert all(1 <= count <= len(s) for count, s in zip(counts, scores, strict=True))
    assert spent <= max(keep * total + 1e-6, sum(costs))
    assert spent >= keep * total - max(costs) - 1e-6 or spent == total


@given(sites=SITES, keep=st.floats(0.01, 1), cost=st.integers(1, 9))
def test_equal_costs_are_the_global_scope(sites, keep: float, cost: int):
    scores, ones = [torch.tensor(s) for s, _ in sites], [1] * len(sites)
    total = sum(map(len, scores))
    keep = round(keep * total) / total or 1 / total  # a whole number of units, so that both mean the same budget
    counts = counts_by_cost(scores, [cost] * len(sites), keep + 1e-9 if keep < 1 else 1, least=ones, multiples=ones)
    assert counts == [len(kept) for kept in select(scores, keep, scope="global")]


def test_what_is_worth_more_for_its_cost_stays():
    dear, cheap = torch.full((4,), 10.0), torch.full((40,), 2.0)
    ones = [1, 1]
    assert counts_by_cost([dear, cheap], [10, 1], 0.5, least=ones, multiples=ones) == [1, 30]
    assert counts_by_cost([dear, cheap], [1, 10], 0.5, least=ones, multiples=ones) == [4, 19]
    assert counts_by_cost([dear, cheap], [1, 10], 0.5, least=ones, multiples=[1, 8]) == [4, 16]


def test_keep_and_units_as_the_command_line_has_them():
    assert parse_keep("0.25") == 0.25 and parse_units(" heads, neurons,heads") == ("heads", "neurons")
    both = parse_keep("neurons=0.5, heads=1")
    assert both == {"neurons": 0.5, "heads": 1.0} and parse_keep(spelt_keep(both)) == both
    assert keep_of(both, "heads") == 1 and keep_of(0.5, "heads") == 0.5
    assert check_keeps(both, ["heads", "neurons"]) is both


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("half", "keep is a ratio"),
        ("heads=half", "keep is a ratio"),
        ("1.5", "keep must be in"),
        ("heads=0", "keep must be in"),
        ("hedas=0.5", "did you mean heads"),
        ("heads=0.5,heads=0.7", "twice"),
    ],
)
def test_wrong_keeps(text: str, told: str):
    with pytest.raises(UserError, match=told):
        parse_keep(text)


def test_keeps_that_do_not_fit_the_units():
    with pytest.raises(UserError, match="nothing of heads"):
        check_keeps({"neurons": 0.5}, ["neurons", "heads"])
    with pytest.raises(UserError, match="how many heads stay, but only neurons are pruned"):
        check_keeps({"neurons": 0.5, "heads": 0.5}, ["neurons"])


def test_ratios_that_no_count_is_near():
    check_reachable(2 / 3, [3], "groups")
    check_reachable(0.667, [3], "groups")
    check_reachable(0.73, [1536, 30], "units")
    with pytest.raises(UserError, match=r"0\.75 of 3 groups can't be kept; keep 0\.667 or 1, or rank"):
        check_reachable(0.75, [4, 3], "groups")
    with pytest.raises(UserError, match=r"keep 0\.333 or 0\.667"):
        check_reachable(0.1, [3], "groups")
