"""Uniqueness, sensitivity and what goes with them, against loops over pairs of neurons of one whole forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_statistics import neuron_gradients, sequence_loss
from tiny_models import LAYERS, NAMES, WIDTH, tiny_model, tokens

from lmprune.errors import UserError
from lmprune.scores.redundancy import ALIKE, Redundancy, compare, measure, similarities, uniqueness
from lmprune.sites.find import find_sites

KINDS = ["llama", "gpt2", "phi3", "opt"]
TWINS = ((3, 40, 7.0), (40, 11, 0.5), (20, 30, 1.0))  # (of, becomes, whose reader is this much larger)


def with_twins(name: str) -> Any:
    """A model whose layer 1 has neurons that are exact copies of others: {3, 11, 40} and {20, 30}."""
    model = tiny_model(name).to(torch.float32 if name == "xglm" else torch.float64)
    ffn = find_sites(model)[1]
    with torch.no_grad():
        for bias in ffn.writer_biases():
            bias[[3, 20]] = 1  # so that it fires, behind a ReLU too
        for of, becomes, size in TWINS:
            for rows in [*ffn.writers(), *ffn.writer_biases()]:
                rows[becomes] = rows[of]
            ffn.reader()[becomes] *= size
    return model


def outputs(model: Any, input_ids: torch.Tensor) -> list[torch.Tensor]:
    """h (N, F) fp64 of each layer, from whole forward passes, one sequence at a time."""
    seen: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    handles = [
        ffn.reader_linear.register_forward_pre_hook(
            lambda _m, args, rows=rows: rows.append(args[0].flatten(0, -2).double())
        )
        for ffn, rows in zip(find_sites(model), seen, strict=True)
    ]
    with torch.no_grad():
        for ids_T in input_ids:
            model(ids_T[None])
    for handle in handles:
        handle.remove()
    return [torch.cat(rows) for rows in seen]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm())) if a.any() and b.any() else 0.0


def by_loops(h_NF: torch.Tensor) -> tuple[list[bool], list[float], list[float]]:
    """redundant, nearest, cos_ranges of one layer."""
    width = h_NF.shape[1]
    cos = [[cosine(h_NF[:, j], h_NF[:, k]) for k in range(width)] for j in range(width)]
    redundant = [any(cos[j][k] >= ALIKE for k in range(j + 1, width)) for j in range(width)]
    nearest = [max(cos[j][k] for k in range(width) if k != j) for j in range(width)]
    live = [j for j in range(width) if h_NF[:, j].any()]
    ranges = []
    for r in range(10):
        low, high = r / 10, (r + 1) / 10 if r < 9 else 2
        hit = [any(low <= abs(cos[j][k]) < high for k in live if k != j) for j in live]
        ranges.append(sum(hit) / len(live))
    return redundant, nearest, ranges


@pytest.mark.parametrize("name", NAMES)
def test_equals_loops_over_pairs_in_every_family(name: str):
    model, ids = with_twins(name), tokens(5, 11)
    found = list(similarities(model, find_sites(model), ids, batch_size=2))  # batches of 2, 2 and 1
    num_redundant = num_neurons = 0
    for layer, h_NF in zip(found, outputs(model, ids), strict=True):
        redundant, nearest, ranges = by_loops(h_NF)
        num_redundant += sum(redundant)
        num_neurons += h_NF.shape[1]
        assert layer.redundant_F.tolist() == redundant
        assert layer.nearest_F.tolist() == pytest.approx(nearest, abs=1e-5)
        assert layer.cos_ranges == pytest.approx(ranges, abs=1.5 / WIDTH if name == "xglm" else 1e-12)
        assert layer.uniqueness == pytest.approx(1 - sum(redundant) / h_NF.shape[1])
    assert found[1].redundant_F[[3, 11, 20]].all()  # copies have a later one; the last of each cluster has none
    assert {3, 11, 40} <= set(next(c for c in found[1].clusters if 3 in c))
    assert uniqueness(model, find_sites(model), ids) == pytest.approx(1 - num_redundant / num_neurons)


@pytest.mark.parametrize("name", KINDS)
def test_measure_sums_what_autograd_gives(name: str):
    model, ids = tiny_model(name).double(), tokens(3, 9)
    found = measure(model, find_sites(model), ids)
    expected = [torch.zeros(WIDTH, dtype=torch.float64) for _ in range(LAYERS)]
    for ids_T in ids:
        model.zero_grad()
        sequence_loss(model, ids_T).backward()
        for layer, ffn in enumerate(find_sites(model)):
            weights, grads = neuron_gradients(ffn)
            parts = [(w * g).reshape(WIDTH, -1).sum(1) for w, g in zip(weights, grads, strict=True)]
            expected[layer] += torch.stack(parts).sum(0).abs() / len(ids)
    for layer, value_F in zip(found.layers, expected, strict=True):
        torch.testing.assert_close(layer.sensitivity_F, value_F, rtol=1e-9, atol=1e-14)
    assert found.sensitivity == pytest.approx(sum(v.sum().item() for v in expected))
    assert found.num_tokens == 27


def test_a_star_of_look_alikes_is_one_cluster_with_two_unique():
    """The centre comes first and is like both others, who are not like each other: one counts as redundant."""
    angles = torch.tensor([0.0, 0.6, -0.6], dtype=torch.float64)
    h_NF = torch.stack([angles.cos(), angles.sin()])
    h_NF = torch.cat([h_NF, torch.zeros(2, 1)], 1)  # and one that never fires
    found = compare(h_NF.T @ h_NF)
    assert found.redundant_F.tolist() == [True, False, False, False]
    assert found.clusters == ((0, 1, 2),) and found.dead_F.tolist() == [False, False, False, True]
    assert found.nearest_F[3] == 0 and found.uniqueness == 0.75
    assert found.cos_ranges[0] == 0  # the dead neuron's cosines are not counted
    assert found.cos_ranges[8] == 1 and found.cos_ranges[3] == pytest.approx(2 / 3)
    last = h_NF[:, [1, 2, 0, 3]]  # the centre last: both others are redundant
    assert compare(last.T @ last).uniqueness == 0.5


def test_an_opposite_is_unique_but_counts_in_the_histogram():
    h_NF = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    found = compare(h_NF.T @ h_NF)
    assert found.uniqueness == 1 and not found.clusters
    assert found.cos_ranges[9] == pytest.approx(2 / 3)


def test_long_chains_become_one_cluster_and_sizes_order_them():
    angles = torch.cat([torch.arange(9) * 0.3, torch.tensor([4.0, 4.1])]).double()
    order = torch.tensor([4, 9, 0, 8, 1, 10, 5, 2, 7, 3, 6])
    h_NF = torch.stack([angles.cos(), angles.sin()])[:, order]
    assert compare(h_NF.T @ h_NF).clusters == ((0, 2, 3, 4, 6, 7, 8, 9, 10), (1, 5))


def test_more_neurons_than_rows_at_once(monkeypatch: pytest.MonkeyPatch):
    h_NF = torch.randn(6, 37, dtype=torch.float64)
    moment_FF = h_NF.T @ h_NF
    whole = compare(moment_FF.clone())
    monkeypatch.setattr("lmprune.scores.redundancy._ROWS_AT_ONCE", 5)
    parts = compare(moment_FF)
    assert whole.redundant_F.any() and whole.clusters == parts.clusters and whole.cos_ranges == parts.cos_ranges
    assert whole.nearest_F.equal(parts.nearest_F) and whole.redundant_F.equal(parts.redundant_F)


@pytest.mark.parametrize("name", KINDS)
def test_peaks_are_the_tokens_that_fire_a_neuron_hardest(name: str):
    model, ids = tiny_model(name).double(), tokens(5, 11)
    found = list(similarities(model, find_sites(model), ids, num_peaks=3, batch_size=2))
    for layer, h_NF in zip(found, outputs(model, ids), strict=True):
        size_STF = h_NF.abs().view(5, 11, WIDTH)
        for neuron in range(WIDTH):
            places = layer.peak_tokens_FK[neuron].tolist()
            best = size_STF[:, :, neuron].amax(1).sort(descending=True).values[:3]
            assert size_STF.flatten(0, 1)[places, neuron].tolist() == pytest.approx(best.tolist(), rel=1e-9)
            assert len({place // 11 for place in places}) == 3  # one a sequence


def test_the_model_is_left_as_it_was():
    model, ids = tiny_model("llama"), tokens()
    model.train()
    model.lm_head.weight.requires_grad_(False)
    before = {n: (p.requires_grad, p.clone()) for n, p in model.named_parameters()}
    uniqueness(model, find_sites(model), ids)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(p.requires_grad == before[n][0] and p.equal(before[n][1]) for n, p in model.named_parameters())


def test_infinite_outputs_and_missing_text_are_said():
    model = tiny_model("gpt2")
    with torch.no_grad():
        find_sites(model)[1].writer_biases()[0][3] = float("inf")
    with pytest.raises(UserError, match="layer 1: neurons put out NaN"):
        uniqueness(model, find_sites(model), tokens())
    with pytest.raises(UserError, match="shape"):
        uniqueness(model, find_sites(model), torch.zeros(0, 5, dtype=torch.long))


def test_a_model_of_layers_weighs_neurons_not_layers():
    wide = compare(torch.eye(3, dtype=torch.float64))
    narrow = compare(torch.ones(1, 1, dtype=torch.float64))
    twins = compare(torch.ones(2, 2, dtype=torch.float64))
    assert narrow.nearest_F.tolist() == [-1]
    assert Redundancy((wide, narrow, twins), 1).uniqueness == pytest.approx(1 - 1 / 6)
    assert twins.uniqueness == 0.5
