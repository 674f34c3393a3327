"""What a target promises: the model costs at most that, and what cannot be reached is refused with what can."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoints import byte_tokenizer, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture
from tiny_models import tiny_model, tokens

from lmprune import prune
from lmprune.budget.budget import Budget, num_params
from lmprune.budget.costs import Curve, costs_of, counts_before, weight_costs
from lmprune.budget.search import Budgeting
from lmprune.budget.selection import num_kept
from lmprune.budget.target import CostTarget, Wish, parse_target, uniform_keep
from lmprune.checkpoints import checkpoint
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.jobs.unit_kinds import unit_kinds
from lmprune.plan import PrunePlan
from lmprune.sites.address import Address
from lmprune.sites.find import find_sites

#: and what a parameter costs
WISHES: tuple[tuple[Wish, int], ...] = (("params", 1), ("bytes", 4))


def with_heads(*counts: int, **changes: Any) -> Any:
    """A model whose layers have so many heads left, of eight."""
    model = tiny_model("llama", num_attention_heads=8, num_key_value_heads=8, head_dim=4, **changes)
    at = [Address("heads", layer) for layer in range(len(counts))]
    return shrink(model, PrunePlan.of(at, [torch.arange(count) for count in counts], [8] * len(counts)))


def within(params: float) -> Budget:
    return Budget(CostTarget("params", params))


# -- layers of unlike numbers of units


@pytest.mark.parametrize("units", [("heads",), ("neurons", "heads")])
def test_a_target_names_no_ratio_that_each_layer_must_come_near(units: Any) -> None:
    params = num_params(with_heads(2, 8, 8))
    for share in (0.95, 0.9, 0.85):
        model = with_heads(2, 8, 8)
        plan = prune(model, units=units, method="magnitude", multiple_of=1, budget=within(share * params))
        assert plan.settings["cost"]["after"] == num_params(model) <= share * params
        keep = plan.settings["keep"]
        of_heads = keep if units == ("heads",) else keep["heads"]
        heads = [len(kept) for at, kept in plan.kept.items() if at.kind == "heads"]
        assert of_heads == sum(heads) / 18  # as it came out, and not what one layer's was rounded from
    with pytest.raises(UserError, match=r"0\.7 of 2 heads can't be kept"):  # a ratio that somebody named
        prune(with_heads(2, 8, 8), units=("heads",), method="magnitude", keep=0.7)


def test_each_layer_keeps_what_was_paid_for() -> None:
    draw = random.Random(1)
    for _ in range(300):
        heads = [SimpleNamespace(kind="heads", count=draw.randint(26, 64), params=4000) for _ in range(3)]
        units = [*heads, *(SimpleNamespace(kind="neurons", count=400, params=100) for _ in range(3))]
        places: Any = [
            SimpleNamespace(address=Address(u.kind, i), count=u.count, params=u.params, parts=1, least=1)
            for i, u in enumerate(units)
        ]
        costs = weight_costs(places, 2_000_000)
        most = draw.uniform(0.75, 0.99) * 2_000_000
        keep: Any = uniform_keep(places, costs, CostTarget("params", most))
        left = {a: num_kept(count, keep[a.kind]) for a, count in counts_before(places).items()}
        assert costs.total(left) <= most


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3-groups"])
def test_the_best_possible_is_possible(name: str) -> None:
    with pytest.raises(UserError, match="the best possible is") as told:
        prune(tiny_mixture(name), units=("experts",), method="random", budget=within(1))
    best = int(str(told.value).split()[4].replace(",", ""))
    with pytest.raises(UserError, match=f"the best possible is {best:,} parameters"):
        prune(tiny_mixture(name), units=("experts",), method="random", budget=within(best - 1))
    model = tiny_mixture(name)
    plan = prune(model, units=("experts",), method="random", budget=within(best))
    assert num_params(model) == best == plan.settings["cost"]["after"]
    assert all(site.count == site.least for site in find_sites(model, ("experts",)))


@pytest.mark.parametrize(
    ("target", "best"),
    [
        (CostTarget("bytes", 1), r"([\d.,]+ MB)"),
        (CostTarget("speedup", 99), r"([\d.]+) times"),
        (CostTarget("latency", 1e-6), r"([\d.,]+ ms)"),
    ],
)
@pytest.mark.parametrize("least", [1.001, 1.2345])
def test_what_is_told_as_the_best_is_not_refused_either(target: CostTarget, best: str, least: float) -> None:
    places: Any = find_sites(tiny_model("llama"))
    of: Any
    of, each = ("bytes", 1e9) if target.wish == "bytes" else ("seconds", 1.0)
    curves = {site.address: Curve((0, 1, 48), (0.0, least * each, 4 * each)) for site in places}
    costs = costs_of(of, 12 * each, curves)
    with pytest.raises(UserError, match="the best possible is") as told:
        uniform_keep(places, costs, target)
    (found,) = re.findall(best, str(told.value))
    assert uniform_keep(places, costs, parse_target(target.wish, found)) == 1 / 48


def test_while_a_model_trains_too(text: Path, tmp_path: Path) -> None:
    dense = with_heads(2, 8, 8, vocab_size=257, bos_token_id=256, eos_token_id=256)
    checkpoint.save(dense, tmp_path / "dense", tokenizer=byte_tokenizer())
    most = int(0.95 * num_params(dense))
    how = ("--units", "heads", "--method", "magnitude", "--steps", 12, "--seq-len", 32, "--data", text)
    told = lmprune("prune", tmp_path / "dense", "--out", tmp_path / "out", *how, "--target-params", most, "--json")
    assert told.record["params_after"] <= most
    refused = lmprune("prune", tmp_path / "dense", "--out", tmp_path / "none", *how, "--keep", 0.7)
    assert refused.code == 2 and "0.7 of 2 heads can't be kept" in refused.err


# -- layers of unlike widths


def of_widths(*widths: int) -> Any:
    return shrink(tiny_model("llama"), PrunePlan.of_neurons([range(width) for width in widths], [48] * len(widths)))


@pytest.mark.parametrize("scores", [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])  # the lightest goes first, or last
@pytest.mark.parametrize("units", [("layers",), ("ffns",), ("attentions",)])
def test_whichever_of_unlike_layers_go(units: Any, scores: list[float]) -> None:
    dense = num_params(of_widths(2, 48, 48))
    (site,) = find_sites(of_widths(2, 48, 48), units)
    most, lightest, heaviest = dense - sum(site.unit_params) // 3, min(site.unit_params), max(site.unit_params)
    for target in (dense - 1, most, dense - lightest, dense - heaviest):
        for wish, each in WISHES:
            model, budget = of_widths(2, 48, 48), Budget(CostTarget(wish, target * each))
            plan = prune(model, units=units, scores=[torch.tensor(scores)], budget=budget)
            after = sum(parameter.numel() for parameter in model.parameters())
            assert plan.settings["cost"]["before"] == dense * each
            assert plan.settings["cost"]["after"] == after * each <= target * each


def test_what_is_told_of_unlike_layers_beforehand(tmp_path: Path) -> None:
    model, kinds = of_widths(2, 47, 48), ("layers", "ffns", "attentions")
    weights = {kind: find_sites(model, (kind,))[0].unit_params for kind in kinds}  # type: ignore[attr-defined]
    told = unit_kinds(model, params=num_params(model), cache_itemsize=4)
    assert {each["kind"]: each["params"] for each in told if each["kind"] in kinds} == {
        kind: sum(each) for kind, each in weights.items()
    }
    plan = PrunePlan.of_neurons([range(2), range(47), range(48)], [48] * 3)
    checkpoint.save(model, tmp_path / "cut", plan=plan)
    for units, lightest in (("layers", "layers"), ("layers,ffns", "layers"), ("ffns", "ffns")):
        how = (
            "--out",
            tmp_path / "out",
            "--units",
            units,
            "--method",
            "random",
            "--keep",
            2 / 3,
            "--dry-run",
            "--json",
        )
        most = lmprune("prune", tmp_path / "cut", *how).record["params_after"]
        assert most == num_params(model) - weights[lightest][0]


@pytest.mark.parametrize("part", ["ffns", "attentions"])
def test_layers_and_their_parts_share_no_target(part: Any) -> None:
    model = tiny_model("llama")
    for units in (("layers", part), (part, "layers")):
        with pytest.raises(UserError, match=f"layers and {part} can't share a target"):
            prune(model, units=units, method="random", budget=within(1e4))
    prune(model, units=("layers", part), method="random", keep=2 / 3)


# -- what a method adds


@pytest.mark.parametrize("units", [("neurons",), ("heads",), ("neurons", "heads")])
@pytest.mark.parametrize("biased", [False, True])
def test_a_bias_that_a_cut_adds_is_paid_for(units: Any, biased: bool) -> None:
    def fresh() -> Any:
        return tiny_model("llama", mlp_bias=biased, num_key_value_heads=4)

    dense, text = num_params(fresh()), tokens(8, 32)
    for share in (1 - 1 / dense, 0.95, 0.9, 0.845):
        for wish, each in WISHES:
            model, budget = fresh(), Budget(CostTarget(wish, share * dense * each))
            plan = prune(model, units=units, method="flap", data=text, multiple_of=1, budget=budget)
            assert plan.settings["cost"]["after"] == each * num_params(model) <= share * dense * each
            costs = budget.costs(find_sites(fresh(), units), fresh(), adds_bias=True)
            assert costs.total({at: len(kept) for at, kept in plan.kept.items()}) == each * num_params(model)


def test_a_bias_is_told_of_beforehand(text: Path, tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", mlp_bias=False)
    how = (
        "--method",
        "flap",
        "--multiple-of",
        1,
        "--data",
        text,
        "--calibration-tokens",
        256,
        "--seq-len",
        64,
        "--json",
    )
    for most in (("--keep", 0.5, "--scope", "local"), ("--target-params", 30_000)):
        record = lmprune("prune", dense, "--out", tmp_path / most[0], *how, *most).record
        told = lmprune("prune", dense, "--out", tmp_path / "out", *how, *most, "--dry-run").record
        assert told["params_after"] == record["params_after"]


# -- all of it together


def cut_before(seed: int, units: Any) -> Any:
    """A model whose layers differ, as rankings over all of them leave it."""
    draw = random.Random(seed)
    if units[0] in ("experts", "expert_neurons"):
        model, kinds = tiny_mixture(draw.choice(["mixtral", "deepseek_v3-groups", "gpt_oss"])), ("experts",)
    else:
        model, kinds = with_heads(8, 8, 8, mlp_bias=draw.random() < 0.5), ("neurons", "heads")
    for kind in kinds:
        sites: Any = find_sites(model, (kind,))  # type: ignore[arg-type]
        scores = [torch.tensor([draw.random() + site.layer / 4 for _ in range(site.count)]) for site in sites]
        how: Any = {"units": (kind,), "scope": "global", "multiple_of": 1}
        prune(model, scores=scores, keep=draw.uniform(0.6, 0.9), **how)
    return model


#: a method of each kind of solver, the units that it may remove, and how they share a budget
ASKED: list[tuple[str, tuple[Any, ...], Budgeting]] = [
    ("random", ("neurons",), "uniform"),
    ("random", ("heads",), "uniform"),
    ("random", ("neurons", "heads"), "uniform"),
    ("flap", ("neurons", "heads"), "uniform"),
    ("obs", ("neurons", "heads"), "uniform"),
    ("obs", ("neurons",), "ranking"),
    ("obs", ("heads",), "ranking"),
    ("obs", ("neurons", "heads"), "ranking"),
    ("shortgpt", ("layers",), "uniform"),
    ("random", ("ffns",), "uniform"),
    ("random", ("attentions", "ffns"), "uniform"),
    ("random", ("experts",), "uniform"),
    ("magnitude", ("expert_neurons",), "uniform"),
]


@pytest.mark.parametrize(("method", "units", "by"), ASKED)
@pytest.mark.parametrize("seed", range(2))
def test_a_target_is_never_exceeded(method: str, units: Any, by: Any, seed: int) -> None:
    draw, met = random.Random(seed), 0
    for wish, each in WISHES * 2:
        model = cut_before(seed, units)
        dense = num_params(model)
        most = draw.uniform(0.6, 1) * dense
        how: Any = {"units": units, "method": method, "multiple_of": 8 if units == ("expert_neurons",) else 1}
        try:
            plan = prune(model, data=tokens(8, 16), seed=seed, budget=Budget(CostTarget(wish, most * each), by), **how)
        except UserError as error:
            assert "the best possible is" in str(error)
            continue
        met += 1
        assert plan.settings["cost"]["before"] == dense * each
        assert plan.settings["cost"]["after"] == num_params(model) * each <= most * each
    assert met, "and it is not always refused"
