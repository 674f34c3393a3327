"""What happens around the steps of a training run: progress and log, perplexity, saved states, a polite stop."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from ..errors import UserError
from ..gradual import GradualPruner
from . import manifest
from .prune_callback import restore_pruner, save_pruner
from .run_folder import RunFolder
from .trainer import counted, in_eval, without_labels

#: called with (steps done, steps in all, what is known now: loss, keep, lr, perplexity)
Report = Callable[[int, int, Mapping[str, float]], None]
#: the log's name of what the Trainer logs: its own, `GradualPruner.progress`, `HeldOut`
LOGGED = {
    "loss": "loss",
    "learning_rate": "lr",
    "keep": "keep",
    "penalty": "penalty",
    "similarity": "similarity",
    "perplexity": "perplexity",
    "kl": "kl",
}


class Log(TrainerCallback):
    """Writes what the Trainer logs, one JSON line a step, and shows it: `step`, `loss` (all of it, the penalty too),
    `lr`, and of a model that is being pruned `keep`, `penalty`, `similarity`; in lines of their own `perplexity`, `kl`.

    A line a step and no averages over several, so that a resumed run's log is the uninterrupted one's.
    """

    def __init__(self, folder: RunFolder | None, report: Report | None):
        self.folder, self.report = folder, report
        self.known: dict[str, float] = {}
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # the weights are spoilt: before this state is saved
            raise UserError(f"the gradient of step {state.global_step} is not finite; try a smaller --lr")
        values = {ours: float(logs[name]) for name, ours in LOGGED.items() if name in logs}
        if not values:  # the Trainer's summary of the run
            return
        self.known |= values
        self.lines.append({"step": state.global_step, **values})
        if self.folder is not None and PartialState().is_main_process:
            self.folder.check_there()
            with self.folder.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = True
        if self.report is not None:
            self.report(state.global_step, state.max_steps, self.known)


class HeldOut(TrainerCallback):
    """Logs the perplexity on held-out examples before the first step, every so many steps and after the last: exp of
    the mean loss of all their counted tokens. log: the Trainer's."""

    def __init__(self, log: Callable[[dict[str, float]], None], batches: Sequence[dict[str, Tensor]], every: int):
        self.log, self.batches, self.every = log, batches, every

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:  # a resumed run has it
            self.log({"perplexity": perplexity_of(model, self.batches)})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.log({"perplexity": perplexity_of(model, self.batches)})


@torch.no_grad()
def perplexity_of(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """exp of the mean negative log-likelihood over all counted tokens of the collated batches: of the text alone, while
    a mixture's own loss may hold that of its router, too."""
    total, count = 0.0, 0
    for inputs in in_eval(model, batches):
        where = counted(inputs["labels"])
        logits_NV = model(**without_labels(inputs), use_cache=False).logits[where]
        targets_N = inputs["labels"][:, 1:][where[:, :-1]]
        total += float(functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum"))
        count += len(targets_N)
    return math.exp(min(total / count, 700.0))


class SavedStates(TrainerCallback):
    """Says when to save, and completes what the Trainer saves: the pruner's state, and the mark that it is whole.

    every: steps between two states, None = only where the run is stopped. None is saved after the last step: a run
    that ends writes its checkpoint next.
    """

    def __init__(self, pruner: GradualPruner | None, every: int | None):
        self.pruner, self.every = pruner, every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = True  # until all of it is there: see `train`
        process = PartialState()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.pruner is not None:
            save_pruner(self.pruner, folder)
        process.wait_for_everyone()
        if process.is_main_process:
            manifest.seal(folder)
        control.should_save = False

    def restore(self, folder: Path) -> None:
        if self.pruner is not None:
            restore_pruner(self.pruner, folder)


class PoliteStop(TrainerCallback):
    """Ctrl-C, or a polite kill, finishes the step, saves, and stops; a second one stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self.stopped_at: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if anywhere(self.asked) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.stopped_at = state.global_step

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def anywhere(asked: bool) -> bool:
    """Whether any process was: all of them have to save the same step, and to end after it."""
    if not (dist.is_available() and dist.is_initialized()):
        return asked
    found = torch.tensor(float(asked), device=PartialState().device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)
