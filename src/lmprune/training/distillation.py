"""Knowledge distillation: the divergence from a teacher, as pure functions of logits (docs/methods.md, "Distillation").

Axes: N tokens, V vocabulary, k the teacher's largest logits of each token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import UserError

_TOKENS_AT_ONCE = 64


@dataclass(frozen=True)
class TopK:
    """What is kept of a teacher's distribution at the temperature of use.

    log_probs (N, k): ln of its k largest probabilities, of the whole vocabulary's. ids (N, k): whose they are.
    """

    log_probs: Tensor
    ids: Tensor


def check_temperature(temperature: float) -> float:
    """`temperature` as given, if logits can be divided by it."""
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature must be above 0, got {temperature:g}")
    return temperature


def divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher_T ‖ student_T) of each token, (N,), in nats; both given as logits at temperature 1.

    The teacher gets no gradient.
    """
    return _Divergence.apply(student_NV, teacher_NV, temperature)


class _Divergence(Function):
    """A few tokens at a time, with its gradient T · (softmax(student / T) - softmax(teacher / T)): autograd would hold
    half a dozen tensors as large as the logits, which weigh more than a small model."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student_NV, teacher_NV)
        ctx.temperature = temperature
        found = []
        for student, teacher in _pieces(student_NV, teacher_NV):
            student, teacher = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
            found.append((teacher.exp() * teacher.sub(student)).sum(-1))
        return temperature**2 * torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        student_NV, teacher_NV = ctx.saved_tensors
        grad_NV = torch.empty_like(student_NV)
        for student, teacher, grad_N, out in _pieces(student_NV, teacher_NV, grads[0], grad_NV):
            student, teacher = ((logits.float() / ctx.temperature).softmax(-1) for logits in (student, teacher))
            out.copy_(student.sub_(teacher).mul_(ctx.temperature * grad_N[:, None]))
        return grad_NV, None, None


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(_TOKENS_AT_ONCE) for tensor in tensors), strict=True)


def divergence_from_top_k(student_NV: Tensor, teacher: TopK, temperature: float) -> Tensor:
    """The same from a teacher's top k, all other tokens taken together as one outcome: a lower bound.

    Within the rest nothing is asked of the student. Spread evenly over it, as in GUM's code, the teacher's mass would
    pull at the student's own ranking of thousands of tokens (docs/training.md, "Distillation").
    """
    student = (student_NV.float() / temperature).log_softmax(-1)
    at_top = student.gather(-1, teacher.ids)
    probs = teacher.log_probs.exp()
    found = (probs * (teacher.log_probs - at_top)).sum(-1)
    if teacher.ids.shape[-1] < student.shape[-1]:
        rest = (1 - probs.sum(-1)).clamp_min(torch.finfo(probs.dtype).tiny)
        found = found + rest * (rest.log() - student.scatter(-1, teacher.ids, -torch.inf).logsumexp(-1))
    return temperature**2 * found


def top_k(teacher_NV: Tensor, k: int, temperature: float) -> TopK:
    """The part of a teacher's logits that is stored. Raises: UserError where there are fewer than k tokens."""
    if not 1 <= k <= teacher_NV.shape[-1]:
        raise UserError(f"top-k must be within 1…{teacher_NV.shape[-1]}, the vocabulary, got {k}")
    log_probs = (teacher_NV.float() / temperature).log_softmax(-1)
    return TopK(*log_probs.topk(k, dim=-1))
