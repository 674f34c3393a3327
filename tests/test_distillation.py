"""Divergence from a teacher."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lmprune.errors import UserError
from lmprune.training.distillation import divergence, divergence_from_top_k, top_k

N, V = 5, 11


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, generator=g), 2 * torch.randn(N, V, generator=g)


def by_hand(student: torch.Tensor, teacher_probs: torch.Tensor, temperature: float) -> list[float]:
    """T² Σ p (ln p - ln q), written out."""
    found = []
    for s, p in zip(student.tolist(), teacher_probs.tolist(), strict=True):
        scaled = [x / temperature for x in s]
        norm = math.log(sum(math.exp(x) for x in scaled))
        found.append(temperature**2 * sum(b * (math.log(b) - (x - norm)) for x, b in zip(scaled, p, strict=True)))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_divergence_is_the_sum_written_out(temperature: float):
    student, teacher = pair()
    expected = by_hand(student, (teacher / temperature).softmax(-1), temperature)
    assert divergence(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-4)
    assert divergence(teacher, teacher, temperature).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_of_many_tokens_is_autograd_s_own(dtype: torch.dtype):
    g = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(150, V, generator=g).to(dtype) for _ in range(2))
    weights = torch.randn(150, generator=g)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = divergence(ours, teacher, 2.0)
    q, p = ((logits.float() / 2).log_softmax(-1) for logits in (theirs, teacher))
    expected = 4 * functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(found, expected, atol=1e-5) and found.dtype == torch.float32
    assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == dtype
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=1e-6)
    assert len(divergence(student[:0], teacher[:0], 2.0)) == 0


@pytest.mark.parametrize("k", [1, 4, 10])
def test_all_beyond_the_top_k_is_one_outcome(k: int):
    student, teacher = pair()
    probs, best = (teacher / 2).softmax(-1), teacher.topk(k).indices
    others = torch.ones(N, V, dtype=torch.bool).scatter(-1, best, False)
    merged_teacher, merged_student = (
        torch.cat([p.gather(-1, best), (p * others).sum(-1, keepdim=True)], -1)
        for p in (probs, (student / 2).softmax(-1))
    )
    expected = by_hand(2 * merged_student.log(), merged_teacher, 2.0)
    found = divergence_from_top_k(student, top_k(teacher, k, 2.0), 2.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert (found <= divergence(student, teacher, 2.0) + 1e-5).all()


@pytest.mark.parametrize("k", [1, 10, V])
def test_a_student_like_its_teacher_learns_nothing_from_a_top_k(k: int):
    teacher = pair()[1]
    student = teacher.clone().requires_grad_()
    found = divergence_from_top_k(student, top_k(teacher, k, 2.0), 2.0)
    found.sum().backward()
    assert found.abs().max() < 1e-5 and student.grad is not None and student.grad.abs().max() < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_a_top_k_of_everything_is_the_teacher_itself(seed: int):
    student, teacher = pair(seed)
    whole = divergence_from_top_k(student, top_k(teacher, V, 2.0), 2.0)
    assert torch.allclose(whole, divergence(student, teacher, 2.0), atol=1e-4)


def test_at_t_squared_the_gradient_does_not_fade_with_temperature():
    student, teacher = pair()
    sizes = []
    for temperature in (1.0, 8.0):
        s = student.clone().requires_grad_()
        divergence(s, teacher, temperature).sum().backward()
        assert s.grad is not None
        sizes.append(float(s.grad.norm()))
    assert 0.3 < sizes[1] / sizes[0] < 3


def test_more_than_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="top-k must be within 1…11"):
        top_k(pair()[1], 12, 2.0)
