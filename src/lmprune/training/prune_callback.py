"""Pruning from transformers' plain Trainer, anybody's: the masks move with its steps, and the model's own loss carries
the method's penalty. Whatever of the Trainer's would make it another method is refused before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import has_length

from ..checkpoints.tensor_file import raw
from ..errors import UserError
from ..gradual import GradualPruner

_SCORES, _WEIGHTS = "scores.", "weights"
_FEW = 1024

#: what a Trainer can be told to do that goes against pruning, and what to say of it
_REFUSED: tuple[tuple[str, Callable[[TrainingArguments], bool]], ...] = (
    ("load_best_model_at_end would take weights from before the last neurons went", lambda a: a.load_best_model_at_end),
    ("auto_find_batch_size would start the schedule anew in the middle of it", lambda a: a.auto_find_batch_size),
    ("several GPUs in one process (DataParallel) have copies without masks; use torchrun", lambda a: a.n_gpu > 1),
)


class MaskSteps(TrainerCallback):
    """Moves a GradualPruner's masks along with a Trainer's optimizer steps, and no more."""

    def __init__(self, pruner: GradualPruner):
        self.pruner = pruner

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pruner.begin_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pruner.end_step()


class PruneCallback(MaskSteps):
    """Prunes a model while transformers' Trainer, anybody's, trains it as it would without:

        optimizer = AdamW(pruner.param_groups(lr=5e-4, score_lr=1e-2))
        Trainer(model, args, …, optimizers=(optimizer, None), callbacks=[PruneCallback(pruner)]).train()

    The penalty of a method is in the model's own loss (as AdaLora's is), so the Trainer's has to be that one.
    Raises, from `train()`: UserError where the steps are not the pruner's, the optimizer would not train learned scores
    as scores, or a step's gradient came without the penalty.
    """

    def __init__(self, pruner: GradualPruner):
        super().__init__(pruner)
        self._batches = Batches(1, 1, 1)
        self._take_off: Callable[[], None] = lambda: None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any = None, optimizer: Any = None,
        train_dataloader: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        _check(args, state, self.pruner)
        self.pruner.check_optimizer(optimizer)
        if state.global_step:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            check_beside(model, self.pruner, folder)
            restore_pruner(self.pruner, folder)
        else:
            self.pruner.check_follows(0)
        self._batches = Batches.of(args, train_dataloader)
        self._take_off()
        self._take_off = _penalise(model, self.pruner, lambda: self._batches.parts(state.global_step))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pruner.check_pressed()

    def on_save(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_pruner(self.pruner, folder, {_WEIGHTS: _glance(model, self.pruner)})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._take_off()


class Batches:
    """How many batches' losses a step's is the sum of, where the Trainer asks the model for its share of a whole step's
    mean (`num_items_in_batch`); the last step of an epoch may have fewer."""

    def __init__(self, accumulated: int, processes: int, in_epoch: int | None):
        self.accumulated, self.processes, self.in_epoch = accumulated, processes, in_epoch

    @classmethod
    def of(cls, args: TrainingArguments, loader: Any) -> Batches:
        counted = len(loader) if has_length(loader) else None
        together = PartialState().num_processes if args.average_tokens_across_devices else 1
        return cls(args.gradient_accumulation_steps, together, counted)

    def parts(self, step: int) -> float:
        """`step` steps being done. The Trainer multiplies a share by the number of processes, which the average over
        them undoes; the penalty is the same on all of them."""
        number = self.accumulated
        if self.in_epoch is not None and self.in_epoch % number:
            steps = -(-self.in_epoch // number)
            number = self.in_epoch % number if step % steps == steps - 1 else number
        return number * self.processes


def _check(args: TrainingArguments, state: Any, pruner: GradualPruner) -> None:
    if state.max_steps != pruner.num_steps:
        raise UserError(
            f"the pruner's schedule is for {pruner.num_steps} steps, and this training has {state.max_steps}; "
            "make the GradualPruner with that num_steps"
        )
    for what, asked in _REFUSED:
        if asked(args):
            raise UserError(f"{what}; leave it out where a model is pruned on the way")


def _penalise(model: nn.Module, pruner: GradualPruner, parts: Callable[[], float]) -> Callable[[], None]:
    """Let the loss of the model's training passes carry the penalty; what comes back ends that.

    A function and not a method does it: a copy of the model must not copy the pruner.
    """
    if pruner.pressing is None:
        return lambda: None

    def add(module: nn.Module, _args: Any, inputs: dict[str, Any], outputs: Any) -> Any:
        if not module.training or not torch.is_grad_enabled() or inputs.get("labels") is None:
            return outputs
        share = parts() if inputs.get("num_items_in_batch") is not None else 1
        if isinstance(outputs, tuple):
            return (pruner.loss(outputs[0], parts=share), *outputs[1:])
        outputs["loss"] = pruner.loss(outputs["loss"], parts=share)
        return outputs

    return model.register_forward_hook(add, with_kwargs=True).remove


def save_pruner(pruner: GradualPruner, folder: Path, told: dict[str, str] | None = None) -> None:
    """Beside what a Trainer saves in `folder`, a file a process. told: what it says of itself.

    The scores too: with LoRA the Trainer saves the factors and nothing else of the model.
    """
    scores = {f"{_SCORES}{layer}": s for layer, s in enumerate(pruner.masks.whole_scores())}
    save_file(pruner.state() | scores, _file(folder), told)


def check_beside(model: nn.Module, pruner: GradualPruner, folder: Path) -> None:
    """Raises: UserError where the pruner's file in `folder` was saved beside other weights than the model has now.

    A callback is not told which checkpoint a Trainer goes on from, and an older run may have left another of the same
    number in its `output_dir`. By another number of processes each may have had another share of the weights.
    """
    if not (file := _file(folder)).is_file():
        return
    with safe_open(file, "pt") as opened:
        before = (opened.metadata() or {}).get(_WEIGHTS)
    now = _glance(model, pruner)
    if before and before.split()[0] == now.split()[0] and before != now:
        raise UserError(
            f"{file} was saved beside other weights than those that this training goes on from; let output_dir be the "
            "folder of the checkpoint that is resumed"
        )


def _glance(model: nn.Module, pruner: GradualPruner) -> str:
    """The number of processes, and what tells the weights from those of another run: the first of each that trains."""
    digest, scores = hashlib.sha256(), {id(s) for s in pruner.masks.scores}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in scores:
            own: Any = parameter.detach()
            digest.update(raw((own.to_local() if hasattr(own, "to_local") else own).flatten()[:_FEW]))
    return f"{PartialState().num_processes} {digest.hexdigest()}"


@torch.no_grad()
def restore_pruner(pruner: GradualPruner, folder: Path) -> None:
    """Also by another number of processes than saved it. Raises: UserError where nothing was saved there."""
    process = PartialState()
    saved = {int(file.stem.split("-")[1]): file for file in folder.glob("pruner-*.safetensors")}
    same = len(saved) == process.num_processes
    mine = process.process_index if same else 0
    if mine not in saved:
        raise UserError(f"can't go on without {_file(folder)}, which PruneCallback saves beside a Trainer's state")
    state, *others = (load_file(saved[number]) for number in ([mine] if same else sorted(saved)))
    for layer, scores in enumerate(pruner.masks.scores):
        scores.copy_(state.pop(f"{_SCORES}{layer}"))
    pruner.load_state(state, *others, process=process.process_index)


def _file(folder: Path) -> Path:
    return folder / f"pruner-{PartialState().process_index}.safetensors"
