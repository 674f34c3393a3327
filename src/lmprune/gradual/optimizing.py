"""The optimizer of learned scores: a group of their own, and the check that they have it.

In the weights' group a score would move at the weights' rate, by lr · sign whatever presses on it (AdamW's ε of 1e-8),
and decay towards 0: the run would look like a training, and its neurons would be chosen by something else.
Source: docs/methods.md, "Learned scores".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import UserError

#: AdamW's ε for scores: with torch's 1e-8 every score would move by lr × sign, and the penalty's size cancel out
SCORE_EPS = 1e-4
#: their usual learning rate
SCORE_LR = 1e-2


def param_groups(
    model: nn.Module, scores: Sequence[nn.Parameter], *, lr: float, score_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Weights; biases and norms, which don't decay; scores."""
    mine, decaying = set(map(id, scores)), set(decaying_names(model))
    weights = [(name in decaying, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in mine]
    groups: list[dict[str, Any]] = [
        {"params": [p for decays, p in weights if decays], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for decays, p in weights if not decays], "lr": lr, "weight_decay": 0.0},
    ]
    return groups + [score_group(scores, score_lr)] * bool(scores)


def decaying_names(model: nn.Module) -> list[str]:
    """Of the parameters that weight decay is for: matrices, but for the stacked biases of experts."""
    return [name for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("bias")]


def score_group(scores: Sequence[nn.Parameter], lr: float) -> dict[str, Any]:
    """Raises: UserError for a rate with which nothing is learned."""
    if not 0 < lr < math.inf:
        raise UserError(f"the scores' learning rate must be above 0, got {lr:g}: nothing would be learned")
    return {"params": list(scores), "lr": lr, "eps": SCORE_EPS, "weight_decay": 0.0}


def check_groups(optimizer: Any, scores: Sequence[nn.Parameter], *, one_rate: bool = False) -> None:
    """one_rate: the scores' rate was asked to be the weights' own.

    Raises: UserError where the scores have no group of their own, or one that would not train them as scores.
    """
    mine = set(map(id, scores))
    if mine - _held(optimizer):
        raise _wrong("are not in the optimizer")
    own = [group for group in optimizer.param_groups if mine & set(map(id, group["params"]))]
    others = [group for group in optimizer.param_groups if all(group is not g for g in own)]
    for group in own:
        if len(mine & set(map(id, group["params"]))) < len(group["params"]):
            raise _wrong("are in one group with weights")
        eps = group.get("eps", SCORE_EPS)
        if not isinstance(eps, float) or eps < SCORE_EPS:
            raise _wrong(f"have ε = {eps}, with which they move by their rate whatever their gradient is")
        if group.get("weight_decay"):
            raise _wrong(f"have a weight decay of {group['weight_decay']:g}")
        if not one_rate and _rate(group) and _rate(group) in map(_rate, others):
            raise _wrong(f"have the weights' learning rate of {_rate(group):g}")


def _rate(group: dict[str, Any]) -> float:
    """The peak, where a schedule goes up to it."""
    return float(group.get("initial_lr", group["lr"]))


def _wrong(what: str) -> UserError:
    return UserError(
        f"the learned scores {what}; they need a group of their own, with its learning rate, ε = {SCORE_EPS:g} and no "
        "weight decay: build the optimizer over pruner.param_groups(lr=…, score_lr=…)"
    )


@contextmanager
def checked_optimizers(model: nn.Module, scores: Sequence[nn.Parameter], *, one_rate: bool) -> Iterator[None]:
    """Whatever optimizer of the model steps in the `with` block must train the scores as scores. Raises: UserError."""
    if not scores:
        yield
        return
    mine = set(map(id, scores))
    weights = set(map(id, model.parameters())) - mine
    trained: set[int] = set()

    def before_it_steps(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        held = _held(optimizer)
        if held & mine:  # weights and scores may have an optimizer each
            check_groups(optimizer, [s for s in scores if id(s) in held], one_rate=one_rate)
        trained.update(held & (weights | mine))

    handle = register_optimizer_step_pre_hook(before_it_steps)
    try:
        yield
    finally:
        handle.remove()
    if trained and not mine <= trained:
        raise _wrong("are not in the optimizer")


def _held(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
