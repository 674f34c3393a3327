"""Training on transformers' Trainer: a callback for the masks, and a Trainer with another loss and optimizer groups.

Everything else (accumulation, mixed precision, gradient checkpointing, logging, several processes) is the Trainer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.pairs import IGNORED
from ..errors import UserError
from ..gradual import GradualPruner

#: AdamW's ε for scores: with torch's 1e-8 every score would move by lr × sign, and the penalty's size cancel out
SCORE_EPS = 1e-4
SCORE_LR = 1e-2


class Teacher(Protocol):
    """Says how far a student's predictions are from a teacher's."""

    def divergence(self, inputs: dict[str, Tensor], rows: Tensor | None, student_NV: Tensor, where: Tensor) -> Tensor:
        """(N,): T² · KL of each counted token. student_NV: the student's logits at `where` (B, T), True = counted.

        rows (B,): the examples' positions in the training data, None where they are not known.
        """
        ...


class PruneCallback(TrainerCallback):
    """Moves a GradualPruner along while a Trainer, anybody's, trains the model."""

    def __init__(self, pruner: GradualPruner):
        self.pruner = pruner

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.pruner.begin_step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.pruner.end_step()


class PruneTrainer(Trainer):
    """A Trainer with the scores' penalty and a teacher's divergence in its loss; learned scores have their own rate.

    pruner: the masks that are attached to the model; None = plain fine-tuning.
    teacher: None = cross-entropy alone; otherwise loss = (1 - kl_weight) · CE + kl_weight · T² KL, both means over the
    tokens that count. score_lr: learning rate of the learned scores, on the same warm-up and decay as the weights.
    """

    def __init__(
        self,
        *args: Any,
        pruner: GradualPruner | None = None,
        teacher: Teacher | None = None,
        kl_weight: float = 0.5,
        score_lr: float = SCORE_LR,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # which it tells by the class's name: the tokens of a GPT2LMHeadModel it would count with the first one
        self._loss_shifts_labels = True
        self.pruner, self.teacher = pruner, teacher
        self.kl_weight, self.score_lr = kl_weight, score_lr
        if pruner is not None:
            self.add_callback(PruneCallback(pruner))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.pruner is not None and (scores := self.pruner.masks.scores):
            separate(optimizer, scores, self.score_lr)
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
        labels = inputs["labels"]
        if self.pruner is not None and self.pruner.estimate is not None:
            self.pruner.estimate.counts_BT = inputs.get("attention_mask", torch.ones_like(labels)).bool()
        loss, outputs = cast(tuple[Tensor, Any], super().compute_loss(model, inputs, True, num_items_in_batch))
        if model.training:
            # With num_items_in_batch each micro-batch's loss is its part of the whole batch's mean; without, the
            # Trainer divides by the accumulation steps later on. Penalty and divergence go the same way.
            in_parts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            if self.teacher is not None:
                far = self._divergence(inputs, rows, outputs.logits, num_items_in_batch if in_parts else None)
                loss = (1 - self.kl_weight) * loss + self.kl_weight * far
            if self.pruner is not None and (penalty := self.pruner.penalty()) is not None:
                loss = loss + penalty / (self.current_gradient_accumulation_steps if in_parts else 1)
            if not loss.isfinite():
                step = self.state.global_step + 1
                raise UserError(f"the loss of step {step} is {loss.item()}; try a smaller --lr, or look at the data")
        return (loss, outputs) if return_outputs else loss

    def _divergence(
        self, inputs: dict[str, Tensor], rows: Tensor | None, logits_BTV: Tensor, num_items: Tensor | int | None
    ) -> Tensor:
        assert self.teacher is not None
        counted = torch.zeros_like(inputs["labels"], dtype=torch.bool)
        counted[:, :-1] = inputs["labels"][:, 1:] != IGNORED  # the logits at t are about the token at t + 1
        far_N = self.teacher.divergence(inputs, rows, logits_BTV[counted], counted)
        if num_items is None:
            return far_N.mean()
        return far_N.sum() / num_items * self.accelerator.num_processes  # which the processes' average undoes


def separate(optimizer: torch.optim.Optimizer, scores: Sequence[nn.Parameter], lr: float) -> None:
    """Give learned scores a group of their own: learning rate `lr`, ε = 1e-4, no weight decay.

    Source: docs/methods.md, "Learned scores".
    """
    mine = set(map(id, scores))
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in mine]
    optimizer.add_param_group({"params": list(scores), "lr": lr, "eps": SCORE_EPS, "weight_decay": 0.0})


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
