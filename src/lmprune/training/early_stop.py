"""A training that ends when held-out text says so, or the clock; its result is the best that there was on the way."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from ..checkpoints.writing import written_aside
from ..foreign import json_of, reading
from ..sites.masks import whole_tensor
from .callbacks import anywhere
from .spread import own, put
from .trainer import Teacher, as_inputs, counted, in_eval, without_labels

#: the trained weights that were nearest to the teacher, in the run's folder
BEST = "best.safetensors"


class EarlyStop(TrainerCallback):
    """Logs the divergence `kl` from the teacher on held-out batches before the first step, every so many, at the end.

    teacher: at temperature 1. every: in steps. patience: the run ends after so many measurements in a row that were no
    better than the one before: while the rate is high, all may be worse than the first, and fall. minutes: it ends
    when so long has passed, None = it has the time. folder: where the best weights are kept meanwhile, so that a
    resumed run has them.
    """

    def __init__(
        self, teacher: Teacher, batches: Sequence[Mapping[str, Tensor]], *, every: int, patience: int,
        minutes: float | None, folder: Path,
    ):  # fmt: skip
        self.teacher, self.batches, self.every, self.patience = teacher, batches, every, patience
        self.seconds = None if minutes is None else 60 * minutes
        self.file = folder / BEST
        self.log: Callable[[dict[str, float]], None] = lambda _: None  # the Trainer's, once it is there
        self.lines: Callable[[], Sequence[Mapping[str, Any]]] = tuple  # of the log, up to where a run goes on
        self.why = "the last step"
        self._least, self._last, self._worse, self._start = math.inf, math.inf, 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._start = time.perf_counter()
        if state.global_step == 0:
            self._measure(model, 0)
            return
        for line in self.lines():  # a resumed run is as patient as the one that it goes on with
            if "kl" in line:
                self._is_better(line["kl"])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        over = anywhere(self.seconds is not None and time.perf_counter() - self._start >= self.seconds)
        if over or state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(model, state.global_step)
        if state.global_step < state.max_steps and (over or self._worse >= self.patience):
            self.why = "the time" if over else "no better on held-out text"
            control.should_training_stop = True

    def _measure(self, model: Any, step: int) -> None:
        found = divergence_of(model, self.teacher, self.batches)
        self.log({"kl": found})
        if not self._is_better(found):
            return
        learned = {}
        for name, parameter in _learned(model).items():  # in every process: each may have a share of it
            value = whole_tensor(parameter)
            if PartialState().is_main_process:
                learned[name] = value.cpu().contiguous()
        if PartialState().is_main_process:
            with written_aside(self.file, folder=False) as aside:
                save_file(learned, aside, {"lmprune": json.dumps({"kl": found, "step": step})})
        PartialState().wait_for_everyone()

    def _is_better(self, found: float) -> bool:
        """Than all before in this run, whatever a later state of one that is gone on with came to."""
        better, self._worse = found < self._least, 0 if found < self._last else self._worse + 1
        self._least, self._last = min(found, self._least), found
        return better

    @property
    def best(self) -> tuple[float, int] | None:
        """The smallest divergence, and the step after which it was measured."""
        if not self.file.exists():
            return None
        with reading(f"{self.file} is damaged", "throw the run away with --force"), safe_open(self.file, "pt") as file:
            told = json_of(file.metadata()["lmprune"])
            return float(told["kl"]), int(told["step"])

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        """Give the model the best weights. It is the one that was trained, what LoRA learned not yet merged."""
        with reading(f"{self.file} is damaged", "throw the run away with --force"), safe_open(self.file, "pt") as file:
            own(model)
            for name, parameter in _learned(model).items():
                put(parameter, file.get_tensor(name))


def _learned(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def divergence_of(model: Any, teacher: Teacher, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """The mean of the teacher's divergence over all counted tokens of the collated batches, the model in eval mode."""
    total, count = 0.0, 0
    for inputs in in_eval(model, batches):
        where = counted(inputs["labels"])
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        total += float(teacher.divergence(inputs, None, logits[where], where).double().sum())
        count += int(where.sum())
    return total / count


def seconds_of_a_step(
    model: Any, teacher: Teacher, batch: Mapping[str, Tensor], batches: int, *, kl_weight: float, bf16: bool
) -> float:
    """How long a step of so many such batches takes, without the optimizer: the second of two tries. The model stays as
    it is."""
    training, taken = model.training, 0.0
    model.train()
    inputs, alone = as_inputs(model, batch), kl_weight == 1
    where = counted(inputs["labels"])
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            outputs = model(**(without_labels(inputs) if alone else inputs), use_cache=False)
            far = teacher.divergence(inputs, None, outputs.logits[where], where).mean()
        (far if alone else far + outputs.loss).backward()
        model.zero_grad(set_to_none=True)
        taken = time.perf_counter() - start
    model.train(training)
    return taken * batches
