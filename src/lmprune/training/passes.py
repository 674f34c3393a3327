"""A few passes over the text that a pruned model was calibrated on, towards what the dense model predicts there.

`recover` trains on text of its own and stops by text that is held out; this is the short way: what the cut's least
squares see of one layer at a time, the end loss sees of all together (docs/methods.md, "Passes after the cut").
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UserError
from ..scores.passes import undisturbed
from .callbacks import Report
from .settings import TrainSettings, steps_for
from .teachers import OnlineTeacher
from .train import TrainResult, check_trainable, train

#: sequences of a step, and the peak rate (docs/lab_notes.md, 27 November)
A_STEP, RATE = 8, 3e-4
#: steps under which the rate does not rise first: it would be nothing in one of a handful
_FEW = 20


def settings_of(sequences: int, passes: int, seed: int = 0) -> TrainSettings:
    """How `towards` trains on so many sequences.

    >>> settings_of(128, 1).steps, settings_of(8, 3).steps, settings_of(15, 1).steps, settings_of(1, 2).batch_size
    (16, 3, 2, 1)
    """
    if passes < 1:
        raise UserError(f"passes must be at least 1, got {passes}")
    if sequences < 1:
        raise UserError("no sequence was given; a pass needs one at least")
    batch = min(2, sequences)
    accumulated = min(A_STEP, sequences) // batch
    steps = steps_for(passes, sequences, batch * accumulated)
    warmup = 0.0 if steps < _FEW else 0.1
    return TrainSettings(
        steps, RATE, batch_size=batch, grad_accum=accumulated, warmup=warmup, decay="cosine", seed=seed
    )  # fmt: skip


def towards(
    dense: Any, model: Any, input_ids: Tensor, passes: int = 1, *, seed: int = 0, report: Report | None = None
) -> TrainResult:
    """Train all weights of the model, in place, on KL(dense ‖ model) of the tokens it was calibrated on.

    dense: the model before it was cut. input_ids (sequences, T): the same text. seed: of the sequences' order.
    The loss of the log is the mean divergence of a step's tokens, in nats, before the step.
    Raises: UserError for weights that can't be trained, blocks on several devices, or a loss that is not finite.
    """
    check_trainable(model)
    settings = settings_of(len(input_ids), passes, seed)
    examples = [{"input_ids": row} for row in input_ids.cpu()]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with undisturbed(dense), undisturbed(model):
        teacher = OnlineTeacher(dense, model, 1.0)
        model.requires_grad_(True)
        try:
            return train(model, examples, settings, teacher=teacher, kl_weight=1.0, report=report)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
