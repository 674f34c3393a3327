"""Key/value groups through the same sites, criteria, solver and masks as neurons."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import few
from test_statistics import ids_of
from tiny_models import NAMES, is_pruned_class, logits, tiny_model, tokens
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lmprune.budget.selection import select
from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import record_shapes, shrink
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.scores.criteria import CRITERIA, score
from lmprune.sites.families import ATTENTION, COUPLED_HEADS, FAMILIES
from lmprune.sites.find import find_sites
from lmprune.sites.masks import COMPUTES, Compute, UnitMasks, masked
from lmprune.sites.proof import trial_cut
from lmprune.sites.site import Site
from lmprune.solve.elimination import LeastSquares, eliminate
from lmprune.solve.obs import obs

GROUPS, GROUP, HEAD = 4, 2, 8  # key/value groups, query heads of each, inputs of o that a head writes


OF_HEADS = sorted(name for name, rule in CRITERIA.items() if "heads" in rule.kinds)


def llama(**changes: Any) -> Any:
    return tiny_model("llama", num_attention_heads=GROUPS * GROUP, num_key_value_heads=GROUPS, head_dim=HEAD, **changes)


def heads_of(model: Any) -> list[Site]:
    return find_sites(model, ("heads",))


KEPT = [torch.tensor([0, 2]), torch.tensor([1, 2, 3]), torch.tensor([3])]


def zero_one(kept: torch.Tensor) -> torch.Tensor:
    return torch.zeros(GROUPS).index_fill(0, kept, 1.0)


def test_a_unit_is_a_group_with_its_queries_key_and_value() -> None:
    site = heads_of(llama())[1]
    assert (site.count, site.size, site.width) == (GROUPS, GROUP * HEAD, GROUPS * GROUP * HEAD)
    assert [w.shape for w in site.writers()] == [(GROUPS * GROUP * HEAD, 32), (GROUPS * HEAD, 32), (GROUPS * HEAD, 32)]
    assert site.params == (GROUP * HEAD + HEAD + HEAD) * 32 + GROUP * HEAD * 32


def test_mask_is_cut_and_a_wrong_cut_is_not() -> None:
    model = llama()
    sites, dense = heads_of(model), logits(model)
    with masked(sites, [zero_one(kept) for kept in KEPT]):
        by_mask = logits(model)
    with trial_cut(sites, KEPT):
        by_cut = logits(model)
    with trial_cut(sites, [(kept + 1) % GROUPS for kept in KEPT]):
        wrong = logits(model)
    assert torch.allclose(by_mask, by_cut, atol=1e-5)
    assert not torch.allclose(by_mask, dense, atol=1e-3) and not torch.allclose(by_mask, wrong, atol=1e-3)
    assert torch.equal(logits(model), dense)


@pytest.mark.parametrize("compute", COMPUTES)
def test_masks_that_stay_compute_the_cut_and_give_scores_the_sum_over_the_run(compute: Compute) -> None:
    model = llama()
    masks = UnitMasks(model, heads_of(model), learned=True, compute=compute)
    masks.set(KEPT)
    seen: list[torch.Tensor] = []
    masks[0].observer = lambda h, _kept: seen.append(h)  # type: ignore[assignment]
    model.train()
    out = model(ids_of(), labels=ids_of())
    h = torch.autograd.grad(out.loss, masks.scores[0])[0]
    masks.detach()
    cut = shrink(llama(), plan_of(llama(), KEPT))
    assert torch.allclose(out.logits, cut(ids_of()).logits, atol=1e-5)

    site, grads = heads_of(cut)[0], []

    def watch(_linear: Any, args: tuple[torch.Tensor, ...]) -> None:
        args[0].register_hook(lambda grad: grads.append((args[0].detach() * grad).flatten(0, 1).sum(0)))

    site.reader_linear.register_forward_pre_hook(watch)
    cut(ids_of(), labels=ids_of()).loss.backward()
    assert torch.allclose(h[KEPT[0]], grads[0].view(-1, GROUP * HEAD).sum(1), atol=1e-6)
    assert seen[0].shape[-1] == (GROUPS if compute == "full" else len(KEPT[0])) * GROUP * HEAD


def plan_of(model: Any, kept: list[torch.Tensor]) -> PrunePlan:
    sites = heads_of(model)
    return PrunePlan.of([s.address for s in sites], kept, [s.count for s in sites])


@pytest.mark.parametrize("name", OF_HEADS)
def test_every_criterion_scores_groups(name: str) -> None:
    """A group whose columns of o are zero matters to no criterion that looks at what it does."""
    model = llama()
    site = heads_of(model)[1]
    with torch.no_grad():
        site.reader()[site.inputs_of(torch.tensor([2]))] = 0
        for writer in site.writers():
            writer.unflatten(0, (GROUPS, -1))[2] = 0
        for bias in site.writer_biases():
            bias.unflatten(0, (GROUPS, -1))[2] = 0
    scores = score(model, heads_of(model), name, ids_of())
    assert [s.shape for s in scores] == [(GROUPS,)] * 3
    if name != "random":
        assert int(scores[1].argmin()) == 2


def error_of(problem: LeastSquares, dense_FD: torch.Tensor, kept: list[int]) -> float:
    """½ E‖x W_K - x W0‖² + the ridge, at the least-squares W_K."""
    units = torch.tensor(kept)
    change_FD = dense_FD.clone().neg()
    change_FD[problem.rows(units)] += problem.refit(units)
    return float(0.5 * (change_FD * (problem.gram_FF @ change_FD)).sum())


def test_elimination_by_runs_is_exact() -> None:
    """Each removal's cost is the growth of the least-squares error, and the first is the cheapest of all."""
    torch.manual_seed(0)
    count, size = 6, 3
    x_NF = torch.randn(200, count * size, dtype=torch.float64) @ torch.randn(18, 18, dtype=torch.float64)
    reader_FD = torch.randn(count * size, 5, dtype=torch.float64)
    moment_FF = x_NF.T @ x_NF / 200
    problem = LeastSquares.of(moment_FF, moment_FF @ reader_FD, reader_FD, rel_damp=1e-3, size=size)
    for step in (1, 32):
        found = eliminate(problem, until=2, step=step)
        left = list(range(count))
        before = 0.0
        for unit, cost in zip(found.gone.tolist(), found.cost.tolist(), strict=True):
            errors = {u: error_of(problem, reader_FD, [v for v in left if v != u]) for u in left}
            assert unit == min(errors, key=errors.get)  # type: ignore[arg-type]
            left.remove(unit)
            assert cost == pytest.approx(errors[unit] - before, rel=1e-6)
            before = errors[unit]
        assert found.kept.tolist() == sorted(left)


def test_a_run_of_one_is_a_neuron() -> None:
    torch.manual_seed(1)
    x_NF, reader_FD = torch.randn(100, 12, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    moment_FF = x_NF.T @ x_NF / 100
    one = LeastSquares.of(moment_FF, moment_FF @ reader_FD, reader_FD, rel_damp=1e-3)
    found = eliminate(one, until=4, step=1)
    W, H, alive = reader_FD.clone(), torch.linalg.inv(one.gram_FF), list(range(12))
    for unit in found.gone.tolist():
        costs = {j: float(0.5 * W[j].norm() ** 2 / H[j, j]) for j in alive}
        assert unit == min(costs, key=costs.get)  # type: ignore[arg-type]
        share = H[:, unit].clone() / H[unit, unit]
        W, H = W - share.outer(W[unit]), H - share.outer(H[unit])
        alive.remove(unit)


def test_obs_on_heads_beats_what_it_replaces() -> None:
    """Cut by obs, the logits are nearer the dense model's than with the same groups cut and nothing refitted."""
    ids = torch.randint(0, 128, (8, 32), generator=torch.Generator().manual_seed(3))
    dense = logits(llama())
    pruned, plain = llama(), llama()
    kept = obs(pruned, heads_of(pruned), ids, 0.5, multiple_of=1)
    assert [len(units) for units in kept] == [GROUPS // 2] * 3
    shrink(plain, plan_of(plain, kept))
    assert (logits(pruned) - dense).norm() < 0.9 * (logits(plain) - dense).norm()


def test_heads_and_neurons_in_one_walk() -> None:
    model, ids = llama(), ids_of()
    sites = find_sites(model, ("neurons", "heads"))
    assert [str(s.address) for s in sites[:3]] == ["heads.0", "neurons.0", "heads.1"]
    kept = obs(model, sites, ids, 0.5, multiple_of=1)
    assert [len(k) for k in kept] == [2, 24] * 3 and [s.count for s in sites] == [2, 24] * 3
    record_shapes(model)
    assert not is_pruned_class(model) and model.config.num_key_value_heads == 2 and model.config.head_dim == HEAD


@pytest.mark.parametrize("uniform", [True, False])
def test_checkpoints_and_plans_of_heads(uniform: bool, tmp_path: Path) -> None:
    kept = [torch.tensor([0, 2])] * 3 if uniform else KEPT
    plan = plan_of(llama(), kept)
    assert PrunePlan.from_json(plan.to_json()) == plan and plan.kinds == ["heads"]
    model = shrink(llama(), plan)
    assert is_pruned_class(model) != uniform
    again = models.load(checkpoint.save(model, tmp_path / "out", plan=plan))
    assert torch.equal(logits(again), logits(model))
    prompt = ids_of()[:1, :8]
    with_cache, without = (
        again.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=c) for c in (True, False)
    )
    assert torch.equal(with_cache, without)
    with pytest.raises(UserError, match=r"3 layers of 4 heads, but the model has 3 layers of 1 to 3 heads|of 2 heads"):
        shrink(again, plan)


def test_learned_scores_rank_groups() -> None:
    model = llama()
    masks = UnitMasks(model, heads_of(model), learned=True, compute="gathered")
    with torch.no_grad():
        for scores in masks.scores:
            scores.copy_(torch.tensor([1.0, -1.0, 2.0, 0.0]))
    masks.set(select(masks.whole_scores(), 0.5, scope="local"))
    assert [kept.tolist() for kept in masks.kept] == [[0, 2]] * 3
    masks.detach()


#: what a case of `tiny_models` needs so that a layer has 4 units: 4 groups of 2 query heads, where it can have groups
_OWN: dict[str, dict[str, Any]] = {
    "falcon-new": {"num_attention_heads": 8, "num_kv_heads": 4},
    "helium": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
}

#: variants of the attention: case -> (case of `tiny_models`, changes)
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {"attention_bias": True}),
    "as_many_groups_as_heads": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "one_group": ("gemma3_text", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "one_group_fused": ("phi3", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "one_group_interleaved": ("falcon-new", {"num_attention_heads": 4, "num_kv_heads": 1}),
    "many_groups": ("falcon-old", {"multi_query": False}),
    "many_groups_fused": ("gpt_bigcode", {"multi_query": False}),
    "norm_of_head": ("phi", {"qk_layernorm": True, "num_attention_heads": 4, "num_key_value_heads": 4}),
}

CAN = [name for name in NAMES if name.split("-")[0] in ATTENTION] + sorted(_VARIANTS)


def model_of(case: str) -> Any:
    """A tiny model with 4 units in each layer."""
    name, changes = _VARIANTS.get(case, (case, _OWN.get(case, {})))
    known = {f.name for f in dataclasses.fields(CONFIG_MAPPING[name.split("-")[0]])}
    groups = {"num_attention_heads": GROUPS * GROUP, "num_key_value_heads": GROUPS, "head_dim": HEAD}
    return tiny_model(name, **(groups if "num_key_value_heads" in known else {}) | changes)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * a.std())


@pytest.mark.parametrize("case", CAN)
def test_every_family_mask_is_cut_and_a_wrong_cut_is_not(case: str) -> None:
    model = model_of(case)
    sites, dense = heads_of(model), logits(model)
    assert [site.count for site in sites] == [GROUPS] * 3
    with masked(sites, [zero_one(kept) for kept in KEPT]):
        by_mask = logits(model)
    with trial_cut(sites, KEPT):
        by_cut = logits(model)
    with trial_cut(sites, [((kept + 1) % GROUPS).sort().values for kept in KEPT]):
        wrong = logits(model)
    assert close(by_mask, by_cut) and not close(by_mask, dense) and not close(by_mask, wrong)
    assert torch.equal(logits(model), dense)
    masks = UnitMasks(model, sites, learned=False, compute="gathered")
    masks.set(KEPT)
    assert close(logits(model), by_mask)
    masks.detach()
    assert torch.equal(logits(model), dense)


@pytest.mark.parametrize("case", few(CAN))
def test_every_family_saves_reloads_and_generates(case: str, tmp_path: Path) -> None:
    """Different counts by the shim, one count as a plain model where the stock class can have it."""
    before = model_of(case)
    model = shrink(model_of(case), plan_of(before, KEPT))
    assert is_pruned_class(model)
    again = models.load(checkpoint.save(model, tmp_path / "shim"))
    assert type(again) is type(model) and [site.count for site in heads_of(again)] == [2, 3, 1]
    assert torch.equal(logits(again), logits(model))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    prompt = ids_of()[:1, :10]
    cached, plain = (
        again.generate(prompt, use_cache=cache, return_dict_in_generate=True, **options) for cache in (True, False)
    )
    assert close(torch.stack(cached.logits), torch.stack(plain.logits))

    model = shrink(before, plan_of(before, [KEPT[0]] * 3))
    stock_can = ATTENTION[model.config.model_type].in_config and case != "norm_of_head"
    assert is_pruned_class(model) is not stock_can
    path = checkpoint.save(model, tmp_path / "uniform")
    assert torch.equal(logits(models.load(path)), logits(model))
    if stock_can:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), logits(model))
    else:
        with pytest.raises((RuntimeError, ValueError)):  # the stock class must not load it into other shapes
            AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)


def test_a_count_that_the_stock_config_refuses_goes_by_the_shim(tmp_path: Path) -> None:
    """LlamaConfig wants a number of heads that divides the width: 6 heads don't divide 32."""
    model = shrink(llama(), plan_of(llama(), [KEPT[1]] * 3))
    assert is_pruned_class(model) and model.config.num_attention_heads == GROUPS * GROUP
    assert torch.equal(logits(models.load(checkpoint.save(model, tmp_path / "out"))), logits(model))


def test_one_group_of_a_cut_layer_is_still_a_group() -> None:
    model = shrink(llama(), plan_of(llama(), KEPT))
    assert [(site.count, site.size) for site in heads_of(model)] == [(2, 16), (3, 16), (1, 16)]


def test_a_layer_with_counts_of_its_own_sees_the_config_of_the_model() -> None:
    """phi3 reads the number of heads off the config; everything else that it reads there must follow the model's."""
    model = shrink(model_of("phi3"), plan_of(model_of("phi3"), KEPT))
    model = copy.deepcopy(model)
    seen = model.model.layers[0].self_attn.config
    assert seen.num_attention_heads == 4 and model.config.num_attention_heads == GROUPS * GROUP
    before = logits(model)
    model.set_attn_implementation("eager")
    assert seen._attn_implementation == "eager"
    assert close(logits(model), before)


@pytest.mark.parametrize("case", ["gpt2", "falcon-new", "gpt_bigcode", "phi3", "one_group"])
def test_every_criterion_scores_every_layout(case: str) -> None:
    """A unit that does nothing is the least, of whatever linear its rows are."""
    model = model_of(case)
    site = heads_of(model)[1]
    with torch.no_grad():
        site.reader()[site.inputs_of(torch.tensor([2]))] = 0
        for rows in [*site.writers(), *site.writer_biases()]:
            rows.unflatten(0, (GROUPS, -1))[2] = 0
    for name in OF_HEADS:
        scores = score(model, heads_of(model), name, ids_of())
        assert [s.shape for s in scores] == [(GROUPS,)] * 3
        # where all heads read one value, a head whose queries are zero puts something out, though nothing reads it
        looks_at_outputs_only = name == "two_ssp" and case in ("gpt_bigcode", "one_group")
        assert name == "random" or looks_at_outputs_only or int(scores[1].argmin()) == 2, name


@pytest.mark.parametrize("case", ["gpt2", "one_group"])
def test_obs_refits_other_layouts(case: str) -> None:
    ids = torch.randint(1, 128, (8, 32), generator=torch.Generator().manual_seed(3))
    dense, pruned = logits(model_of(case)), model_of(case)
    kept = obs(pruned, heads_of(pruned), ids, 0.5, multiple_of=1)
    plain = shrink(model_of(case), plan_of(model_of(case), kept))
    assert (logits(pruned) - dense).norm() < (logits(plain) - dense).norm()


@pytest.mark.conformance
def test_a_fresh_process_opens_them_with_the_code_that_they_carry(tmp_path: Path) -> None:
    expected = []
    for case in ("phi3", "gpt2"):
        model = shrink(model_of(case), plan_of(model_of(case), KEPT))
        checkpoint.save(model, tmp_path / case)
        expected.append(float(logits(model).double().abs().sum()))
    code = """
import sys, torch
sys.modules["lmprune"] = None
from transformers import AutoModelForCausalLM
ids = torch.tensor(eval(sys.argv[3]))
for path in sys.argv[1:3]:
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    with torch.no_grad():
        print(float(model(ids).logits.double().abs().sum()))
"""
    args = [str(tmp_path / "phi3"), str(tmp_path / "gpt2"), str(tokens().tolist())]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, env=environment
    )
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("case", "changes", "sentence"),
    [
        ("bloom", {}, "bloom models can't be pruned by heads: the bias on its attention depends on a head's index"),
        ("mpt", {}, "mpt models can't be pruned by heads: the bias on its attention depends on a head's index"),
        ("falcon-new", {"alibi": True}, "falcon models with alibi can't be pruned by heads: the bias on its attention"),
        ("olmo2", {}, "olmo2 models can't be pruned by heads: a norm over the queries of all heads"),
        ("olmo3", {}, "olmo3 models can't be pruned by heads: a norm over the queries of all heads"),
        ("diffllama", {}, "diffllama models can't be pruned by heads: its heads work in pairs"),
        ("codegen", {}, "codegen models can't be pruned by heads: its heads lie in four parts"),
        ("cohere", {"use_qk_norm": True}, "cohere models with use_qk_norm can't be .* each head has a norm of its own"),
        ("stablelm", {"qk_layernorm": True}, "stablelm models with qk_layernorm can't be .* a norm of its own"),
    ],
)
def test_families_whose_heads_can_not_go_say_why(case: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        heads_of(tiny_model(case, **changes))


def test_every_family_has_heads_or_a_reason() -> None:
    assert set(FAMILIES) == set(ATTENTION) | set(COUPLED_HEADS)
    always = {model_type for model_type, (field, _) in COUPLED_HEADS.items() if not field}
    assert not always & set(ATTENTION)


def test_unknown_units_say_so() -> None:
    with pytest.raises(UserError, match="unknown unit 'head'; did you mean heads"):
        find_sites(llama(), ("head",))  # type: ignore[arg-type]
