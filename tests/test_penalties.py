"""What presses on learned scores."""

from __future__ import annotations

import math

import pytest
import torch

from lmprune.scores.penalties import PENALTIES, sparsity_penalty


def pressure(name: str, u: list[torch.Tensor], weight: float) -> list[torch.Tensor] | None:
    penalty = PENALTIES[name]
    assert penalty is not None and penalty.name == name
    return penalty.weights(u, weight)


def test_the_penalty_is_the_formula_of_methods_2():
    scores = [torch.tensor([0.0, 1.0]), torch.tensor([-2.0, 3.0, 0.5])]
    u = [torch.tensor([0.1, 0.4]), torch.tensor([0.0, 0.2, 0.3])]
    layers = []
    for s, w in zip(scores, u, strict=True):
        each = [(1 + 5 * b) / (1 + math.exp(-a)) for a, b in zip(s.tolist(), w.tolist(), strict=True)]
        layers.append(sum(each) / len(each))
    weights = pressure("uniqueness", u, 5.0)
    assert float(sparsity_penalty(scores, weights)) == pytest.approx(sum(layers) / 2)


def test_without_similarities_every_neuron_is_pressed_alike():
    scores = [torch.randn(4)]
    assert pressure("l1", [], 5.0) is None and PENALTIES["none"] is None
    assert float(sparsity_penalty(scores)) == pytest.approx(float(scores[0].sigmoid().mean()))


def test_anti_uniqueness_turns_the_order_round():
    u = [torch.tensor([0.1, 0.4, 0.0])]
    (hard,), (soft,) = pressure("uniqueness", u, 2.0) or [], pressure("anti_uniqueness", u, 2.0) or []
    assert hard.argsort().tolist() == soft.argsort(descending=True).tolist() and float(soft.min()) == 0
    assert set(PENALTIES) == {"none", "l1", "uniqueness", "anti_uniqueness"}
