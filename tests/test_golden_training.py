"""Training steps written out in plain torch, beside the Trainer and beside a bare loop, for every learned method.

Nothing of lmprune's is used on the side written out: the definitions are docs/methods.md's, line by line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from golden import exact_model, exactly
from tiny_models import LAYERS, VOCABULARY, WIDTH
from torch import Tensor, nn
from torch.nn import functional

from lmprune.gradual import GradualPruner, GradualSettings
from lmprune.methods import METHODS
from lmprune.training.settings import TrainSettings
from lmprune.training.train import train

STEPS, KEEP = 12, 0.5
#: λ_f, λ_u and the weights' rate; clipped so hard that every step is
FINAL_WEIGHT, ALIKE_WEIGHT, LR, CLIP = 0.67, 5.0, 2e-3, 0.3
LEARNED = [name for name, row in METHODS.items() if row.learned]
COMPUTES = ["full", "gathered"]


def examples() -> list[dict[str, Any]]:
    """Of different lengths, so that a batch is padded; of two of them only the second half counts.

    A step takes all of them, whatever their order.
    """
    generator = torch.Generator().manual_seed(7)
    found = []
    for row, length in enumerate((26, 9, 17, 12)):
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator)
        labels = ids.clone()
        if row % 2:
            labels[: length // 2] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def first_scores() -> list[Tensor]:
    """No two alike, some so low that `soft` lets them go; with the layers' means, their widths will be apart."""
    generator = torch.Generator().manual_seed(11)
    return [1.5 * torch.randn(WIDTH, generator=generator, dtype=torch.float64) - 1 - layer for layer in range(LAYERS)]


# -- written out


@dataclass
class Step:
    """What a step came to."""

    loss: float
    kept: list[list[int]]


@dataclass
class Outcome:
    weights: dict[str, Tensor]
    scores: list[Tensor]
    steps: list[Step] = field(default_factory=list)


def ratio(step: int) -> float:
    """v(t), the cubic."""
    start, stop = 0.1 * STEPS, 0.7 * STEPS
    x = min(max((step - start) / (stop - start), 0), 1)
    return KEEP + (1 - KEEP) * (1 - x) ** 3


def rate(step: int) -> float:
    """Of the peak: two steps up, then down to 0 in a straight line."""
    warmup = math.ceil(0.1 * STEPS)
    return step / warmup if step < warmup else (STEPS - step) / (STEPS - warmup)


def best(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True)[:count].sort().values


class Soft:
    """τ, its border among the scores, and the effort that follows the score on the asked rank."""

    def __init__(self) -> None:
        self.effort = 1.0

    def kept(self, scores: Sequence[Tensor], step: int) -> list[Tensor]:
        if ratio(step) == 1:
            return [torch.arange(WIDTH)] * LAYERS
        threshold = 0.1 * (1 - ratio(step)) / (1 - KEEP)
        border = math.log(threshold / (1 - threshold))
        ranked = torch.cat(list(scores)).sort(descending=True).values
        excess = float(ranked[int(ratio(step) * len(ranked))]) - border
        self.effort *= math.exp(max(0.1, 25 / STEPS) * min(max(excess, -1), 1))
        self.effort = min(max(self.effort, 0.01), 1e4)
        return [best(s, max(int((s > border).sum()), round(KEEP * WIDTH))) for s in scores]

    def strength(self, step: int) -> float:
        return self.effort * (1 - ratio(step)) / (1 - KEEP)


def chosen(method: str, scores: Sequence[Tensor], step: int) -> list[Tensor]:
    if method == "hard":
        return [best(s, round(ratio(step) * WIDTH)) for s in scores]
    winners = best(torch.cat(list(scores)), round(ratio(step) * LAYERS * WIDTH))
    return [winners[winners // WIDTH == layer] % WIDTH for layer in range(LAYERS)]


def alike(rows_NF: Tensor, kept: Tensor, share: float) -> Tensor:
    """u: Σ |cos| with the other kept neurons, over F·v; 0 for neurons that are gone."""
    u_F = torch.zeros(WIDTH)
    for j in kept.tolist():
        others = [k for k in kept.tolist() if k != j]
        cosines = functional.cosine_similarity(rows_NF[:, [j]], rows_NF[:, others], dim=0)
        u_F[j] = cosines.abs().sum() / (WIDTH * share)
    return u_F


class Seams:
    """0/1 masks on what enters `down`, through which scores get Σ_n h ∂L/∂h': m + S - S.detach() is m, and has S's
    gradient. Where masked neurons are not computed, they get none."""

    def __init__(self, model: Any, scores: Sequence[Tensor], compute: str):
        self.masks = [torch.ones(WIDTH)] * LAYERS
        self.seen: list[Tensor] = []  # of the layers in turn, (T, F)
        for layer, block in enumerate(model.transformer.h):
            block.mlp.c_proj.register_forward_pre_hook(self._hook(layer, scores[layer], compute))

    def _hook(self, layer: int, scores: Tensor, compute: str) -> Callable[..., Any]:
        def through(_down: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            mask, h = self.masks[layer], args[0]
            reached = mask if compute == "gathered" else torch.ones(WIDTH)
            self.seen.append((h * reached).detach().flatten(0, 1))
            return (h * (mask + reached * (scores - scores.detach())),)

        return through


@cache
def by_hand(method: str, compute: str) -> Outcome:
    with exactly():
        return steps_written_out(method, compute)


def steps_written_out(method: str, compute: str) -> Outcome:
    model, scores = exact_model().train(), [nn.Parameter(s) for s in first_scores()]
    named = dict(model.named_parameters())
    score_rate = 10 / STEPS if method == "soft" else 1e-2
    groups: list[dict[str, Any]] = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": 0.1, "peak": LR},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0, "peak": LR},
        {"params": scores, "weight_decay": 0.0, "eps": 1e-4, "peak": score_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    seams, soft = Seams(model, scores, compute), Soft()
    rows: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    outcome = Outcome({}, [])
    for step in range(STEPS):
        now = [s.detach() for s in scores]
        kept = soft.kept(now, step) if method == "soft" else chosen(method, now, step)
        seams.masks = [torch.zeros(WIDTH).index_fill(0, k, 1) for k in kept]
        share = sum(map(len, kept)) / (LAYERS * WIDTH)
        u = [torch.zeros(WIDTH)] * LAYERS
        if step > 0 and "gum" in method:  # from the steps before
            u = [alike(torch.cat(rows[layer]), kept[layer], share) for layer in range(LAYERS)]
        loss = torch.zeros(())
        for example in examples():  # one by one, so without any padding
            seams.seen.clear()
            logits_TV = model(example["input_ids"][None]).logits[0]
            loss = loss + functional.cross_entropy(logits_TV[:-1], example["labels"][1:], reduction="sum")
            for layer, h_TF in enumerate(seams.seen):
                rows[layer].append(h_TF[step % 8 :: 8])
        loss = loss / sum(int((e["labels"][1:] != -100).sum()) for e in examples())
        weights = {"gum": lambda u_F: ALIKE_WEIGHT * u_F, "anti_gum": lambda u_F: ALIKE_WEIGHT * (u_F.max() - u_F)}
        pressed = [s.sigmoid() * (1 + weights.get(method, torch.zeros_like)(w)) for s, w in zip(scores, u, strict=True)]
        strength = {"soft": soft.strength(step), "top_v": 0.0, "hard": 0.0}.get(method, ratio(step) / KEEP)
        loss = loss + FINAL_WEIGHT * strength * sum(p.mean() for p in pressed) / LAYERS
        optimizer.zero_grad()
        loss.backward()
        everything = [*named.values(), *scores]
        norm = torch.cat([p.grad.flatten() for p in everything if p.grad is not None]).norm()
        assert norm > CLIP
        for parameter in everything:
            assert parameter.grad is not None
            parameter.grad *= CLIP / (norm + 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step)
        optimizer.step()
        outcome.steps.append(Step(loss.item(), [k.tolist() for k in kept]))
    outcome.weights = {name: parameter.detach() for name, parameter in named.items()}
    outcome.scores = [s.detach() for s in scores]
    return outcome


# -- lmprune's


def pruner_on(model: Any, method: str, compute: Any) -> GradualPruner:
    settings = GradualSettings(compute=compute, penalty_weight=FINAL_WEIGHT, similarity_weight=ALIKE_WEIGHT)
    pruner = GradualPruner(model, method=method, keep=KEEP, num_steps=STEPS, settings=settings)
    with torch.no_grad():
        for scores, first in zip(pruner.masks.scores, first_scores(), strict=True):
            scores.copy_(first)
    return pruner


def by_trainer(method: str, compute: str) -> tuple[Outcome, list[float]]:
    """As `lmprune prune --steps` trains: batches of 2, padded, two of them a step. With each step's kept share."""
    model = exact_model()
    pruner = pruner_on(model, method, compute)
    how = TrainSettings(steps=STEPS, lr=LR, batch_size=2, grad_accum=2, max_grad_norm=CLIP)
    log = train(model, examples(), how, pruner=pruner).log
    steps = [Step(line["loss"], []) for line in log]
    return outcome_of(model, pruner, steps), [line["keep"] for line in log]


def by_loop(method: str, compute: str) -> Outcome:
    """Somebody's own loop: an optimizer of theirs, a sequence at a time."""
    model, steps = exact_model(), []
    others = list(model.parameters())
    pruner = pruner_on(model.train(), method, compute)
    scores = pruner.masks.scores
    matrices, vectors = [p for p in others if p.ndim > 1], [p for p in others if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
            {"params": scores, "weight_decay": 0.0, "eps": 1e-4, "lr": 10 / STEPS if method == "soft" else 1e-2},
        ],
        lr=LR,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(STEPS):
        pruner.begin_step(step)
        losses = []
        for example in examples():
            logits_TV = model(example["input_ids"][None]).logits[0]
            losses.append(functional.cross_entropy(logits_TV[:-1], example["labels"][1:], reduction="sum"))
        loss = sum(losses) / sum(int((e["labels"][1:] != -100).sum()) for e in examples())
        if (penalty := pruner.penalty()) is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        pruner.end_step()
        steps.append(Step(loss.item(), [k.tolist() for k in pruner.masks.kept]))
    return outcome_of(model, pruner, steps)


def outcome_of(model: Any, pruner: GradualPruner, steps: list[Step]) -> Outcome:
    steps[-1].kept = [kept.tolist() for kept in pruner.masks.kept]
    scores = [s.detach().clone() for s in pruner.masks.scores]
    pruner.finish()
    return Outcome({name: p.detach() for name, p in model.named_parameters()}, scores, steps)


def check_same(found: Outcome, expected: Outcome) -> None:
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-9, atol=1e-9)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert found.steps[-1].kept == expected.steps[-1].kept


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("method", LEARNED)
def test_the_trainer_makes_the_steps_written_out(method: str, compute: str):
    expected = by_hand(method, compute)
    with exactly():
        found, shares = by_trainer(method, compute)
    assert [s.loss for s in found.steps] == pytest.approx([s.loss for s in expected.steps], abs=1e-4)
    kept = [sum(map(len, s.kept)) / (LAYERS * WIDTH) for s in expected.steps]
    assert shares == pytest.approx(kept)
    check_same(found, expected)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("method", LEARNED)
def test_a_loop_of_one_s_own_makes_the_steps_written_out(method: str, compute: str):
    expected = by_hand(method, compute)
    with exactly():
        found = by_loop(method, compute)
    assert [s.loss for s in found.steps] == pytest.approx([s.loss for s in expected.steps], rel=1e-9)
    assert [s.kept for s in found.steps] == [s.kept for s in expected.steps]
    check_same(found, expected)


def test_what_is_written_out_can_tell_methods_apart():
    """Control: the methods end in different scores, layers in different widths, `soft` somewhere on its way."""
    ends = {method: by_hand(method, "full") for method in LEARNED}
    for method, one in ends.items():
        for other in LEARNED[: LEARNED.index(method)]:
            assert any((a - b).abs().max() > 1e-3 for a, b in zip(one.scores, ends[other].scores, strict=True))
    for method in ("gum", "top_v", "anti_gum"):
        assert len({len(kept) for kept in ends[method].steps[-1].kept}) == LAYERS
    widths = [[len(kept) for kept in step.kept] for step in ends["soft"].steps]
    assert widths[0] == [WIDTH] * LAYERS and min(widths[-1]) == round(KEEP * WIDTH) < max(widths[-1])
