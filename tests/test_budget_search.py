"""Costs, targets and searches: pure functions, against counting, brute force and judges whose answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny_models import NAMES, tiny_model

from lmprune.budget.budget import num_params
from lmprune.budget.costs import Curve, costs_of, counts_before, weight_costs
from lmprune.budget.dynamic import allocate
from lmprune.budget.levels import Choice, Choices, Levels
from lmprune.budget.search import BUDGETS, SEARCHES, Course, Effort, coefficients, mutated, nearby, ranking
from lmprune.budget.selection import num_kept
from lmprune.budget.target import CostTarget, parse_target, uniform_keep
from lmprune.errors import UserError
from lmprune.sites.address import SEAM_KINDS, Address
from lmprune.sites.find import find_sites


@pytest.mark.parametrize("kind", SEAM_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_costs_are_what_a_cut_leaves(name: str, kind):
    model = tiny_model(name)
    try:
        sites = find_sites(model, [kind])
    except UserError:  # heads that can't go in this family
        return
    params = num_params(model)
    costs, in_bytes = weight_costs(sites, params), weight_costs(sites, params, itemsize=2)
    assert costs.total(counts_before(sites)) == params
    left = {site.address: max(1, site.count - 1 - site.address.layer % 2) for site in sites}
    expected = costs.total(left)
    for site in sites:
        site.keep(torch.arange(left[site.address]))
    assert num_params(model) == expected and in_bytes.total(left) == 2 * expected


@pytest.mark.parametrize("whole", [True, False])
def test_the_programme_finds_what_trying_all_finds(whole: bool):
    draw = np.random.default_rng(3)
    for _ in range(20):
        errors = [np.concatenate([[0.0], draw.random(3)]) for _ in range(4)]  # in no order, so no greedy rule works
        costs = [np.sort(draw.integers(0, 40, 4))[::-1].astype(float) for _ in range(4)]
        if not whole:
            costs = [c + draw.random(4) for c in costs]
        most = sum(c.max() for c in costs) * 0.5
        every = [c for c in itertools.product(range(4), repeat=4) if _sum(costs, c) <= most]
        found = allocate(errors, costs, most)
        if not every:
            assert found is None
            continue
        assert found is not None and _sum(costs, found) <= most
        best = min(_sum(errors, c) for c in every)
        assert _sum(errors, found) == pytest.approx(best, abs=0 if whole else 0.02)


def _sum(values: list[np.ndarray], choice: Choice) -> float:
    return float(sum(v[level] for v, level in zip(values, choice, strict=True)))


def test_a_budget_below_the_least_is_none():
    assert allocate([np.zeros(2)], [np.array([4.0, 3.0])], 2.5) is None


class Known:
    """A judge whose loss is a sum of the sites' errors with coefficients of its own."""

    rounds = 2

    def __init__(self, choices: Choices, weights: list[float]):
        self.choices, self.weights, self.judged = choices, weights, 0

    def loss(self, choice: Choice, amount: int) -> float:
        self.judged += 1
        return sum(w * e[level] for w, e, level in zip(self.weights, self.choices.errors, choice, strict=True))

    def settle(self, choice: Choice) -> None: ...

    def changes(self, choice: Choice) -> list[Mapping[int, float]]:
        return [
            {near: w * float(e[near] - e[at]) for near in (at - 1, at + 1) if 0 <= near < len(e)}
            for w, e, at in zip(self.weights, self.choices.errors, choice, strict=True)
        ]


def made_up(sites: int = 6, units: int = 8, cheap: int = 0) -> Choices:
    """Convex error curves of sites that are alike but for a factor; the last `cheap` ones cost a third a unit."""
    counts = tuple(range(units, 0, -1))
    curve = np.array([float(i**2) for i in range(units)])
    levels = tuple(
        Levels(Address("neurons", i), counts, curve * (1 + i % 3), torch.arange(units)) for i in range(sites)
    )
    costs = tuple(np.array(counts, dtype=float) * (1 if i >= sites - cheap else 3) for i in range(sites))
    return Choices(levels, costs, sum(c[0] for c in costs) / 2)


def test_dp_measures_the_coefficients_that_the_errors_lack():
    choices = made_up()
    judge = Known(choices, [1.0, 8.0, 0.2, 1.0, 5.0, 0.5])
    best = allocate([w * e for w, e in zip(judge.weights, choices.errors, strict=True)], choices.costs, choices.most)
    assert best is not None
    start, course = ranking(choices), Course(judge, Effort(reweighings=12))
    SEARCHES["dp"](choices, course)
    assert course.best != start and judge.loss(course.best, 1) < 0.7 * judge.loss(start, 1)
    assert course.loss <= 1.1 * judge.loss(best, 1)


class Narrow(Known):
    """A judge who is right about the ranking's next levels only; further off all is lost."""

    def loss(self, choice: Choice, amount: int) -> float:
        far = max(abs(a - b) for a, b in zip(choice, ranking(self.choices), strict=True)) > 1
        return super().loss(choice, amount) + 1e6 * far


def test_dp_takes_a_smaller_step_where_a_large_one_is_worse():
    choices = made_up(units=24)
    judge = Narrow(choices, [1.0, 8.0, 0.2, 1.0, 5.0, 0.5])
    start, course = ranking(choices), Course(judge, Effort(reweighings=4))
    SEARCHES["dp"](choices, course)
    assert [line["loss"] > 1e5 for line in course.log] == [False, True, True, True, False]
    assert course.loss < Known.loss(judge, start, 1)


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_a_step_goes_no_further_than_its_reach(reach: int):
    choices = made_up(cheap=2)
    at = ranking(choices)
    found = nearby(choices, at, np.array([1.0, 8.0, 0.2, 1.0, 5.0, 0.5]), reach)
    far = max(abs(a - b) for a, b in zip(found, at, strict=True))
    assert choices.fits(found) and (far == reach or (reach == 3 and far > 1))


def test_coefficients_of_a_judge_that_agrees_are_one():
    choices = made_up()
    at = ranking(choices)
    found = coefficients(choices, at, Known(choices, [2.0] * 6).changes(at))
    np.testing.assert_allclose(found, 1)


def test_evolution_is_no_worse_than_dp_nor_that_than_the_ranking_and_all_are_in_budget():
    choices, losses = made_up(cheap=2), {}
    judge = Known(choices, [1.0, 8.0, 0.2, 1.0, 5.0, 0.5])
    for by, steps in (("dp", 1), ("evolution", 1), ("evolution", 0)):
        course = Course(judge, Effort(seed=5, reweighings=steps))
        SEARCHES[by](choices, course)
        losses[by, steps] = course.loss
        assert choices.fits(course.best)
        assert [line["best"] for line in course.log] == sorted((line["best"] for line in course.log), reverse=True)
    start = judge.loss(ranking(choices), 1)
    assert losses["evolution", 1] <= losses["dp", 1] < start and losses["evolution", 0] < start


def test_a_seed_gives_one_answer_and_another_another():
    choices = made_up()

    def run(seed: int) -> list[Choice]:
        from random import Random

        return [mutated(choices, ranking(choices), Random(seed), 2) for _ in range(2)]

    assert run(1) == run(1) != run(2)
    found = []
    for _ in range(2):
        course = Course(Known(choices, [1.0, 2.0, 1.0, 3.0, 1.0, 1.0]), Effort(seed=7))
        SEARCHES["evolution"](choices, course)
        found.append((course.best, [line["loss"] for line in course.log]))
    assert found[0] == found[1]


def test_swaps_spend_the_whole_budget_where_costs_are_alike():
    from random import Random

    choices, draw = made_up(), Random(0)
    parent = ranking(choices)
    children = {mutated(choices, parent, draw, swaps) for swaps in (1, 2, 3) for _ in range(20)}
    assert len(children) > 10
    assert {choices.cost(child) for child in children} == {choices.cost(parent)}


def test_swaps_across_unlike_costs_stay_within_the_budget():
    from random import Random

    choices, draw = made_up(cheap=3), Random(0)
    parent = ranking(choices)
    for _ in range(50):
        child = mutated(choices, parent, draw, 2)
        assert choices.fits(child)
        assert choices.cost(child) > choices.most - 3  # nothing is left that would pay for a unit of any site


def test_no_time_leaves_the_ranking():
    choices = made_up()
    judge = Known(choices, [1.0, 8.0, 0.2, 1.0, 5.0, 0.5])
    course = Course(judge, Effort(minutes=0.0))
    course.offer(ranking(choices), "ranking")
    SEARCHES["evolution"](choices, course)
    assert course.best == ranking(choices) and judge.judged == 1


# -- targets


@pytest.mark.parametrize(
    ("wish", "text", "amount"),
    [
        ("params", "100M", 1e8), ("params", "1.5b", 1.5e9), ("params", "30_000", 30000.0), ("bytes", "80MB", 8e7),
        ("bytes", "1GiB", 2.0**30), ("speedup", "1.5x", 1.5), ("latency", "20ms", 0.02), ("latency", "2s", 2.0),
    ],
)  # fmt: skip
def test_what_a_target_says(wish, text: str, amount: float):
    assert parse_target(wish, text) == CostTarget(wish, amount)


@pytest.mark.parametrize(
    ("wish", "text"),
    [("params", "many"), ("params", "-3"), ("bytes", "80MM"), ("speedup", "2s"), ("latency", "20"), ("params", "")],
)
def test_what_no_target_says(wish, text: str):
    with pytest.raises(UserError, match=f"--target-{wish} takes a number like"):
        parse_target(wish, text)


@pytest.mark.parametrize(("wish", "text"), [("speedup", "1"), ("params", "0")])
def test_targets_that_ask_for_nothing(wish, text: str):
    with pytest.raises(UserError, match="must be above"):
        parse_target(wish, text)


@pytest.mark.parametrize("units", [("neurons",), ("neurons", "heads")])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.7])
def test_a_uniform_cut_is_the_largest_that_fits(units, share: float):
    model = tiny_model("llama")
    sites, params = find_sites(model, units), num_params(model)
    costs, target = weight_costs(sites, params), CostTarget("params", share * params)
    keep = uniform_keep(sites, costs, target, multiple_of=4)

    def cost(of: float, kind: str = "neurons") -> float:
        ratios = keep if isinstance(keep, Mapping) else {"neurons": keep}
        shares = {**ratios, kind: of}
        return costs.total(
            {
                s.address: num_kept(
                    s.count, shares[s.address.kind], multiple_of=4 if s.address.kind == "neurons" else 1
                )
                for s in sites
            }
        )

    own = keep["neurons"] if isinstance(keep, Mapping) else keep
    assert cost(own) <= target.amount < cost(own + 4 / 48)


def test_a_target_that_can_not_be_reached_says_the_best():
    model = tiny_model("llama")
    sites, params = find_sites(model), num_params(model)
    costs = weight_costs(sites, params)
    least = int(costs.total({site.address: 4 for site in sites}))
    with pytest.raises(UserError, match=f"the best possible is {least:,} parameters"):
        uniform_keep(sites, costs, CostTarget("params", least - 1), multiple_of=4)
    with pytest.raises(UserError, match=f"the model has {params:,} parameters already"):
        uniform_keep(sites, costs, CostTarget("params", params), multiple_of=4)
    assert uniform_keep(sites, costs, CostTarget("params", least), multiple_of=4) == 4 / 48


def test_a_speed_is_a_share_of_the_dense_time():
    sites = find_sites(tiny_model("llama"))
    curves = {site.address: Curve((0, 24, 48), (0.0, 1.0, 3.0)) for site in sites}
    costs = costs_of("seconds", 12.0, curves)
    assert costs.base == 3 and costs.total(dict.fromkeys(curves, 36)) == 9
    keep = uniform_keep(sites, costs, CostTarget("speedup", 12 / 9))
    assert keep == 36 / 48
    with pytest.raises(UserError, match=r"the best possible is 3\.84 times as fast"):
        uniform_keep(sites, costs, CostTarget("speedup", 5))


def test_budgets_and_searches_are_one_table():
    assert set(SEARCHES) == set(BUDGETS) - {"uniform", "ranking"}
