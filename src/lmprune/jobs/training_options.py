"""The training options of the command line, each declared here, once, with what `--help` says of it.

Imports neither torch nor transformers, so that `--help` is instant; what is wrong with them is `training_checks`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..training.settings import TrainSettings, steps_for

if TYPE_CHECKING:
    from ..gradual import GradualSettings

SCHEDULES = ("cubic", "oneshot")
#: where `--help` shows them
TRAINING, DISTILLATION, ON_THE_WAY = "Training", "Distillation", "Pruning while it trains"
_DEFAULTS = {f.name: f.default for f in fields(TrainSettings)}
#: where `recover` has other defaults than a training (docs/training.md, "Recovery after a cut")
RECOVERY: Mapping[str, Any] = {
    "batch_size": 2, "grad_accum": 4, "kl_weight": 1.0, "temperature": 1.0, "train_tokens": 200_000, "decay": "cosine",
}  # fmt: skip
#: its peak rates, of fewer steps than SHORT and of more: what a high rate does first has to be made up for; and that of
#: LoRA, whose factors begin at 0
SHORT, SHORT_LR, LONG_LR, LORA_LR = 100, 1e-4, 3e-4, 1e-3


def _option(metavar: str, text: str, default: str | None = None, *, panel: str = TRAINING) -> Any:
    """An option that is None where it was not given. default: what `--help` then promises, where it is not the
    default of the `TrainSettings` of that name."""
    return field(default=None, metadata={"metavar": metavar, "help": text, "shown": default, "panel": panel})


def _switch(text: str, *, panel: str = TRAINING) -> Any:
    return field(default=False, metadata={"metavar": "", "help": text, "shown": None, "panel": panel})


@dataclass(frozen=True)
class Training:
    """The training options of the command line, each as it was given; None = not given, the default is for `train`."""

    steps: int | None = _option("N", "Train for so many optimizer steps; prune prunes on the way.")
    epochs: float | None = _option("N", "The same, as passes over the training text.")
    lr: float | None = _option("RATE", "Peak learning rate of the weights.")
    batch_size: int | None = _option("N", "Sequences at once, of each process.")
    grad_accum: int | None = _option("N", "Batches a step.")
    warmup: float | None = _option("SHARE", "Share of the steps in which rates rise.")
    decay: str | None = _option("linear|cosine", "How rates fall after that.", "linear")
    weight_decay: float | None = _option("RATE", "Of the weights; scores have none.")
    adam_epsilon: float | None = _option("ε", "AdamW's, of the weights; the paper's code has 1e-4.")
    train_tokens: int | None = _option("N", "Train on the first so many tokens of the text.", "all")
    loss_on: str | None = _option("completion|sequence", "Pairs: which tokens count in the loss.", "completion")
    eval_every: int | None = _option("N", "Validation perplexity at the start, every N steps and at the end.")
    eval_tokens: int | None = _option("N", "Tokens of the validation text that are measured on.", "16,384")
    save_every: int | None = _option("N", "Save the run every N steps, so that it can be resumed.")
    resume: bool = _switch("Go on with the run that was killed or stopped.")
    lora_rank: int | None = _option("N", "Train LoRA factors of this rank instead of all weights.")
    bf16: bool = _switch("Mixed precision.")
    gradient_checkpointing: bool = _switch("Less memory, more time.")
    fsdp: bool = _switch("Spread weights and optimizer over the processes that torchrun starts.")
    report_to: str | None = _option("NAME", "Log to tensorboard, wandb, trackio, …", "nowhere")
    teacher: str | None = _option(
        "MODEL", "Distil from this model, or from a file of `lmprune teach`.", panel=DISTILLATION
    )
    kl_weight: float | None = _option("SHARE", "The teacher's share of the loss.", "0.5", panel=DISTILLATION)
    temperature: float | None = _option("T", "Of the distillation.", "2", panel=DISTILLATION)
    schedule: str | None = _option("cubic|oneshot", "Prune little by little, or at once.", "cubic", panel=ON_THE_WAY)
    compute: str | None = _option("full|gathered", "All neurons, or only the kept.", "gathered", panel=ON_THE_WAY)
    score_lr: float | None = _option(
        "RATE", "Peak learning rate of learned scores.", "1e-2, soft more", panel=ON_THE_WAY
    )
    penalty_weight: float | None = _option("λ_f", "How hard scores are pressed (soft, gum).", panel=ON_THE_WAY)
    similarity_weight: float | None = _option(
        "λ_u", "How much harder neurons that are like others (gum).", panel=ON_THE_WAY
    )
    warm_start: bool = _switch("Begin learned scores at the ranks of obs, and refit as it does.", panel=ON_THE_WAY)

    @property
    def measures(self) -> bool:
        """Whether perplexity is measured on the way, or at least at the start and at the end."""
        return self.eval_every is not None or self.eval_tokens is not None

    def given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def settings(self, num_examples: int, seed: int) -> TrainSettings:
        """For a data set of so many examples; epochs become steps."""
        if self.steps is not None:
            return self.of_steps(self.steps, seed)
        from accelerate import PartialState

        assert self.epochs is not None
        once = self.of_steps(1, seed)
        a_step = once.batch_size * once.grad_accum * PartialState().num_processes
        return replace(once, steps=steps_for(self.epochs, num_examples, a_step))

    def of_steps(self, steps: int, seed: int) -> TrainSettings:
        given: dict[str, Any] = self.given(*(f.name for f in fields(self) if f.name in _DEFAULTS))
        return TrainSettings(**{**given, "steps": steps, "seed": seed})

    def gradual(self) -> GradualSettings:
        from ..gradual import GradualSettings

        compute = {"compute": "full"} if self.lora_rank is not None else {}
        given = self.given("compute", "penalty_weight", "similarity_weight")
        return GradualSettings(warm_start=self.warm_start, **{**compute, **given})

    @property
    def kl_temperature(self) -> float:
        return self.temperature or 2.0


def shown_default(name: str, metadata: Mapping[str, Any], own: Mapping[str, Any] = {}) -> str | None:
    """What `--help` says the option is where it is not given. own: defaults of the command's."""
    default = own.get(name, _DEFAULTS.get(name))
    if metadata["shown"] and name not in own:
        return metadata["shown"]
    if isinstance(default, int | float):
        return f"{default:,g}" if default else None
    return default if isinstance(default, str) else None
