"""`lmprune prune --recover N`: passes over the calibration text after the cut, as the job sees them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ..data.tokens import sequences
from ..errors import UserError
from ..processes import several
from ..progress import Teller
from ..sites.limits import check_one_device, check_whole
from .asked import Asked, Made, Opened
from .reproduce import data_record
from .training_options import Training


def check_passes(options: Mapping[str, Any], training: Training | None) -> None:
    """Raises: UserError where there can be no passes after the cut, or something else comes after it."""
    if not options["recover"]:
        return
    if training is not None:
        raise UserError("drop --recover, or the options of a training: what --steps and --epochs train is recovered")
    if options["max_ppl_ratio"] is not None:
        raise UserError(
            "--max-ppl-ratio judges models as they are cut; drop --recover, and recover from the cut afterwards "
            "(lmprune recover)"
        )
    if options["stream"]:
        raise UserError("--recover trains the whole model, and --stream leaves it in its files; drop one of the two")
    if options["dtype"] == "float16":
        raise UserError("drop --recover, or --dtype float16, in which weights can't be trained; take --dtype float32")
    if several():
        raise UserError("--recover trains in one process; prune with torchrun, and then `lmprune recover`")


def dense_copy(passes: int, model: Any) -> Any:
    """What the passes go towards, before the model is cut; None where there are none. Raises: UserError."""
    if not passes:
        return None
    check_whole(model, "--recover can't train")
    check_one_device(model, "--recover can't train")
    from ..training.train import check_place, check_trainable

    check_trainable(model)
    check_place(model)
    return copy.deepcopy(model)


def recovered(terminal: Teller, asked: Asked, opened: Opened, made: Made, dense: Any) -> Made:
    """The same model after its passes, with what its plan and its record say of them."""
    from ..training.passes import settings_of, towards
    from .train import record_of

    assert opened.text is not None
    seq_len, seed = asked["seq_len"], asked["seed"]
    num_tokens = asked.calibration_tokens
    ids = sequences(opened.tokenizer, opened.text, seq_len=seq_len, num_tokens=num_tokens, seed=seed)
    settings = settings_of(len(ids), asked["recover"], seed)
    with terminal.training(settings.steps) as report:
        result = towards(dense, made.model, ids, asked["recover"], seed=seed, report=report)
    how = {**asdict(settings), "teacher": asked["model"], "kl_weight": 1.0, "temperature": 1.0}
    plan = replace(
        made.plan,
        settings={**made.plan.settings, "schedule": "oneshot", "training": how},
        provenance={**made.plan.provenance, "training": data_record(opened.text, opened.tokenizer)},
    )
    return replace(made, plan=plan, training=record_of(settings, result, "oneshot"), log=result.log)
