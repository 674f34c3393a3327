"""Experts of mixtures: mask = cut for every row of the table, scores against plain loops, checkpoints, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from test_bad_input import refused
from tiny_checkpoints import byte_tokenizer
from tiny_checkpoints import lmprune as command
from tiny_mixtures import EXPERTS, NAMES, TOP_K, tiny_mixture
from tiny_models import is_pruned_class, logits, tiny_model, tokens
from torch.nn import functional
from transformers import AutoModelForCausalLM

import lmprune
from lmprune.budget.budget import num_params
from lmprune.budget.selection import select
from lmprune.errors import UserError
from lmprune.export import Order, export
from lmprune.methods import METHODS
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.scores.criteria import CRITERIA, score
from lmprune.scores.statistics import collect
from lmprune.sites.experts import Experts
from lmprune.sites.find import find_sites
from lmprune.sites.masks import masked
from lmprune.sites.mixtures import MIXTURES, is_mixture
from lmprune.sites.proof import trial_cut


def experts_of(model: Any) -> list[Experts]:
    return find_sites(model, ("experts",))  # type: ignore[return-value]


def some(sites: list[Experts], *, different: bool = False) -> list[torch.Tensor]:
    """Half of the experts, or the fewest that may stay, by layer others; of the last layer more, if they differ."""
    kept = []
    for site in sites:
        generator, each = torch.Generator().manual_seed(site.layer), EXPERTS // site.parts
        count = max(each // 2, site.in_group)
        if different and site is sites[-1]:
            count = max(each - 1, count) if count < each - 1 else each
        groups = [torch.randperm(each, generator=generator)[:count].sort().values + each * p for p in range(site.parts)]
        kept.append(torch.cat(groups))
    return kept


def plan_of(model: Any, **how: Any) -> PrunePlan:
    sites = experts_of(model)
    return PrunePlan.of([s.address for s in sites], some(sites, **how), [s.count for s in sites])


def zero_one(kept: torch.Tensor) -> torch.Tensor:
    return torch.zeros(EXPERTS).index_fill(0, kept, 1.0)


def turned(kept: list[torch.Tensor], parts: int) -> list[torch.Tensor]:
    """The next expert of its group instead of each."""
    each = EXPERTS // parts
    return [(kept_K // each * each + (kept_K + 1) % each).sort().values for kept_K in kept]


def test_at_least_twelve_mixtures_and_all_that_the_issue_names() -> None:
    named = "mixtral qwen2_moe qwen3_moe olmoe granitemoe phimoe deepseek_v2 deepseek_v3 glm4_moe gpt_oss ernie4_5_moe"
    assert set(named.split()) <= set(MIXTURES) and len(MIXTURES) >= 12
    assert {name.split("-")[0] for name in NAMES} == set(MIXTURES)


@pytest.mark.parametrize("name", NAMES)
def test_mask_is_cut_and_a_wrong_cut_is_not(name: str) -> None:
    """Also while tokens are written with a cache."""
    model = tiny_mixture(name)
    sites, dense = experts_of(model), logits(model)
    kept = some(sites)
    with masked(sites, [zero_one(kept_K) for kept_K in kept]):
        by_mask, written = logits(model), write(model)
    assert torch.equal(logits(model), dense), "the mask is off again"
    with trial_cut(sites, kept):
        by_cut = logits(model)
        assert torch.equal(write(model), written) and torch.equal(write(model, use_cache=False), written)
    with trial_cut(sites, turned(kept, sites[0].parts)):
        wrong = logits(model)
    assert torch.equal(logits(model), dense), "the experts are back"
    assert torch.allclose(by_mask, by_cut, atol=1e-5)
    assert (by_mask - dense).abs().max() > 1e-2 and (by_mask - wrong).abs().max() > 1e-2


def write(model: Any, **how: Any) -> torch.Tensor:
    return model.generate(tokens(), max_new_tokens=5, do_sample=False, eos_token_id=None, **how)


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_weighs_what_its_loss_takes_away(name: str) -> None:
    """The bias of the choice too, where it is a parameter (afmoe)."""
    model = tiny_mixture(name)
    sites, before = experts_of(model), num_params(model)
    kept = some(sites)
    told = sum(site.params * (site.count - len(units)) for site, units in zip(sites, kept, strict=True))
    for site, units in zip(sites, kept, strict=True):
        site.keep(units)
    assert before - num_params(model) == told > 0


@pytest.mark.parametrize("name", few(NAMES, 3))
def test_uniform_counts_open_in_the_stock_class_and_others_by_the_shim(name: str, tmp_path: Path) -> None:
    """Bit for bit, plan and all; the stock class stops where it can't build the shapes."""
    for different in (False, True):
        model, out = tiny_mixture(name), tmp_path / str(different)
        plan = plan_of(model, different=different)
        lmprune.shrink(model, plan)
        lmprune.save(model, out, plan=plan)
        expected = logits(model)
        assert torch.equal(logits(lmprune.load(out)), expected)
        assert PrunePlan.load(out / PLAN_FILE) == plan
        assert is_pruned_class(model) == different
        stock = AutoModelForCausalLM.from_pretrained
        if not different:
            assert torch.equal(logits(stock(out)), expected) and not (out / "shim.py").exists()
        else:
            with pytest.raises((RuntimeError, ValueError, AttributeError)):
                stock(out)
            assert torch.equal(logits(stock(out, trust_remote_code=True)), expected)


def test_what_was_cut_can_be_cut_again(tmp_path: Path) -> None:
    model = tiny_mixture("mixtral")
    lmprune.shrink(model, plan_of(model, different=True))
    lmprune.save(model, tmp_path / "once")
    again = lmprune.load(tmp_path / "once")
    plan = lmprune.prune(again, units=("experts",), method="router", keep=0.6, scope="global")
    counts = [len(kept) for kept in plan.kept.values()]
    assert sum(counts) == 9 and min(counts) >= TOP_K
    assert [s.count for s in experts_of(again)] == counts and bool(logits(again).isfinite().all())


# scores


def reap_by_hand(model: Any, routed: Any, site: Experts) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of gate · ‖output‖ and the share of the tokens, expert by expert and token by token.

    routed: (a token (D,), the router's logits (E,)) -> [(expert, gate)], as the paper of the model says it.
    """
    seen: list[torch.Tensor] = []
    handle = site.home.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, -2)))
    logits(model, tokens(5, 9))
    handle.remove()
    sums, counts = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
    gate_up, down = site.stacked.gate_up_proj, site.stacked.down_proj  # type: ignore[union-attr]
    for x in seen[0]:
        for expert, gate in routed(site, site.rows() @ x):
            inner = gate_up[expert] @ x  # type: ignore[index]
            half = len(inner) // 2
            output = down[expert] @ (functional.silu(inner[:half]) * inner[half:])  # type: ignore[index]
            sums[expert] += gate * output.norm()
            counts[expert] += 1
    return sums / counts.clamp(min=1), counts / len(seen[0])


def softmax_of_two(_site: Experts, logits_E: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    first, second = sorted(range(EXPERTS), key=lambda e: float(logits_E[e]))[-TOP_K:]
    weights = torch.stack([logits_E[first].exp(), logits_E[second].exp()])
    return list(zip((first, second), weights / weights.sum(), strict=True))


def deepseek_v3(site: Experts, logits_E: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Sigmoids; the bias of the choice counts in it alone; the gates are scaled so that their sum is 2.5."""
    gates = 1 / (1 + (-logits_E).exp())
    wish = gates + site.router.e_score_correction_bias  # type: ignore[operator]
    chosen = sorted(range(EXPERTS), key=lambda e: float(wish[e]))[-TOP_K:]
    return [(e, 2.5 * gates[e] / sum(gates[c] for c in chosen)) for e in chosen]


@pytest.mark.parametrize(("name", "routed"), [("mixtral", softmax_of_two), ("deepseek_v3", deepseek_v3)])
@torch.no_grad()
def test_reap_and_frequency_are_what_a_plain_loop_says(name: str, routed: Any) -> None:
    model = tiny_mixture(name)
    sites, ids = experts_of(model), tokens(5, 9)
    reap, frequency = (score(model, sites, n, ids, batch_size=2) for n in ("reap", "frequency"))
    for site, by_reap, by_frequency in zip(sites, reap, frequency, strict=True):
        mean, share = reap_by_hand(model, routed, site)
        assert torch.allclose(by_reap, mean, rtol=1e-4) and torch.allclose(by_frequency, share)
        assert share.sum() == pytest.approx(TOP_K) and mean.std() > 0.05 * mean.mean()
        norms = torch.tensor([float(row.square().sum().sqrt()) for row in site.rows()])
        assert torch.allclose(score(model, [site], "router")[0], norms)


def test_an_expert_that_no_token_goes_to_scores_nothing() -> None:
    model = tiny_mixture("mixtral")
    sites = experts_of(model)
    with masked(sites, [zero_one(torch.arange(1, EXPERTS))] * len(sites)):
        found = score(model, sites, "reap", tokens()), score(model, sites, "frequency", tokens())
    assert all(s[0] == 0 and (s[1:] > 0).any() for scores in found for s in scores)


def test_the_order_of_experts_means_nothing() -> None:
    """A mixture whose experts are numbered anew has its scores numbered anew, and computes the same."""
    model, other = tiny_mixture("gpt_oss"), tiny_mixture("gpt_oss")
    anew = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(3))
    for site in experts_of(other):
        site.keep(anew)
    assert torch.allclose(logits(model), logits(other), atol=1e-5)
    for name in ("reap", "frequency", "router"):
        pairs = zip(*(score(m, experts_of(m), name, tokens()) for m in (model, other)), strict=True)
        assert all(torch.allclose(before[anew], after, rtol=1e-4) for before, after in pairs)


def test_statistics_of_neurons_and_experts_have_their_own_observers() -> None:
    model = tiny_mixture("mixtral")
    found = collect(model, experts_of(model), tokens(), needs=frozenset({"routed"}))
    assert [int(stats.total("routed").sum()) for stats in found] == [tokens().numel() * TOP_K] * 3
    with pytest.raises(AssertionError, match="gated_norm"):
        found[0].total("gated_norm")


# prune


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if "experts" in row.kinds])
def test_prune_keeps_the_best(method: str) -> None:
    model, ids = tiny_mixture("qwen2_moe"), tokens(4, 10)
    scores = score(model, experts_of(model), method, ids)
    plan = lmprune.prune(model, units=("experts",), method=method, keep=0.5, data=ids)
    best = [tuple(s.topk(EXPERTS // 2).indices.sort().values.tolist()) for s in scores]
    assert list(plan.kept.values()) == best and plan.kinds == ["experts"]
    assert model.config.num_experts == EXPERTS // 2 and [s.count for s in experts_of(model)] == [EXPERTS // 2] * 3


def test_groups_lose_equally_many() -> None:
    model, ids = tiny_mixture("deepseek_v2-groups"), tokens(4, 10)
    scores = score(model, experts_of(model), "reap", ids)
    plan = lmprune.prune(model, units=("experts",), method="reap", keep=0.5, data=ids)
    for kept, s in zip(plan.kept.values(), scores, strict=True):
        assert list(kept) == [pair + int(s[pair : pair + 2].argmax()) for pair in (0, 2, 4, 6)]


def test_global_scope_leaves_each_layer_its_top_k() -> None:
    """And its groups as many each; the shim holds what comes out."""
    model = tiny_mixture("mixtral")
    with torch.no_grad():
        experts_of(model)[0].rows().mul_(1e-3)
    plan = lmprune.prune(model, units=("experts",), method="router", keep=0.5, scope="global")
    counts = [len(kept) for kept in plan.kept.values()]
    assert counts[0] == TOP_K and plan.keep == 0.5 and is_pruned_class(model)
    found = select([torch.arange(8.0), torch.arange(8.0) + 0.5], 0.5, scope="global", parts=[2, 4])
    assert [kept.tolist() for kept in found] == [[2, 3, 6, 7], [1, 3, 5, 7]]


@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_layers_of_unlike_numbers_of_experts_are_still_a_mixture(name: str, tmp_path: Path) -> None:
    """Whose config tells no number for the model as a whole: transformers raises at the question."""
    source = lmprune.save(tiny_mixture(name, vocab_size=257), tmp_path / "in", tokenizer=byte_tokenizer())
    out = tmp_path / "out"
    how = ("--units", "experts", "--method", "random", "--keep", 0.6, "--scope", "global", "--out", out)
    made = command("prune", source, *how, "--json").record
    counts = made["units"]["experts"]["after"]
    assert len({*counts}) > 1 and made["ffn_params_after"] < made["ffn_params_before"]
    told = command("inspect", out, "--json").record
    assert told["params"] == made["params_after"]
    assert {each["kind"]: each["count"] for each in told["units"]}["experts"] == sum(counts)


@pytest.mark.parametrize("name", ["qwen3_moe", "hunyuan_v1_moe", "jamba"])
def test_one_expert_left_is_still_a_mixture(name: str, tmp_path: Path) -> None:
    top_k = {"moe_topk": 1} if name == "hunyuan_v1_moe" else {"num_experts_per_tok": 1}
    model = tiny_mixture(name, vocab_size=257, **top_k)
    source, out = lmprune.save(model, tmp_path / "in", tokenizer=byte_tokenizer()), tmp_path / "out"
    command("prune", source, "--units", "experts", "--method", "router", "--keep", 1 / EXPERTS, "--out", out, "--json")
    told = command("inspect", out, "--json").record
    assert {each["kind"]: each["count"] for each in told["units"]}["experts"] == len(experts_of(model))
    assert all(site.count == 1 for site in experts_of(lmprune.load(out)))


def test_a_jamba_with_one_expert_was_made_a_dense_one() -> None:
    assert not is_mixture(tiny_mixture("jamba", num_experts=1).config)


def test_scores_of_ones_own() -> None:
    model = tiny_mixture("mixtral")
    scores = [torch.arange(EXPERTS).float().roll(i) for i in range(3)]
    plan = lmprune.prune(model, units=("experts",), scores=scores, keep=0.5)
    assert list(plan.kept.values()) == [(4, 5, 6, 7), (0, 5, 6, 7), (0, 1, 6, 7)]


# refusals


@pytest.mark.parametrize(
    ("name", "how", "match"),
    [
        ("mixtral", {"keep": 0.125}, "1 of 8 experts would stay, and 2 are needed .*keep at least 0.25"),
        ("deepseek_v3-groups", {"keep": 0.25}, "2 of 8 experts would stay, and 4 are needed"),
        ("mixtral", {"method": "activation"}, "'activation' has no score for experts; these have: random, reap"),
        ("mixtral", {"method": "flap"}, "'flap' has no score for experts"),
        ("mixtral", {"method": None}, "'obs' has no score for experts"),
        ("mixtral", {"units": ("neurons",)}, "method 'reap' has no score|mixture of experts"),
    ],
)
def test_what_cant_be_is_refused_before_anything_is_cut(name: str, how: dict[str, Any], match: str) -> None:
    model = tiny_mixture(name)
    before = logits(model)
    with pytest.raises(UserError, match=match):
        lmprune.prune(model, **{"units": ("experts",), "method": "reap", "data": tokens(), **how})
    assert torch.equal(logits(model), before)


def test_models_without_experts_say_so() -> None:
    with pytest.raises(UserError, match="llama is a dense model: it has no experts to remove"):
        find_sites(tiny_model("llama"), ("experts",))
    with pytest.raises(UserError, match="method 'reap' has no score for neurons"):
        lmprune.prune(tiny_model("llama"), method="reap", data=tokens())
    with pytest.raises(UserError, match="criterion 'reap' has no score for neurons; it has for experts"):
        score(tiny_model("llama"), find_sites(tiny_model("llama")), "reap", tokens())
    with pytest.raises(UserError, match="has no score for neurons"):
        lmprune.GradualPruner(tiny_model("llama"), method="reap", keep=0.5, num_steps=10)


def test_plans_that_leave_too_few_or_groups_uneven_are_refused() -> None:
    for name, kept, match in (
        ("mixtral", [0], "1 of 8 experts would stay"),
        ("deepseek_v3-groups", [0, 1, 2, 3, 4, 5, 6], "each of which must keep equally many; got 4, 3"),
    ):
        model = tiny_mixture(name)
        addresses = [site.address for site in experts_of(model)]
        plan = PrunePlan.of(addresses, [torch.tensor(kept)] * len(addresses), [EXPERTS] * len(addresses))
        with pytest.raises(UserError, match=match):
            lmprune.shrink(model, plan)
        assert [site.count for site in experts_of(model)] == [EXPERTS] * len(addresses)


def test_export_of_a_mixture_to_onnx_is_refused_and_nothing_written(tmp_path: Path) -> None:
    """The other targets: test_gguf_mixtures."""
    lmprune.save(tiny_mixture("mixtral", vocab_size=257), tmp_path / "in", tokenizer=byte_tokenizer())
    sentence = refused("export", tmp_path / "in", "--to", "onnx", "--out", tmp_path / "out")
    assert "torch can't write the experts of mixtral to ONNX; use --to gguf or hf-uniform" in sentence
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_export_of_uneven_experts_to_vllm_says_what_helps(tmp_path: Path) -> None:
    model = tiny_mixture("mixtral")
    with torch.no_grad():
        experts_of(model)[0].rows().mul_(1e-3)
    lmprune.prune(model, units=("experts",), method="router", keep=0.5, scope="global")
    with pytest.raises(UserError, match=r"one number of experts for all layers.*prune them with --scope local"):
        export(Order(model, [], None, None, "tiny"), tmp_path / "out", "vllm", verify=False)


def test_every_criterion_says_what_it_scores() -> None:
    assert {name for name, rule in CRITERIA.items() if "experts" in rule.kinds} >= {"reap", "frequency", "router"}
    assert "experts" not in CRITERIA["magnitude"].kinds
