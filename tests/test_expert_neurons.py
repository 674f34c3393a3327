"""Neurons inside experts: mask = cut for every mixture, statistics against plain loops, checkpoints, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from tiny_mixtures import EXPERTS, NAMES, tiny_mixture
from tiny_models import is_pruned_class, logits, tokens
from torch.nn import functional
from transformers import AutoModelForCausalLM

import lmprune
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.scores.criteria import CRITERIA, score
from lmprune.sites.expert_neurons import ExpertNeurons
from lmprune.sites.find import find_sites
from lmprune.sites.masks import masked
from lmprune.sites.proof import trial_cut


def places(model: Any) -> list[ExpertNeurons]:
    return find_sites(model, ("expert_neurons",))  # type: ignore[return-value]


def some(site: ExpertNeurons, share: float = 1 / 3) -> torch.Tensor:
    """Other neurons of each expert."""
    generator, count = torch.Generator().manual_seed(site.address.layer), round(site.width * share)
    chosen = [torch.randperm(site.width, generator=generator)[:count].sort().values for _ in range(site.parts)]
    return torch.cat([units + expert * site.width for expert, units in enumerate(chosen)])


def the_next(site: ExpertNeurons, kept: torch.Tensor) -> torch.Tensor:
    moved = [((units + 1) % site.width).sort().values for units in site.split(kept)]
    return torch.cat([units + expert * site.width for expert, units in enumerate(moved)])


@pytest.mark.parametrize("name", NAMES)
def test_mask_is_cut_and_a_wrong_cut_is_not(name: str) -> None:
    model = tiny_mixture(name)
    sites, dense = places(model), logits(model)
    kept = [some(site) for site in sites]
    with masked(sites, [torch.zeros(s.count).index_fill(0, units, 1.0) for s, units in zip(sites, kept, strict=True)]):
        by_mask = logits(model)
    assert torch.equal(logits(model), dense), "the mask is off again"
    with trial_cut(sites, kept):
        by_cut = logits(model)
    with trial_cut(sites, [the_next(site, units) for site, units in zip(sites, kept, strict=True)]):
        wrong = logits(model)
    assert torch.equal(logits(model), dense), "the neurons are back"
    assert torch.allclose(by_mask, by_cut, atol=1e-5)
    assert (by_mask - dense).abs().max() > 1e-2 and (by_mask - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("name", few(NAMES, 3))
def test_checkpoints_give_back_the_same_logits(name: str, tmp_path: Path) -> None:
    """Bit for bit: one width in all layers, and different ones, which the stock class must not open."""
    for shares in ((1 / 3, 1 / 3, 1 / 3), (1 / 3, 1, 2 / 3)):
        model, out = tiny_mixture(name), tmp_path / f"{shares[1]:.1f}"
        sites = places(model)
        kept = [some(site, shares[site.address.layer]) for site in sites]
        plan = PrunePlan.of([s.address for s in sites], kept, [s.count for s in sites])
        lmprune.shrink(model, plan)
        lmprune.save(model, out, plan=plan)
        expected = logits(model)
        assert torch.equal(logits(lmprune.load(out)), expected)
        if not is_pruned_class(model):
            assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), expected)
        else:
            with pytest.raises((RuntimeError, ValueError, AttributeError)):
                AutoModelForCausalLM.from_pretrained(out)
            assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)), expected)


def test_one_width_is_a_config_field_where_experts_have_one_of_their_own() -> None:
    for name, key in (("mixtral", "intermediate_size"), ("qwen2_moe", "moe_intermediate_size")):
        model = tiny_mixture(name)
        before = getattr(model.config, key)
        lmprune.prune(model, units=("expert_neurons",), method="magnitude", keep=1 / 3, multiple_of=8)
        assert getattr(model.config, key) == before // 3 and not is_pruned_class(model)
    model = tiny_mixture("hunyuan_v1_moe")  # whose shared expert has the width of the same field
    lmprune.prune(model, units=("expert_neurons",), method="magnitude", keep=1 / 3, multiple_of=8)
    assert is_pruned_class(model)


# scores


class Loop:
    """A mixture layer token by token, mixtral's formula: (expert, gate, inner (I,)) of each token's experts."""

    def __init__(self, model: Any, layer: int):
        self.moe = model.model.layers[layer].mlp
        self.gate_up, self.down = self.moe.experts.gate_up_proj, self.moe.experts.down_proj

    def of(self, x: torch.Tensor) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        shares = (self.moe.gate.weight @ x).softmax(0)
        chosen = shares.topk(2).indices.tolist()
        found = []
        for expert in chosen:
            gate, up = (self.gate_up[expert] @ x).chunk(2)
            found.append((expert, shares[expert] / shares[chosen].sum(), functional.silu(gate) * up))
        return found


def entering(model: Any, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """What enters the mixture, (B, T, D)."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[layer].mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    logits(model, ids)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_activation_is_over_the_tokens_that_go_to_the_expert() -> None:
    model, ids = tiny_mixture("mixtral"), tokens(4, 9)
    for layer, found in enumerate(score(model, places(model), "activation", ids)):
        loop, squares, counts = Loop(model, layer), torch.zeros(EXPERTS, 48), torch.zeros(EXPERTS)
        for x in entering(model, layer, ids).flatten(0, 1):
            for expert, _, inner in loop.of(x):
                squares[expert] += inner.square()
                counts[expert] += 1
        expected = (squares / counts[:, None].clamp(min=1)).sqrt() * loop.down.norm(dim=1)
        assert torch.allclose(found, expected.flatten(), rtol=1e-4) and counts.min() >= 0


def test_taylor_is_the_first_order_of_each_sequence() -> None:
    """∂(loss)/∂(mask) at a mask of ones is Σ h · ∂L/∂h: by finite differences of the masked model.

    In float64 but for the router's softmax, hence the large step."""
    model, ids, step = tiny_mixture("mixtral").double(), tokens(3, 9), 1e-2
    model.set_experts_implementation("eager")  # which is the one that takes float64
    sites = places(model)
    found = score(model, sites, "taylor", ids)[1]
    for unit in (int(found.argmax()), int(found.median(0).indices), 5, 100):
        changes = []
        for row in ids.split(1):
            losses = []
            for value in (1 + step, 1 - step):
                mask = torch.ones(sites[1].count, dtype=torch.float64).index_fill(0, torch.tensor([unit]), value)
                with masked([sites[1]], [mask]), torch.no_grad():
                    losses.append(float(functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:])))
            changes.append(abs(losses[0] - losses[1]) / (2 * step))
        assert float(found[unit]) == pytest.approx(sum(changes) / 3, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("name", [name for name, rule in CRITERIA.items() if "expert_neurons" in rule.kinds])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_neuron_that_does_nothing_is_the_last(name: str, family: str) -> None:
    model = tiny_mixture(family)
    site = places(model)[1]
    seam = site.seams()[3]
    with torch.no_grad():
        seam.reader()[7] = 0
        for rows in (*seam.writers(), *seam.writer_biases()):
            site_rows = rows if len(rows) == seam.count else rows.unflatten(0, (seam.count, -1))
            site_rows[7] = 0
    scores = score(model, places(model), name, tokens(6, 12))
    assert [s.shape for s in scores] == [(site.count,) for site in places(model)]
    if name != "random":
        assert int(scores[1].view(EXPERTS, -1)[3].argmin()) == 7


def test_an_expert_without_tokens_has_scores_too() -> None:
    model = tiny_mixture("mixtral")
    (first, *_) = find_sites(model, ("experts",))
    with masked([first], [torch.arange(EXPERTS) > 0]):
        for name in ("activation", "taylor", "llm_pruner", "fluctuation"):
            found = score(model, places(model), name, tokens())[0].view(EXPERTS, -1)
            assert bool((found[0] == 0).all()) and bool((found[1:] != 0).any()), name


def test_views_are_the_models_own_memory() -> None:
    for family in ("mixtral", "gpt_oss"):
        model = tiny_mixture(family)
        before, seam = logits(model), places(model)[0].seams()[2]
        with torch.no_grad():
            seam.writers()[0][:] *= 2
        assert not torch.equal(logits(model), before)


# prune


@pytest.mark.parametrize("method", ["activation", "taylor", "magnitude", "random"])
def test_each_expert_keeps_its_best(method: str) -> None:
    model, ids = tiny_mixture("qwen3_moe"), tokens(4, 10)
    scores = score(model, places(model), method, ids)
    plan = lmprune.prune(model, units=("expert_neurons",), method=method, keep=1 / 3, data=ids, multiple_of=8)
    for kept, found in zip(plan.kept.values(), scores, strict=True):
        best = found.view(EXPERTS, -1).topk(8).indices + torch.arange(EXPERTS)[:, None] * 24
        assert list(kept) == best.sort().values.flatten().tolist()
    again = tiny_mixture("qwen3_moe")
    lmprune.shrink(again, plan)
    assert torch.equal(logits(again), logits(model))


def test_what_cant_be_is_refused() -> None:
    model, ids = tiny_mixture("mixtral"), tokens()
    before = logits(model)
    for how, match in (
        ({"units": ("experts", "expert_neurons"), "method": "random"}, "go one after the other"),
        ({"units": ("expert_neurons",), "method": "reap"}, "'reap' has no score for expert_neurons"),
        ({"units": ("expert_neurons",), "method": "flap"}, "'flap' has no score for expert_neurons"),
        ({"units": ("expert_neurons",), "method": "random", "multiple_of": 64}, "no neuron could go"),
        (
            {"units": ("expert_neurons",), "method": "random", "multiple_of": 3, "keep": 0.3},
            "15 of 48 neurons of each",
        ),
    ):
        with pytest.raises(UserError, match=match):
            lmprune.prune(model, **{"keep": 0.5, "data": ids, **how})
    uneven = PrunePlan.of([s.address for s in places(model)], [torch.arange(50)] * 3, [EXPERTS * 48] * 3)
    with pytest.raises(UserError, match="each must keep equally many neurons, not 48, 2, 0"):
        lmprune.shrink(model, uneven)
    assert torch.equal(logits(model), before)


# obs


def routed_inner(model: Any, layer: int, expert: int, ids: torch.Tensor) -> torch.Tensor:
    """What enters the reader of an expert, (its tokens, I)."""
    loop = Loop(model, layer)
    return torch.stack([h for x in entering(model, layer, ids).flatten(0, 1) for e, _, h in loop.of(x) if e == expert])


@torch.no_grad()
def test_obs_refits_each_expert_on_its_own_tokens() -> None:
    """The first layer's readers against least squares by torch.linalg.lstsq, with plain_obs's small ridge."""
    model, ids = tiny_mixture("mixtral"), tokens(40, 24)
    dense = tiny_mixture("mixtral")
    plan = lmprune.prune(model, units=("expert_neurons",), method="plain_obs", keep=1 / 3, data=ids, multiple_of=8)
    site = places(dense)[0]
    kept = site.split(plan.indices([site.address])[0])
    checked = 0
    for expert in range(EXPERTS):
        x_NF, reader_FD = routed_inner(dense, 0, expert, ids), site.seams()[expert].reader()
        if len(x_NF) < 2 * site.width:
            continue
        ridge = (1e-3 * x_NF.square().mean()).sqrt() * len(x_NF) ** 0.5
        rows = torch.cat([x_NF[:, kept[expert]], ridge * torch.eye(16)])
        wanted = torch.cat([x_NF @ reader_FD, ridge * reader_FD[kept[expert]]])
        solved = torch.linalg.lstsq(rows.double(), wanted.double()).solution
        found = places(model)[0].seams()[expert].reader()
        assert torch.allclose(found.double(), solved, atol=2e-3 * float(solved.std()))
        assert not torch.allclose(found, reader_FD[kept[expert]], atol=1e-2 * float(solved.std()))
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_obs_is_nearer_to_the_dense_model_than_a_choice_without_refit(family: str) -> None:
    ids, away = tokens(24, 24), {}
    dense = logits(tiny_mixture(family), ids)
    for method in ("obs", "plain_obs", "activation"):
        model = tiny_mixture(family)
        plan = lmprune.prune(model, units=("expert_neurons",), method=method, keep=2 / 3, data=ids, multiple_of=8)
        away[method] = float((logits(model, ids) - dense).square().mean())
        assert all(len(kept) == site.count for kept, site in zip(plan.kept.values(), places(model), strict=True))
        assert (
            all(bool(s.isinf().sum() == len(plan.kept[a])) for a, s in (plan.scores or {}).items()) or method[0] == "a"
        )
    assert max(away["obs"], away["plain_obs"]) < away["activation"]


def test_obs_repairs_for_a_plan_and_takes_experts_without_tokens() -> None:
    ids = tokens(8, 12)
    model = tiny_mixture("mixtral")
    plan = lmprune.prune(model, units=("expert_neurons",), method="plain_obs", keep=1 / 3, data=ids, multiple_of=8)
    again = tiny_mixture("mixtral")
    lmprune.prune(again, plan=plan, data=ids)
    assert torch.allclose(logits(again), logits(model), atol=1e-4)
    few = tiny_mixture("mixtral")
    lmprune.prune(few, units=("expert_neurons",), method="obs", keep=1 / 3, data=tokens(1, 2), multiple_of=8)
    assert bool(logits(few).isfinite().all())
    with pytest.raises(UserError, match="use scope local for expert_neurons"):
        lmprune.prune(few, units=("expert_neurons",), method="obs", keep=0.5, scope="global", data=ids, multiple_of=8)
