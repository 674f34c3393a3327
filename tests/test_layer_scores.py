"""Scores of layers against the long way, and the refit of what stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_layers import model_of, plan_of, site_of
from tiny_models import is_pruned_class, logits, tiny_model, tokens
from torch import Tensor

from lmprune import GradualPruner, prune
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.progress import silent
from lmprune.scores.layers import LAYER_RULES, LayerRule, block_influence, loss_without, score_layers
from lmprune.scores.redundancy import similarities
from lmprune.sites.address import LAYER_KINDS, Address, Kind
from lmprune.sites.find import find_sites
from lmprune.sites.layers import Layers
from lmprune.solve.layers import Dropped
from lmprune.solve.obs import ObsSettings
from lmprune.solve.targets import layer_problems

IDS = tokens(6, 20, seed=5)
LAYERS = 4


def llama() -> Any:
    return tiny_model("llama", num_hidden_layers=LAYERS)


@torch.no_grad()
def around(model: Any, layer: int, inside: str | None = None) -> tuple[Tensor, Tensor]:
    """The stream where it enters a block, or a module inside, and where it leaves the block."""
    seen: list[Tensor] = []
    block = model.model.layers[layer]
    entered = block if inside is None else block.get_submodule(inside)
    handles = [
        entered.register_forward_pre_hook(lambda _m, args: seen.append(args[0])),
        block.register_forward_hook(lambda _m, _args, out: seen.append(out)),
    ]
    model(IDS)
    for handle in handles:
        handle.remove()
    return seen[0], seen[1]


def far(a: Tensor, b: Tensor) -> float:
    dot = (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())
    return float((1 - dot).mean())


def test_block_influence_is_one_minus_the_cosine_of_the_stream() -> None:
    model = llama()
    for layer in range(LAYERS):
        zeroed = copy.deepcopy(model)
        zeroed.model.layers[layer].self_attn.o_proj.weight.data.zero_()
        expected = {
            "layers": far(*around(model, layer)),
            "ffns": far(*around(model, layer, "post_attention_layernorm")),
            "attentions": far(around(zeroed, layer)[1], around(model, layer)[1]),
        }
        for kind in LAYER_KINDS:
            found = block_influence(model, site_of(model, kind), IDS)
            assert float(found[layer]) == pytest.approx(expected[kind], rel=1e-4)


def by_hand_without(model: Any, layer: int) -> Any:
    """A new model with one layer fewer, of the other's parameters."""
    smaller = tiny_model("llama", num_hidden_layers=LAYERS - 1)
    left = [i for i in range(LAYERS) if i != layer]
    state = model.state_dict()
    for name in smaller.state_dict():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(left[int(parts[2])])
        smaller.state_dict()[name].copy_(state[".".join(parts)])
    return smaller


@torch.no_grad()
def mean_loss(model: Any) -> float:
    log_p = model(IDS).logits.log_softmax(-1)
    return float(-sum(log_p[b, t, IDS[b, t + 1]] for b in range(6) for t in range(19)) / (6 * 19))


def test_loss_without_is_the_loss_of_the_smaller_model() -> None:
    model = llama()
    found = loss_without(model, site_of(model, "layers"), IDS)
    for layer in range(LAYERS):
        assert float(found[layer]) == pytest.approx(mean_loss(by_hand_without(model, layer)), rel=1e-5)
    for kind in ("attentions", "ffns"):
        found = loss_without(model, site_of(model, kind), IDS)
        for layer in range(LAYERS):
            zeroed = copy.deepcopy(model)
            block = zeroed.model.layers[layer]
            for linear in (block.self_attn.o_proj,) if kind == "attentions" else (block.mlp.down_proj,):
                for parameter in linear.parameters():
                    parameter.data.zero_()
            assert float(found[layer]) == pytest.approx(mean_loss(zeroed), rel=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "falcon-old", "gemma3_text", "bloom", "opt"])
def test_the_walk_s_loss_is_the_model_s_in_other_families(case: str) -> None:
    """Blocks that put out tuples, sliding windows, alibi, flattened streams."""
    model = model_of(case)
    site = site_of(model, "layers")
    found = loss_without(model, site, IDS)
    for unit in range(site.count):
        end = site.without([unit])
        assert float(found[unit]) == pytest.approx(mean_loss(model), rel=1e-5)
        end()


def test_one_by_one_scores_what_is_left_again() -> None:
    model = llama()
    site = site_of(model, "layers")
    rule = LAYER_RULES["sleb"]
    scores = score_layers(rule, model, site, IDS, until=2)
    first = int(loss_without(model, site, IDS).argmin())
    left = [i for i in range(LAYERS) if i != first]
    smaller = shrink(copy.deepcopy(model), plan_of(model, {"layers": torch.tensor(left)}))
    then = loss_without(smaller, site_of(smaller, "layers"), IDS)
    second = left[int(then.argmin())]
    assert {first, second} == set(scores.isfinite().nonzero().flatten().tolist())
    assert float(scores[second]) == pytest.approx(float(then.min()), rel=1e-5)
    assert logits(model, IDS).isfinite().all() and not site.blocks[0]._forward_hooks


def test_what_went_one_by_one_is_not_asked_for_again() -> None:
    rule = LayerRule(lambda *_what: torch.tensor([1.0, 2.0, 3.0, 4.0]), 8192, one_by_one=True)
    scores = score_layers(rule, llama(), site_of(llama(), "layers"), IDS, until=2)
    assert scores.tolist() == [1.0, 2.0, torch.inf, torch.inf]


@pytest.mark.parametrize("case", ["llama", "gpt2", "falcon-old", "opt", "bloom", "granite"])
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_readers_that_stay_bring_the_stream_back(case: str, kind: Any) -> None:
    """The logits are nearer the dense model's than where nothing is refitted; with nothing to make up for, none is."""
    if case == "bloom" and kind != "layers":
        return
    ids = torch.randint(1, 128, (12, 32), generator=torch.Generator().manual_seed(3))
    dense = model_of(case)
    kept = torch.tensor([0, 2, 3, 4])
    plain = shrink(copy.deepcopy(dense), plan_of(dense, {kind: kept}))
    idle, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    for model, share in ((idle, 0.0), (refitted, 1.0)):
        solver = Dropped("random", ObsSettings(compensation=share))
        solver.carry_out(model, [site_of(model, kind)], ids, [kept], silent)
    assert torch.equal(logits(idle, ids), logits(plain, ids))
    target = logits(dense, ids)
    assert (logits(refitted, ids) - target).norm() < 0.9 * (logits(plain, ids) - target).norm()
    assert site_of(refitted, kind).count == 4


def test_a_model_with_gaps_loses_more_and_is_refitted() -> None:
    """Units are numbered among those that are there."""
    ids = torch.randint(1, 128, (12, 32), generator=torch.Generator().manual_seed(3))
    model = shrink(llama(), plan_of(llama(), {"attentions": torch.tensor([1, 2, 3])}))
    target, plain = (
        logits(model, ids),
        shrink(copy.deepcopy(model), plan_of(model, {"attentions": torch.tensor([1, 2])})),
    )
    site = site_of(model, "attentions")
    Dropped("random", ObsSettings(compensation=1)).carry_out(model, [site], ids, [torch.tensor([1, 2])], silent)
    assert site.members == [2, 3] and find_sites(model, ("attentions",))[0].count == 2
    assert (logits(model, ids) - target).norm() < 0.9 * (logits(plain, ids) - target).norm()


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_several_kinds_at_once_and_norms_after_the_reader(case: str) -> None:
    """Refitted without what goes of either kind; where a norm follows the reader, nothing is."""
    ids = torch.randint(1, 128, (12, 32), generator=torch.Generator().manual_seed(3))
    model, target = model_of(case), logits(model_of(case), ids)
    kept: dict[Kind, Tensor] = {"attentions": torch.tensor([0, 2, 3, 4]), "layers": torch.tensor([0, 1, 2, 4])}
    plain = shrink(model_of(case), plan_of(model, kept))
    places = [site for site in find_sites(model, ("attentions", "layers")) if isinstance(site, Layers)]
    solver = Dropped("random", ObsSettings(compensation=1))
    solver.carry_out(model, places, ids, [kept[place.address.kind] for place in places], silent)
    left = float((logits(model, ids) - target).norm() / (logits(plain, ids) - target).norm())
    assert left < 0.5 if case == "llama" else torch.equal(logits(model), logits(plain))


#: a method for layers -> its scores, taken apart
BY_HAND: dict[str, Any] = {
    "shortgpt": block_influence,
    "ppl_without": loss_without,
    "obs": block_influence,
    "random": lambda model, site, ids: torch.rand(site.count, generator=torch.Generator().manual_seed(7)),
}


@pytest.mark.parametrize("method", [*BY_HAND, "sleb"])
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_prune_by_every_method_that_has_a_score(method: str, kind: Any) -> None:
    model, dense = llama(), llama()
    plan = prune(model, units=(kind,), method=method, keep=0.75, data=IDS, seed=7)
    assert plan.kinds == [kind] and plan.counts_before == {Address(kind, 0): LAYERS}
    (kept,) = plan.indices()
    if method in BY_HAND:
        scores = BY_HAND[method](dense, site_of(dense, kind), IDS)
        assert kept.tolist() == scores.argsort(descending=True)[:3].sort().values.tolist()
        assert plan.scores is not None and torch.allclose(plan.scores[Address(kind, 0)], scores)
    assert site_of(model, kind).count == 3 and is_pruned_class(model) is (kind != "layers")
    cut = shrink(dense, plan)
    assert method == "obs" or torch.equal(logits(model), logits(cut))
    again = prune(llama(), plan=plan, data=IDS)
    assert again.kept == plan.kept
    assert again.settings["keep"] == 0.75 and again.settings["method"] == method


@pytest.mark.parametrize(
    ("units", "method", "sentence"),
    [
        (
            ("layers",),
            "taylor",
            "method 'taylor' has no score for layers; these have: obs, random, shortgpt, ppl_without, sleb$",
        ),
        (("attentions",), "flap", "method 'flap' has no score for attentions"),
        (
            ("neurons",),
            "shortgpt",
            "method 'shortgpt' has no score for neurons; these have: obs, plain_obs, activation",
        ),
        (("neurons", "layers"), "obs", "neurons and layers are not chosen in one step: prune by one, and then by the"),
        (("layers",), "gum", "learns its scores while the model trains|has no score for layers"),
    ],
)
def test_what_has_no_score_is_refused(units: Any, method: str, sentence: str) -> None:
    model, before = llama(), logits(llama())
    with pytest.raises(UserError, match=sentence) as caught:
        prune(model, units=units, method=method, keep=0.5, data=IDS)
    assert "\n" not in str(caught.value) and torch.equal(logits(model), before)


def test_training_by_a_score_of_layers_is_refused() -> None:
    with pytest.raises(UserError, match="method 'shortgpt' has no score for neurons"):
        GradualPruner(llama(), method="shortgpt", keep=0.5, num_steps=10)


def test_something_stays() -> None:
    """Of every kind the best unit stays, however little is kept; an empty plan is none, and one of what can't be."""
    model = llama()
    with pytest.raises(UserError, match=r"0\.01 of 4 layers can't be kept; keep 0\.25 or 0\.5"):
        prune(model, units=("layers",), method="shortgpt", keep=0.01, data=IDS)
    prune(model, units=("layers",), method="shortgpt", keep=0.25, data=IDS)
    assert model.config.num_hidden_layers == 1 and logits(model).isfinite().all()
    with pytest.raises(UserError, match="plan: no layers would stay; keep at least one"):
        PrunePlan({Address("layers", 0): ()}, {Address("layers", 0): 4})
    with pytest.raises(UserError, match="no ffn would be left"):
        shrink(llama(), plan_of(llama(), {"ffns": torch.tensor([0]), "layers": torch.tensor([1, 2])}))


def test_the_walk_goes_through_blocks_without_a_site() -> None:
    """What later layers see is the model's, also where a block has no feed-forward layer, or no seam at all."""
    model = llama()
    shrink(model, plan_of(model, {"ffns": torch.tensor([0, 2, 3])}))
    site = find_sites(model)[1]
    assert site.layer == 2
    seen: list[Tensor] = []
    handle = site.reader_linear.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1).double()))
    logits(model, IDS)
    handle.remove()
    expected = seen[0].T @ seen[0] / len(seen[0])
    for sequential in (True, False):
        problems = layer_problems(model, find_sites(model), IDS, sequential=sequential, rel_damp=0.0)
        (gram,) = (problem.gram_FF for place, problem in problems if place.layer == 2)
        assert torch.allclose(gram[:-1, :-1] if len(gram) > len(expected) else gram, expected, rtol=1e-4)
    cosines = expected / expected.diagonal().sqrt().outer(expected.diagonal().sqrt())
    found = list(similarities(model, find_sites(model), IDS))
    assert len(found) == 3
    assert torch.allclose(found[1].nearest_F, cosines.fill_diagonal_(-1).max(1).values, atol=1e-5)


def test_given_scores_choose_layers_too() -> None:
    model = llama()
    plan = prune(model, units=("layers",), scores={"layers.0": torch.tensor([0.3, 0.1, 0.2, 0.4])}, keep=0.5)
    assert plan.kept == {Address("layers", 0): (0, 3)} and model.config.num_hidden_layers == 2
    frame = plan.to_frame()
    assert frame[frame.kept].unit.tolist() == [0, 3] and set(frame.kind) == {"layers"}
