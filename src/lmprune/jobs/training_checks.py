"""What is wrong with a command's training options, alone and beside its other options."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from ..budget.keeps import Keep
from ..data import as_long_as_you_like
from ..data.pairs import check_loss_on, is_source
from ..data.tokens import check_lengths
from ..errors import UserError, unknown
from ..gradual.schedules import cubic
from ..methods import Method, check_scope, must_train, needs_text
from ..processes import several
from ..sites.address import SEAM_KINDS, Kind
from ..sites.masks import COMPUTES
from ..training.distillation import check_temperature
from ..training.examples import Corpus
from ..training.lora import check_peft
from .training_options import SCHEDULES, Training

#: the first accelerate whose FSDP2 keeps tied embeddings in one place
SPREADS = (1, 15)


def training_of(options: Mapping[str, Any]) -> Training | None:
    """The training options of a command's; None where there is no training.

    Raises: UserError where an option is about a training that nobody asked for.
    """
    values = {f.name: options.get(f.name) for f in fields(Training)}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    if given.keys() == {"resume"}:  # what is pruned at once has ended, or begins again: it keeps nothing on the way
        return None
    if "steps" in given and "epochs" in given:
        raise UserError("give --steps or --epochs, not both")
    if given and not {"steps", "epochs"} & given.keys():
        first = "--" + next(iter(given)).replace("_", "-")
        raise UserError(f"{first} is about training; say how long with --steps or --epochs, or leave it out")
    return checked(Training(**given)) if given else None


def checked(training: Training) -> Training:
    """The same. Raises: UserError for a value that no training has, and for two that do not go together."""
    if training.schedule not in (None, *SCHEDULES):
        raise unknown("schedule", training.schedule, SCHEDULES)
    if training.compute not in (None, *COMPUTES):
        raise unknown("compute", training.compute, COMPUTES)
    if training.loss_on is not None:
        check_loss_on(training.loss_on)
    if training.teacher is None and (training.kl_weight is not None or training.temperature is not None):
        raise UserError("--kl-weight and --temperature are about distillation; name a --teacher")
    if training.kl_weight is not None and not 0 < training.kl_weight <= 1:
        raise UserError(f"kl-weight must be in (0, 1], got {training.kl_weight:g}")
    if training.temperature is not None:
        check_temperature(training.temperature)
    if training.epochs is not None and not 0 < training.epochs < math.inf:
        raise UserError(f"epochs must be above 0, got {training.epochs:g}")
    for name in ("penalty_weight", "similarity_weight"):
        if not 0 <= (getattr(training, name) or 0) < math.inf:
            raise UserError(f"{name.replace('_', '-')} must be 0 or more, got {getattr(training, name):g}")
    if training.lora_rank is not None and training.lora_rank < 1:
        raise UserError(f"lora-rank must be at least 1, got {training.lora_rank}")
    if training.lora_rank is not None and training.compute == "gathered":
        raise UserError("with --lora-rank neurons can't be gathered; leave out --compute gathered")
    if training.lora_rank is not None:
        check_peft()
    check_spread(training)
    training.of_steps(training.steps if training.steps is not None else 1, seed=0)
    return training


def check_spread(training: Training) -> None:
    """Raises: UserError where weights can't be spread over the processes, or would be though nobody said so."""
    if not training.fsdp:
        if several() and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise UserError(
                "accelerate was told to use FSDP; say --fsdp, so that the weights come together again before the cut, "
                "and launch with torchrun"
            )
        return
    if not several():
        raise UserError(
            "--fsdp spreads a training over processes, and this is one; start it with torchrun, or leave --fsdp out"
        )
    if training.lora_rank is not None:
        raise UserError(
            "--fsdp spreads gradients and optimizer, which are small with --lora-rank; leave out one of the two"
        )
    have = version("accelerate")
    if tuple(int(part) for part in have.split(".")[:2]) < SPREADS:
        needed = ".".join(map(str, SPREADS))
        raise UserError(f"--fsdp needs accelerate {needed} or newer, and this is {have}: pip install -U accelerate")


def check_source(corpus: Corpus, seq_len: int, train_tokens: int | None, training: Training | None = None) -> None:
    """Raises: UserError where a text has no end, and nobody said how much of it, or an option does not go with it."""
    data = corpus.source
    corpus.check()
    if data == "self" and train_tokens is None:
        raise UserError("the model writes as much text (self) as you like; say how much with --train-tokens")
    if as_long_as_you_like(data) and train_tokens is None:
        raise UserError("a mix is as long as you like; say how much of it with --train-tokens")
    for number in (train_tokens, training and training.eval_tokens):
        if number is not None and not is_source(data):
            check_lengths(seq_len, number)
    if training is None:
        return
    if data == "self" and training.measures:
        name = "eval-tokens" if training.eval_every is None else "eval-every"
        raise UserError(f"text that the model writes itself (self) has no validation split; leave out --{name}")
    if training.loss_on is not None and not is_source(data):
        raise UserError("--loss-on is about pairs of context and completion, and this is plain text; leave it out")


def check_method(
    row: Method,
    training: Training | None,
    *,
    keep: Keep,
    kinds: Sequence[Kind],
    planned: bool,
    scope: str | None = None,
) -> None:
    """kinds: of the units that go. planned: a plan says which stay. scope: as it was given.

    Raises: UserError where a method must train and nobody said how long, or can't train as it was asked to.
    """
    row.solver_of(kinds)
    if training is None:
        if row.learned and not planned:
            raise must_train(row)
        return
    check_scope(row, scope)
    if planned and training.schedule == "cubic":
        raise UserError("drop --schedule cubic, or --plan: a plan prunes at once, and the rest is trained")
    gradual = not planned and training.schedule != "oneshot"
    if gradual and (others := [kind for kind in kinds if kind not in SEAM_KINDS]):
        raise UserError(
            f"{' and '.join(others)} can't go little by little while the model trains, only "
            f"{' and '.join(SEAM_KINDS)} can; prune them at once: --schedule oneshot"
        )
    if row.learned and not (gradual or planned):
        raise UserError(f"method {row.name!r} learns its scores on the way; --schedule oneshot leaves it no time")
    pressed = row.pressure
    uses = {
        "score_lr": (gradual and row.learned, "learned scores"),
        "penalty_weight": (gradual and pressed is not None, "the penalty on learned scores"),
        "similarity_weight": (
            gradual and bool(pressed and pressed.by_similarity),
            "the penalty on neurons that are alike",
        ),
        "warm_start": (gradual and row.learned, "learned scores"),
        "compute": (gradual, "pruning on a schedule"),
    }
    for name, (used, what) in uses.items():
        if getattr(training, name) not in (None, False) and not used:
            raise UserError(f"--{name.replace('_', '-')} is about {what}, which this run does not have; leave it out")
    if gradual and training.steps is not None:
        cubic(min(keep.values()) if isinstance(keep, Mapping) else keep, training.steps)
    if gradual and training.fsdp and (needs_text(row) or training.warm_start):
        what = "--warm-start" if training.warm_start else f"method {row.name!r}"
        raise UserError(
            f"{what} prunes copies of the whole model on the way, and --fsdp has spread it; "
            "use --schedule oneshot, or a method that learns its scores from the start"
        )
    weighs = not row.learned and row.criterion != "random"
    if gradual and training.lora_rank is not None and (weighs or training.warm_start):
        what = "--warm-start" if training.warm_start else f"method {row.name!r}"
        raise UserError(
            f"{what} works on the whole weights on the way, and --lora-rank leaves them frozen; "
            "use --schedule oneshot, or a method that learns its scores from the start"
        )
