"""Knowledge distillation: the divergence from a teacher, as pure functions of logits (METHODS 2, "Distillation").

Axes: N tokens, V vocabulary, k the teacher's largest logits of each token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .errors import UserError


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
    """T² · KL(teacher_T ‖ student_T) of each token, (N,), in nats; both given as logits at temperature 1."""
    student = (student_NV.float() / temperature).log_softmax(-1)
    teacher = (teacher_NV.float() / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def divergence_from_top_k(student_NV: Tensor, teacher: TopK, temperature: float) -> Tensor:
    """The same from a teacher's top k, all other tokens taken together as one outcome: a lower bound.

    Within the rest nothing is asked of the student. Spread evenly over it, as METHODS has it, the teacher's mass would
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
