"""The settings of a training run. Imports neither torch nor transformers, so that wrong ones are told at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UserError, unknown

DECAYS = ("linear", "cosine")
#: what a number that is not above 0 would come to
_OR_ELSE = {
    "lr": "nothing would be learned",
    "score_lr": "nothing would be learned",
    "adam_epsilon": "what has no gradient would be divided by 0",
}


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer steps. lr, score_lr: peak learning rates of the weights and of learned scores (None = 1e-2;
    for `soft` at least 10 / steps, or it would prune nothing: `gradual.soft`). batch_size: examples of one
    process at once; times grad_accum, times the processes, a step. warmup: share of the steps. eval_every, save_every:
    in steps, None = only at the end, never. adam_epsilon: AdamW's ε of the weights; learned scores have 1e-4 whatever
    it is (docs/methods.md, "Learned scores"). max_grad_norm: the gradient is clipped to it. decay: how rates
    fall to 0 after the warm-up, of DECAYS. fsdp: weights, gradients and AdamW's states are spread over the processes.
    report_to: where transformers logs to as well.
    Where the defaults are from: docs/training.md, "Hyper-parameters, and where they come from".

    Raises: UserError for what can't be trained with.
    """

    steps: int
    lr: float = 5e-4
    score_lr: float | None = None
    batch_size: int = 4
    grad_accum: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.1
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    decay: str = "linear"
    eval_every: int | None = None
    save_every: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    fsdp: bool = False
    report_to: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "grad_accum", "eval_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("lr", "score_lr", "adam_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name.replace('_', '-')} must be above 0, got {value:g}: {_OR_ELSE[name]}")
        if self.decay not in DECAYS:
            raise unknown("decay", self.decay, DECAYS)
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is a share of the steps, in [0, 1), got {self.warmup:g}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight-decay must be 0 or more, got {self.weight_decay:g}")


def steps_for(passes: float, examples: int, a_step: int) -> int:
    """How many steps go over so many examples so often, where the last of each pass has what is left of them.

    A part of a pass is rounded up.

    >>> steps_for(1, 128, 8), steps_for(10, 17, 16), steps_for(1.5, 17, 16), steps_for(0.01, 17, 16)
    (16, 20, 3, 1)
    """
    whole, part = divmod(passes, 1)
    return int(whole) * math.ceil(examples / a_step) + math.ceil(part * examples / a_step)
