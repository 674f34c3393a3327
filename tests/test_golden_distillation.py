"""Distillation written out: CE and KL weighed unequally, padded, in micro-batches of unequal size."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import exact_model, exactly
from test_golden_training import examples
from tiny_models import VOCABULARY
from torch import Tensor
from torch.nn import functional

from lmprune.gradual import GradualPruner
from lmprune.training.settings import TrainSettings
from lmprune.training.teachers import OnlineTeacher, StoredTeacher, write_teacher
from lmprune.training.train import train

KL_WEIGHT, TEMPERATURE = 0.3, 2.0
STEPS = 10
BATCHES = [(1, 4), (2, 2), (4, 1)]


def teacher_and_student() -> tuple[Any, Any]:
    return exact_model(seed=1).eval(), exact_model()


def distances(teacher: Any, student: Any) -> tuple[Tensor, Tensor]:
    """Of the tokens that count, of one example after the other: -ln of the right one, and T² · KL from the teacher."""
    losses, divergences = [], []
    for example in examples():
        counted = example["labels"][1:] != -100
        ours, theirs = (m(example["input_ids"][None]).logits[0, :-1][counted] for m in (student, teacher))
        losses.append(functional.cross_entropy(ours, example["labels"][1:][counted], reduction="none"))
        p, q = (theirs / TEMPERATURE).softmax(-1).detach(), (ours / TEMPERATURE).softmax(-1)
        divergences.append(TEMPERATURE**2 * (p * (p / q).log()).sum(-1))
    return torch.cat(losses), torch.cat(divergences)


def by_hand(kl_weight: float = KL_WEIGHT, penalty: float = 0.0) -> tuple[float, dict[str, Tensor]]:
    """The first step's loss, and its gradient before it is clipped."""
    teacher, student = teacher_and_student()
    ce, kl = (each.mean() for each in distances(teacher, student.train()))
    loss = (1 - kl_weight) * ce + kl_weight * kl + penalty
    loss.backward()
    return loss.item(), {name: p.grad for name, p in student.named_parameters()}


def first_step(student: Any, teacher: Any, batch_size: int, grad_accum: int, **how: Any) -> tuple[float, Any]:
    """As the Trainer makes it: the loss it logs, and what it has added up in each gradient."""
    gradients: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in student.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, n=name: gradients[n].append(p.grad.clone()))
    settings = TrainSettings(steps=STEPS, lr=1e-3, batch_size=batch_size, grad_accum=grad_accum)
    log = train(student, examples(), settings, teacher=teacher, **{"kl_weight": KL_WEIGHT, **how}).log
    return log[0]["loss"], {name: seen[grad_accum - 1] for name, seen in gradients.items()}


def check_same(found: tuple[float, Any], expected: tuple[float, dict[str, Tensor]], rtol: float = 1e-9) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-4)
    assert found[1].keys() >= expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("batch_size", "grad_accum"), BATCHES)
@pytest.mark.parametrize("kl_weight", [KL_WEIGHT, 1.0])
def test_a_step_of_distillation_is_the_one_written_out(batch_size: int, grad_accum: int, kl_weight: float):
    with exactly():
        expected = by_hand(kl_weight)
        teacher, student = teacher_and_student()
        online = OnlineTeacher(teacher, student, TEMPERATURE)
        found = first_step(student, online, batch_size, grad_accum, kl_weight=kl_weight)
    check_same(found, expected)


def test_a_teacher_alone_is_not_asked_about_the_text_itself(monkeypatch: pytest.MonkeyPatch):
    """Whose loss, of all the vocabulary, would take as long and weigh nothing."""
    teacher, student = teacher_and_student()
    seen, plain = [], student.forward
    monkeypatch.setattr(student, "forward", lambda **inputs: (seen.append("labels" in inputs), plain(**inputs))[1])
    for kl_weight in (1.0, KL_WEIGHT):
        first_step(student, OnlineTeacher(teacher, student, TEMPERATURE), 4, 1, kl_weight=kl_weight)
    assert seen == [False] * STEPS + [True] * STEPS


@pytest.mark.parametrize("bf16", [False, True])
def test_a_teacher_reads_in_the_precision_of_the_student(bf16: bool):
    (teacher, student), seen = (model.float() for model in teacher_and_student()), set()
    online = OnlineTeacher(teacher, student, TEMPERATURE)
    teacher.lm_head.register_forward_hook(lambda _head, _args, out: seen.add(out.dtype))
    train(student, examples(), TrainSettings(steps=1, batch_size=4, bf16=bf16), teacher=online)
    assert seen == {torch.bfloat16 if bf16 else torch.float32}


def test_a_stored_teacher_makes_the_same_step(tmp_path: Path):
    with exactly():
        expected = by_hand()
        teacher, student = teacher_and_student()
        file = tmp_path / "teacher.safetensors"
        write_teacher(teacher, examples(), file, k=VOCABULARY, temperature=TEMPERATURE)
        found = first_step(student, StoredTeacher(file, examples(), student, TEMPERATURE), 2, 2)
    check_same(found, expected)


@pytest.mark.parametrize(("batch_size", "grad_accum"), BATCHES)
def test_the_penalty_stands_beside_both(batch_size: int, grad_accum: int):
    """Once a step, whatever the number of micro-batches, and not weighed against CE and KL: with scores of 0 it is
    λ_f · v(0) / v_f · ½."""
    with exactly():
        expected = by_hand(penalty=0.67 / 0.25 / 2)
        teacher, student = teacher_and_student()
        pruner = GradualPruner(student, method="gum", keep=0.25, num_steps=STEPS)
        online = OnlineTeacher(teacher, student, TEMPERATURE)
        found = first_step(student, online, batch_size, grad_accum, pruner=pruner)
    check_same(found, expected)


def test_swapped_weights_show():
    """Control: what was written out is another step with CE and KL the other way round; 52 of 64 tokens count."""
    with exactly():
        loss, gradients = by_hand()
        swapped, others = by_hand(1 - KL_WEIGHT)
        ce, kl = distances(*teacher_and_student())
    assert abs(loss - swapped) > 0.1 and len(ce) == len(kl) == 25 + 5 + 16 + 6
    assert max(float((a - others[name]).abs().max()) for name, a in gradients.items()) > 1e-2
