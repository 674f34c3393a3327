"""The table of methods, and the repair that one of them uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_statistics import ids_of, tiny
from tiny_models import WIDTH

import lmprune
from lmprune.budget.selection import select
from lmprune.errors import UserError
from lmprune.gradual.optimizing import SCORE_LR
from lmprune.gradual.ranking import Ranking
from lmprune.gradual.soft import SoftThreshold
from lmprune.methods import METHODS, Method, get_method, methods_table, needs_text
from lmprune.scores.criteria import CRITERIA, score
from lmprune.scores.layers import LAYER_RULES
from lmprune.scores.penalties import PENALTIES
from lmprune.sites.find import find_sites
from lmprune.solve.bias import bias_compensation
from lmprune.solve.learned import Learned
from lmprune.solve.obs import PLAIN, Obs
from lmprune.solve.scored import Scored

NAMES = (
    "magnitude random activation fluctuation taylor sensitivity obs plain_obs wanda_sp flap two_ssp minitron llm_pruner"
    " reap frequency router shortgpt ppl_without sleb gum top_v hard soft anti_gum"
)


def test_the_table_is_complete_and_consistent():
    assert set(METHODS) == set(NAMES.split())
    for name, method in METHODS.items():
        assert method.name == name and method.summary and method.source
        assert method.scope in ("local", "global") and method.refit in ("none", "bias", "obs")
        assert (method.record()["criterion"] == "obs") == (method.refit == "obs")
        assert method.criterion in CRITERIA or method.record()["criterion"] in ("obs", "movement", *LAYER_RULES)
        assert method.penalty in PENALTIES and (method.learned or method.penalty == "none")
    assert {name for name, method in METHODS.items() if method.learned} == set("gum top_v hard soft anti_gum".split())
    assert (METHODS["flap"].criterion, METHODS["flap"].scope, METHODS["flap"].refit) == (
        "fluctuation",
        "global",
        "bias",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["obs"].scope = "global"  # type: ignore[misc]


def test_a_method_is_a_value():
    """Its solver holds all that was told by comparing names; what users give as text is the same value."""
    assert METHODS["plain_obs"].solver == Obs(PLAIN) and METHODS["obs"].solver == Obs() != Obs(PLAIN)
    assert Method("mine", "obs", refit="obs").solver == METHODS["obs"].solver
    assert Method("mine", "fluctuation", "global", "bias").solver == METHODS["flap"].solver
    assert METHODS["flap"].solver == Scored(CRITERIA["fluctuation"], adds_bias=True)
    assert Method("mine", "movement").solver == METHODS["gum"].solver == Learned()
    assert [name for name, method in METHODS.items() if method.solver == Learned(threshold=True)] == ["soft"]
    assert {name: method.pressure for name, method in METHODS.items() if method.pressure} == {
        "gum": PENALTIES["uniqueness"], "anti_gum": PENALTIES["anti_uniqueness"], "soft": PENALTIES["l1"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at_all", "chosen"),
    [
        ("obs", True, True),
        ("flap", True, True),
        ("taylor", True, False),
        ("random", False, False),
        ("gum", False, False),
    ],
)
def test_who_reads_text(name: str, at_all: bool, chosen: bool):
    assert (needs_text(METHODS[name]), needs_text(METHODS[name], chosen=True)) == (at_all, chosen)


def test_a_bias_goes_with_any_criterion():
    """It reads the statistic that it needs itself."""
    model, scored = tiny("llama"), Method("mine", "magnitude", refit="bias")
    plan = lmprune.prune(model, method=scored, keep=0.5, multiple_of=8, data=ids_of())
    assert plan.kept == lmprune.prune(tiny("llama"), method="magnitude", keep=0.5, multiple_of=8).kept
    assert all(site.reader_bias() is not None for site in find_sites(model))


@pytest.mark.parametrize(("name", "rows"), [("taylor", 3), ("activation", 8)])
def test_a_few_tokens_are_read_backwards_and_all_of_them_forwards(name: str, rows: int, monkeypatch):
    ids = ids_of(8)
    monkeypatch.setattr("lmprune.solve.scored.GRADIENT_TOKENS", 3 * ids.shape[1])
    plan = lmprune.prune(tiny("llama"), method=name, keep=0.5, multiple_of=8, data=ids)
    expected = score(model := tiny("llama"), find_sites(model), name, ids[:rows])
    assert plan.scores is not None
    for found, wanted in zip(plan.scores.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("how", [{"seed": 1}, {"scope": "global"}, {"multiple_of": 24}, {}])
def test_what_stays_is_what_the_scores_say_as_it_was_asked(how: Any):
    asked: dict[str, Any] = {"scope": "local", "multiple_of": 8, "seed": 0} | how
    plan = lmprune.prune(tiny("llama"), method="random", keep=0.4, **asked)
    scores = score(model := tiny("llama"), find_sites(model), "random", seed=asked["seed"])
    assert [k.tolist() for k in plan.indices()] == [k.tolist() for k in select(scores, 0.4, **asked)]
    usual = lmprune.prune(tiny("llama"), method="random", keep=0.4, scope="local", multiple_of=8)
    assert (plan.kept == usual.kept) == (not how), "control: what was asked makes the difference"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("mine", "obs"), "the criterion 'obs' takes the refit 'obs', not 'none'"),
        (
            ("mine", "magnitude", "local", "obs"),
            "the criterion 'magnitude' takes the refit 'bias' or 'none', not 'obs'",
        ),
        (("mine", "movement", "local", "bias"), "the criterion 'movement' takes the refit 'none', not 'bias'"),
    ],
)
def test_a_refit_that_the_criterion_has_no_place_for(row: Any, sentence: str):
    with pytest.raises(UserError, match=sentence):
        get_method(Method(*row))


def test_an_own_method_s_penalty_does_not_bring_the_threshold():
    """λ(t) then falls with the keep ratio, as where neurons are ranked; the threshold is the solver's."""
    ranked = Method("mine", "movement", penalty="l1")
    pruner = lmprune.GradualPruner(tiny("llama"), method=ranked, keep=0.5, num_steps=10)
    assert type(pruner.chooser) is Ranking and pruner.score_lr == SCORE_LR
    assert pruner.penalty_weight() == pruner.settings.penalty_weight / 0.5
    pruner.finish(early=True)
    soft = Method("mine", Learned(threshold=True), penalty="l1")
    with pytest.raises(UserError, match="method 'mine' has a threshold for all layers, and no --scope"):
        lmprune.GradualPruner(model := tiny("llama"), method=soft, keep=0.5, num_steps=10, scope="global")
    assert type(lmprune.GradualPruner(model, method=soft, keep=0.5, num_steps=10).chooser) is SoftThreshold


def test_an_unknown_method_teaches():
    assert get_method("magnitude") is METHODS["magnitude"]
    with pytest.raises(UserError, match=r"unknown method 'magnitud'; did you mean magnitude.*known: obs, "):
        get_method("magnitud")


def test_the_markdown_table_has_a_row_a_method_and_seven_cells_each():
    lines = methods_table().splitlines()
    assert len(lines) == 2 + len(METHODS) and set(lines[1]) == set("| -")
    for line, name in zip(lines[2:], METHODS, strict=True):
        cells = line.replace(r"\|", "").strip("|").split("|")
        assert len(cells) == 7 and cells[0].strip() == f"`{name}`"


@pytest.mark.parametrize("name", ["mistral", "gpt2", "phi3", "opt"])  # no bias on `down`; Conv1D; fused; bias
def test_removing_constant_neurons_changes_nothing_after_bias_compensation(name):
    model, ids = tiny(name), ids_of()
    ffns, constants = find_sites(model), {2: 0.7, 9: -1.3, 47: 2.0}
    kept = torch.tensor([j for j in range(WIDTH) if j not in constants])

    def freeze(_module, args):
        h = args[0].clone()
        for neuron, value in constants.items():
            h[..., neuron] = value
        return (h,)

    handles = [ffn.reader_linear.register_forward_pre_hook(freeze) for ffn in ffns]
    mean_h = torch.randn(WIDTH, dtype=torch.float64)  # of neurons that stay: must not matter
    mean_h[list(constants)] = torch.tensor(list(constants.values()), dtype=torch.float64)
    with torch.no_grad():
        dense = model(ids).logits
    for handle in handles:
        handle.remove()

    for ffn in ffns:
        before = [p.clone() for linear in ffn.linears for p in linear.parameters()]
        reader, bias = bias_compensation(ffn, kept, mean_h)
        assert all(
            torch.equal(a, b) for a, b in zip(before, [p for m in ffn.linears for p in m.parameters()], strict=True)
        )
        ffn.keep(kept)
        with torch.no_grad():
            without = model(ids).logits
        ffn.set_reader(reader, bias)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense, rtol=1e-5, atol=1e-5)
    assert (without - dense).abs().max() > 1e-2, "control: the repair must be what makes them equal"


def test_bias_compensation_leaves_the_mean_output_unchanged_on_real_statistics():
    from lmprune.scores.statistics import collect

    model, ids = tiny("opt"), ids_of()
    ffn = find_sites(model)[0]
    outputs: list[torch.Tensor] = []
    ffn.reader_linear.register_forward_hook(lambda m, args, out: outputs.append(out.detach().reshape(-1, 32).mean(0)))
    stats = collect(model, [ffn], ids, needs=frozenset({"sum_h"}), batch_size=5)[0]
    reader, bias = bias_compensation(ffn, kept := torch.arange(0, WIDTH, 2), stats.per_token("sum_h"))
    ffn.keep(kept)
    with torch.no_grad():
        model(ids)
    ffn.set_reader(reader, bias)
    with torch.no_grad():
        model(ids)
    dense, cut, repaired = outputs
    assert (cut - dense).abs().max() > 1e-2
    torch.testing.assert_close(repaired, dense, rtol=1e-9, atol=1e-9)
