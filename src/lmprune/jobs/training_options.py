"""The training options of the command line, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..data.pairs import check_loss_on, is_source
from ..errors import UserError, unknown
from ..gradual.schedules import cubic
from ..methods import Method, must_train
from ..sites.masks import COMPUTES
from ..training.distillation import check_temperature
from ..training.lora import check_peft
from ..training.settings import TrainSettings

if TYPE_CHECKING:
    from ..gradual import GradualSettings

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
    adam_epsilon: float | None = None
    train_tokens: int | None = None
    loss_on: str | None = None
    eval_every: int | None = None
    save_every: int | None = None
    resume: bool = False
    teacher: str | None = None
    kl_weight: float | None = None
    temperature: float | None = None
    compute: str | None = None
    penalty_weight: float | None = None
    similarity_weight: float | None = None
    warm_start: bool = False
    lora_rank: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    report_to: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Training | None:
        """Those of a command's options; None where there is no training.

        Raises: UserError where an option is about a training that nobody asked for.
        """
        values = {f.name: options.get(f.name) for f in fields(cls)}
        given = {name: value for name, value in values.items() if value is not None and value is not False}
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
        if self.loss_on is not None:
            check_loss_on(self.loss_on)
        if self.teacher is None and (self.kl_weight is not None or self.temperature is not None):
            raise UserError("--kl-weight and --temperature are about distillation; name a --teacher")
        if self.kl_weight is not None and not 0 < self.kl_weight <= 1:
            raise UserError(f"kl-weight must be in (0, 1], got {self.kl_weight:g}")
        if self.temperature is not None:
            check_temperature(self.temperature)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"epochs must be above 0, got {self.epochs:g}")
        for name in ("penalty_weight", "similarity_weight"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UserError(f"{name.replace('_', '-')} must be 0 or more, got {getattr(self, name):g}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise UserError(f"lora-rank must be at least 1, got {self.lora_rank}")
        if self.lora_rank is not None and self.compute == "gathered":
            raise UserError("with --lora-rank neurons can't be gathered; leave out --compute gathered")
        if self.lora_rank is not None:
            check_peft()
        self._settings(self.steps if self.steps is not None else 1, seed=0)
        return self

    def given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def settings(self, num_examples: int, seed: int) -> TrainSettings:
        """For a data set of so many examples; epochs become steps."""
        if self.steps is not None:
            return self._settings(self.steps, seed)
        from accelerate import PartialState

        assert self.epochs is not None
        once = self._settings(1, seed)
        a_step = once.batch_size * once.grad_accum * PartialState().num_processes
        return replace(once, steps=max(math.ceil(num_examples * self.epochs / a_step), 1))

    def _settings(self, steps: int, seed: int) -> TrainSettings:
        rates = ("lr", "score_lr", "warmup", "weight_decay", "adam_epsilon")
        return TrainSettings(
            steps=steps, bf16=self.bf16, gradient_checkpointing=self.gradient_checkpointing, seed=seed,
            **self.given(*rates, "batch_size", "grad_accum", "eval_every", "save_every", "report_to"),
        )  # fmt: skip

    def gradual(self) -> GradualSettings:
        from ..gradual import GradualSettings

        compute = {"compute": "full"} if self.lora_rank is not None else {}
        given = self.given("compute", "penalty_weight", "similarity_weight")
        return GradualSettings(warm_start=self.warm_start, **{**compute, **given})

    @property
    def kl_temperature(self) -> float:
        return self.temperature or 2.0


def check_source(data: str, train_tokens: int | None, training: Training | None = None) -> None:
    """Raises: UserError where the model is to write its own text, and nobody said how much, or an option does not go
    with the source."""
    if data == "self" and train_tokens is None:
        raise UserError("the model writes as much text (self) as you like; say how much with --train-tokens")
    if training is None:
        return
    if data == "self" and training.eval_every is not None:
        raise UserError("text that the model writes itself (self) has no validation split; leave out --eval-every")
    if training.loss_on is not None and not is_source(data):
        raise UserError("--loss-on is about pairs of context and completion, and this is plain text; leave it out")


def check_method(
    row: Method, training: Training | None, *, keep: float, planned: bool, scope: str | None = None
) -> None:
    """planned: a plan says which neurons stay. scope: as it was given.

    Raises: UserError where a method must train and nobody said how long, or can't train as it was asked to.
    """
    if training is None:
        if row.learned and not planned:
            raise must_train(row)
        return
    if row.penalty == "l1" and scope == "global":
        raise UserError(f"method {row.name!r} has a threshold for all layers, and no --scope; leave it out")
    if planned and training.schedule == "cubic":
        raise UserError("drop --schedule cubic, or --plan: a plan prunes at once, and the rest is trained")
    gradual = not planned and training.schedule != "oneshot"
    if row.learned and not (gradual or planned):
        raise UserError(f"method {row.name!r} learns its scores on the way; --schedule oneshot leaves it no time")
    uses = {
        "score_lr": (gradual and row.learned, "learned scores"),
        "penalty_weight": (gradual and row.penalty != "none", "the penalty on learned scores"),
        "similarity_weight": (gradual and "uniqueness" in row.penalty, "the penalty on neurons that are alike"),
        "warm_start": (gradual and row.learned, "learned scores"),
        "compute": (gradual, "pruning on a schedule"),
    }
    for name, (used, what) in uses.items():
        if getattr(training, name) not in (None, False) and not used:
            raise UserError(f"--{name.replace('_', '-')} is about {what}, which this run does not have; leave it out")
    if gradual and training.steps is not None:
        cubic(keep, training.steps)
    weighs = not row.learned and row.criterion != "random"
    if gradual and training.lora_rank is not None and (weighs or training.warm_start):
        what = "--warm-start" if training.warm_start else f"method {row.name!r}"
        raise UserError(
            f"{what} works on the whole weights on the way, and --lora-rank leaves them frozen; "
            "use --schedule oneshot, or a method that learns its scores from the start"
        )
