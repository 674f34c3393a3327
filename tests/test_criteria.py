"""Conformance of every criterion on every family, with a planted useless neuron as control, and the exact formulas."""

from __future__ import annotations

import pytest
import torch
from test_statistics import KINDS, ids_of, tiny
from tiny_models import LAYERS, WIDTH
from tiny_models import NAMES as FAMILY_NAMES

from lmprune.errors import UserError
from lmprune.scores.criteria import CRITERIA, criterion, get_criterion, score, score_from
from lmprune.scores.statistics import GRADIENT, SeamStatistics, collect
from lmprune.sites.find import find_sites
from lmprune.sites.site import Site

NAMES = "magnitude random activation fluctuation taylor sensitivity wanda_sp two_ssp minitron llm_pruner"


def test_all_criteria_are_registered():
    assert set(NAMES.split()) <= set(CRITERIA)
    assert all(name == rule.name for name, rule in CRITERIA.items())
    assert {n for n in NAMES.split() if CRITERIA[n].needs_gradients} == {"taylor", "sensitivity", "llm_pruner"}
    assert {n for n in NAMES.split() if not CRITERIA[n].needs_data} == {"magnitude", "random"}
    with pytest.raises(UserError, match="unknown criterion 'activaton'; did you mean activation"):
        get_criterion("activaton")


@torch.no_grad()
def plant_useless_neuron(ffn: Site, neuron: int) -> None:
    for rows in (*ffn.writers(), *ffn.writer_biases(), ffn.reader()):
        rows[neuron] = 0


def check_conformance(model, input_ids) -> None:
    """Every criterion: shape, dtype, finite, reproducible, and the useless neuron of each layer last."""
    ffns = find_sites(model)
    useless = [(3 * layer + 1) % ffn.width for layer, ffn in enumerate(ffns)]
    for ffn, neuron in zip(ffns, useless, strict=True):
        plant_useless_neuron(ffn, neuron)
    statistics = collect(model, ffns, input_ids, needs=frozenset().union(*(CRITERIA[n].needs for n in NAMES.split())))
    for name in NAMES.split():
        scores = score_from(ffns, name, statistics)
        for ffn, neuron, s, again in zip(ffns, useless, scores, score_from(ffns, name, statistics), strict=True):
            assert s.shape == (ffn.width,) and s.dtype == torch.float32 and s.isfinite().all(), name
            assert torch.equal(s, again) and not s.requires_grad, name
            if name != "random":  # among ReLU's neurons some may be as dead as the planted one
                assert s[neuron] == s.min(), f"{name}, layer {ffn.layer}: the useless neuron is not last"
                assert (s > s[neuron]).sum() > ffn.width / 3, f"{name}, layer {ffn.layer}: so are too many others"


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_conformance_of_every_family(name):
    check_conformance(tiny(name, torch.float32), ids_of(8))


@pytest.mark.parametrize("name", KINDS)
def test_conformance_in_bf16(name):
    check_conformance(tiny(name, torch.bfloat16), ids_of(8))


@pytest.mark.parametrize("name", ["gpt2", "phi3", "opt", "llama"])
def test_formulas(name):
    """Each score from the hidden states themselves, neuron by neuron, in plain loops over the raw modules."""
    model, ids, seen = tiny(name), ids_of(), []
    ffn = find_sites(model)[1]
    handle = ffn.reader_linear.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(ids)
    handle.remove()
    h_BTF = seen[0].reshape(len(ids), ids.shape[1], -1)
    down = ffn.reader_linear.weight if name == "gpt2" else ffn.reader_linear.weight.T  # Conv1D is (in, out)
    writer, *gates = ffn.writer_linears
    up = writer.weight.T if name == "gpt2" else writer.weight
    raw: dict[str, list[float]] = {
        n: [] for n in ("magnitude", "activation", "fluctuation", "wanda_sp", "two_ssp", "minitron")
    }
    for j in range(WIDTH):
        h_BT, d = h_BTF[..., j], down[j].detach()
        rows = [up[j]] + ([up[j + WIDTH]] if name == "phi3" else []) + [gate.weight[j] for gate in gates]
        biases = [m.bias[j : j + 1] for m in ffn.writer_linears if m.bias is not None]
        raw["magnitude"].append(torch.cat([*rows, *biases, d]).norm().item())
        raw["activation"].append((h_BT.square().mean().sqrt() * d.norm()).item())
        raw["fluctuation"].append((h_BT.var(correction=0) * d.norm() ** 2).item())
        raw["wanda_sp"].append((d.abs() * h_BT.norm()).sum().item())
        raw["two_ssp"].append(sum(h_T.norm().item() for h_T in h_BT) / len(ids))
        raw["minitron"].append(sum(h_T.abs().mean().item() ** 2 for h_T in h_BT) ** 0.5)
    f = torch.tensor(raw["fluctuation"], dtype=torch.float64)
    raw["fluctuation"] = ((f - f.mean()) / f.std(correction=0)).tolist()
    for criterion_name, expected in raw.items():
        got = score(model, [ffn], criterion_name, ids)[0]
        torch.testing.assert_close(
            got, torch.tensor(expected), rtol=1e-5, atol=1e-6, msg=lambda m, n=criterion_name: n + m
        )


def test_scores_are_the_same_collected_alone_and_at_any_batch_size():
    model, ids = tiny("llama"), ids_of()
    ffns = find_sites(model)
    statistics = collect(model, ffns, ids, needs=GRADIENT)
    for name in ("taylor", "sensitivity", "llm_pruner"):
        for a, b in zip(score(model, ffns, name, ids, batch_size=3), score_from(ffns, name, statistics), strict=True):
            torch.testing.assert_close(a, b)


def test_random_follows_the_seed_alone():
    ffns, others = find_sites(tiny("llama")), find_sites(tiny("gpt2", torch.bfloat16))
    first, again, other = (score_from(ffns, "random", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, score_from(others, "random", seed=3), strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[1])


def test_fluctuation_is_standardised_and_survives_a_layer_without_any():
    model, ids = tiny("llama"), ids_of()
    ffns = find_sites(model)
    with torch.no_grad():
        ffns[1].reader().zero_()
    first, flat, _ = score(model, ffns, "fluctuation", ids)
    assert abs(first.mean()) < 1e-5 and abs(first.std(correction=0) - 1) < 1e-5
    assert torch.equal(flat, torch.zeros(WIDTH))


def test_a_criterion_that_needs_text_says_so():
    model = tiny("llama")
    with pytest.raises(UserError, match="'taylor' needs calibration text"):
        score(model, find_sites(model), "taylor")
    assert len(score(model, find_sites(model), "magnitude")) == LAYERS


def test_a_new_criterion_is_one_decorated_function():
    try:

        @criterion("peak", needs={"mean_abs_sq"})
        def peak(ffn: Site, stats: SeamStatistics, generator: torch.Generator) -> torch.Tensor:
            return -stats.total("mean_abs_sq")

        model, ids = tiny("llama"), ids_of()
        ffns = find_sites(model)
        for a, b in zip(score(model, ffns, "peak", ids), score(model, ffns, "minitron", ids), strict=True):
            assert torch.equal(a.argsort(), b.argsort(descending=True))
        with pytest.raises(UserError, match="there is a criterion 'peak' already"):
            criterion("peak")
        with pytest.raises(UserError, match="sum_h3"):
            criterion("other", needs={"sum_h3"})
    finally:
        CRITERIA.pop("peak", None)
