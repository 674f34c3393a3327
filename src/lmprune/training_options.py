"""The training options of the command line, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .errors import UserError, unknown
from .masks import COMPUTES
from .methods import Method, must_train

if TYPE_CHECKING:
    from .gradual import GradualSettings
    from .training.train import TrainSettings

SCHEDULES = ("cubic", "oneshot")


@dataclass(frozen=True)
class Training:
    """The training options of the command line, each as it was given; None = not given, the default is for `train`."""

    steps: int | None = None
    epochs: float | None = None
    schedule: str | None = None
    lr: float | None = None
    score_lr: float | None = None
    batch_size: int | None = None
    grad_accum: int | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    train_tokens: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    resume: bool = False
    teacher: str | None = None
    kl_weight: float | None = None
    temperature: float | None = None
    compute: str | None = None
    penalty_weight: float | None = None
    similarity_weight: float | None = None
    lora_rank: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    report_to: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Training | None:
        """Those of a command's options; None where there is no training.

        Raises: UserError where an option is about a training that nobody asked for.
        """
        given = {f.name: options[f.name] for f in fields(cls) if options.get(f.name) not in (None, False)}
        if "steps" in given and "epochs" in given:
            raise UserError("give --steps or --epochs, not both")
        if given and not {"steps", "epochs"} & given.keys():
            first = "--" + next(iter(given)).replace("_", "-")
            raise UserError(f"{first} is about training; say how long with --steps or --epochs, or leave it out")
        return cls(**given).checked() if given else None

    def checked(self) -> Training:
        if self.schedule not in (None, *SCHEDULES):
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.compute not in (None, *COMPUTES):
            raise unknown("compute", self.compute, COMPUTES)
        if self.teacher is None and (self.kl_weight is not None or self.temperature is not None):
            raise UserError("--kl-weight and --temperature are about distillation; name a --teacher")
        if self.kl_weight is not None and not 0 < self.kl_weight <= 1:
            raise UserError(f"kl-weight must be in (0, 1], got {self.kl_weight:g}")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise UserError(f"temperature must be above 0, got {self.temperature:g}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"epochs must be above 0, got {self.epochs:g}")
        return self

    def given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def settings(self, num_examples: int, seed: int) -> TrainSettings:
        """For a data set of so many examples; epochs become steps."""
        from accelerate import PartialState

        from .training.train import TrainSettings

        names = ("lr", "score_lr", "batch_size", "grad_accum", "warmup", "weight_decay", "eval_every", "save_every")
        settings = TrainSettings(
            steps=self.steps or 1, bf16=self.bf16, gradient_checkpointing=self.gradient_checkpointing, seed=seed,
            **self.given(*names, "report_to"),
        )  # fmt: skip
        if self.epochs is None:
            return settings
        a_step = settings.batch_size * settings.grad_accum * PartialState().num_processes
        return replace(settings, steps=max(math.ceil(num_examples * self.epochs / a_step), 1))

    def gradual(self) -> GradualSettings:
        from .gradual import GradualSettings

        return GradualSettings(**self.given("compute", "penalty_weight", "similarity_weight"))

    @property
    def kl_temperature(self) -> float:
        return self.temperature or 2.0


def check_method(row: Method, training: Training | None) -> None:
    """Raises: UserError where a method must train and nobody said how long, or can't."""
    if row.learned and training is None:
        raise must_train(row)
    if row.learned and training is not None and training.schedule == "oneshot":
        raise UserError(f"method {row.name!r} learns its scores on the way; --schedule oneshot leaves it no time")
