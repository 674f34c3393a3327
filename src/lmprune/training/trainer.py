"""Training on transformers' Trainer: one with another loss and optimizer groups.

Everything else (accumulation, mixed precision, gradient checkpointing, logging, several processes) is the Trainer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, cast

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from transformers import Trainer

from ..data.pairs import IGNORED
from ..errors import UserError
from ..gradual import GradualPruner
from ..gradual.optimizing import decaying_names
from .prune_callback import MaskSteps, PruneCallback
from .spread import spread_on_processors


class Teacher(Protocol):
    """Says how far a student's predictions are from a teacher's."""

    def divergence(self, inputs: dict[str, Tensor], rows: Tensor | None, student_NV: Tensor, where: Tensor) -> Tensor:
        """(N,): T² · KL of each counted token. student_NV: the student's logits at `where` (B, T), True = counted.

        rows (B,): the examples' positions in the training data, None where they are not known.
        """
        ...

    def identity(self) -> str:
        """What tells it from other teachers, wherever it is."""
        ...


class PruneTrainer(Trainer):
    """A Trainer with the scores' penalty and a teacher's divergence in its loss; learned scores have their own rate.

    pruner: the masks that are attached to the model; None = plain fine-tuning.
    teacher: None = cross-entropy alone; otherwise loss = (1 - kl_weight) · CE + kl_weight · T² KL, both means over the
    tokens that count. score_lr: learning rate of the learned scores, on the same warm-up and decay as the weights;
    None = their usual one.
    """

    def __init__(
        self,
        *args: Any,
        pruner: GradualPruner | None = None,
        teacher: Teacher | None = None,
        kl_weight: float = 0.5,
        score_lr: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # which it tells by the class's name: the tokens of a GPT2LMHeadModel it would count with the first one
        self._loss_shifts_labels = True
        self.pruner, self.teacher = pruner, teacher
        self.kl_weight, self.score_lr = kl_weight, score_lr
        if any(isinstance(callback, PruneCallback) for callback in self.callback_handler.callbacks):
            raise UserError("a PruneTrainer moves its pruner itself; give it pruner=…, and no PruneCallback")
        if pruner is not None:
            self.add_callback(MaskSteps(pruner))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        how: dict[str, Any] | None = self.args.fsdp_plugin_args  # type: ignore[assignment]  # transformers: of int
        if how is not None and not self.is_fsdp_enabled:
            spread_on_processors(self.accelerator, FullyShardedDataParallelPlugin(**how))
            self.is_fsdp_enabled = True

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """transformers' own rule goes by names, and lets scalars and some norms decay (diffllama's, apertus')."""
        return decaying_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.pruner is not None and self.pruner.masks.scores:
            separate(optimizer, self.pruner.score_group(self.score_lr))
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what the pruner says of the step, so that TensorBoard, W&B and trackio show it too."""
        if self.pruner is not None and "loss" in logs:
            logs = logs | self.pruner.progress()
        super().log(logs, start_time)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        rows = inputs.pop("row", None)
        with self.accelerator.autocast() if self.args.fsdp else nullcontext():  # else the model's own forward has it
            if model.training and self.teacher is not None and self.kl_weight == 1:
                loss, outputs = cast(Any, 0.0), model(**without_labels(inputs))
            else:
                loss, outputs = cast(tuple[Tensor, Any], super().compute_loss(model, inputs, True, num_items_in_batch))
        if model.training:
            # With num_items_in_batch each micro-batch's loss is its part of the whole batch's mean; without, the
            # Trainer divides by the accumulation steps later on. Penalty and divergence go the same way.
            in_parts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            if self.teacher is not None:
                far = self._divergence(inputs, rows, outputs.logits, num_items_in_batch if in_parts else None)
                loss = (1 - self.kl_weight) * loss + self.kl_weight * far
            if self.pruner is not None:
                loss = self.pruner.loss(loss, parts=self.current_gradient_accumulation_steps if in_parts else 1)
            if not loss.isfinite():
                step = self.state.global_step + 1
                raise UserError(f"the loss of step {step} is {loss.item()}; try a smaller --lr, or look at the data")
        return (loss, outputs) if return_outputs else loss

    def _divergence(
        self, inputs: dict[str, Tensor], rows: Tensor | None, logits_BTV: Tensor, num_items: Tensor | int | None
    ) -> Tensor:
        assert self.teacher is not None
        where = counted(inputs["labels"])
        with self.accelerator.autocast():
            far_N = self.teacher.divergence(inputs, rows, logits_BTV[where], where)
        if num_items is None:
            return far_N.mean()
        return far_N.sum() / num_items * self.accelerator.num_processes  # which the processes' average undoes


def counted(labels_BT: Tensor) -> Tensor:
    """Where the logits count, (B, T): those at t are about the token at t + 1."""
    where = torch.zeros_like(labels_BT, dtype=torch.bool)
    where[:, :-1] = labels_BT[:, 1:] != IGNORED
    return where


def without_labels(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a teacher alone is asked about: the text's own loss has no share then, and takes as long."""
    return {name: value for name, value in inputs.items() if name != "labels"}


def as_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A collated batch as the model takes it, where the model is."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items() if name != "row"}


def in_eval(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches as inputs, while the model is in eval mode; afterwards it is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        for batch in batches:
            yield as_inputs(model, batch)
    finally:
        model.train(training)


def separate(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Take parameters out of the optimizer's groups into one of their own (`GradualPruner.score_group`)."""
    mine = set(map(id, group["params"]))
    for other in optimizer.param_groups:
        other["params"] = [p for p in other["params"] if id(p) not in mine]
    optimizer.add_param_group(group)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Examples with `input_ids` and, where not all tokens count, `labels`, padded right to the batch's longest.

    With token 0, which every model knows: a tokenizer's own padding may be beyond the embedding. Nothing sees it.
    `row`, where the examples have it, goes along.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for i, example in enumerate(examples):
        ids = torch.as_tensor(example["input_ids"], dtype=torch.long)
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["labels"][i, : len(ids)] = torch.as_tensor(example.get("labels", ids), dtype=torch.long)
    if all("row" in example for example in examples):
        batch["row"] = torch.tensor([example["row"] for example in examples])
    return batch
