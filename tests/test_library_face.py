"""Pruning in somebody's own loop and own Trainer: the same as lmprune's own, or a sentence why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LAYERS, WIDTH, logits, tiny_model, tokens
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

import lmprune
from lmprune.errors import UserError
from lmprune.gradual import GradualPruner, GradualSettings
from lmprune.training.lora import add_lora
from lmprune.training.prune_callback import Batches, PruneCallback
from lmprune.training.settings import TrainSettings
from lmprune.training.train import train
from lmprune.training.trainer import PruneTrainer, collate

STEPS, KEEP = 12, 0.5
GUM = GradualSettings(similarity_every=2, penalty_weight=2.0)
#: of different lengths, so that there is padding, which must not count
EXAMPLES = [{"input_ids": row[: 12 + i % 5]} for i, row in enumerate(tokens(44, 16))]


def pruner_of(model: Any, method: str = "gum", num_steps: int = STEPS, **how: Any) -> GradualPruner:
    how = {"keep": KEEP, "settings": GUM, **how}
    return GradualPruner(model, method=method, num_steps=num_steps, **how)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """What lmprune's own trainer takes."""
    how: dict[str, Any] = {
        "max_steps": STEPS, "learning_rate": 5e-3, "lr_scheduler_type": "linear", "warmup_steps": 0.1,
        "weight_decay": 0.1, "per_device_train_batch_size": 4, "logging_strategy": "no", "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "remove_unused_columns": False, "seed": 3, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**how, **changes})


def groups(pruner: GradualPruner) -> Any:
    return pruner.param_groups(lr=5e-3, score_lr=2e-2)


def plain(model: Any, pruner: GradualPruner, folder: Path, *, optimizer: Any = None, **changes: Any) -> Trainer:
    trainer_class, how = changes.pop("trainer_class", Trainer), changes.pop("how", {})
    return trainer_class(
        model, arguments(folder, **changes), train_dataset=EXAMPLES, data_collator=collate,
        optimizers=(optimizer or AdamW(groups(pruner)), None), callbacks=[PruneCallback(pruner)], **how,
    )  # fmt: skip


def outcome(model: Any, pruner: GradualPruner) -> tuple[Any, list[torch.Tensor]]:
    scores = [s.detach().clone() for s in pruner.masks.scores]
    return pruner.finish().kept, [*scores, *(p.detach() for p in model.parameters())]


@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("method", ["gum", "soft", "anti_gum", "top_v"])
def test_a_plain_trainer_prunes_as_lmprunes_own(method: str, grad_accum: int, tmp_path: Path) -> None:
    """With two batches a step, the sixth step of each epoch has only one: 44 examples are 11 batches."""
    found = []
    for own in (True, False):
        model = tiny_model("llama")
        pruner = pruner_of(model, method)
        if own:
            settings = TrainSettings(STEPS, lr=5e-3, score_lr=2e-2, grad_accum=grad_accum, seed=3)
            train(model, EXAMPLES, settings, pruner=pruner)
        else:
            fused = "fused" in arguments(tmp_path).optim  # the Trainer's own default, to the last bit
            usual = AdamW(groups(pruner), fused=fused)
            plain(model, pruner, tmp_path, optimizer=usual, gradient_accumulation_steps=grad_accum).train()
        found.append(outcome(model, pruner))
        assert not model._forward_hooks and not model.base_model._forward_pre_hooks
    (kept, ours), (kept_too, theirs) = found
    assert kept == kept_too
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_penalty_is_what_makes_a_plain_trainer_prune_as_gum(tmp_path: Path) -> None:
    """The control of the test above: without it, top_v's widths and scores come out."""
    found = {}
    for method, weight in (("gum", 2.0), ("gum", 0.0), ("top_v", 0.0)):
        model = tiny_model("llama")
        pruner = pruner_of(model, method, settings=GradualSettings(similarity_every=2, penalty_weight=weight))
        plain(model, pruner, tmp_path).train()
        found[method, weight] = outcome(model, pruner)[1][0]
    assert torch.equal(found["gum", 0.0], found["top_v", 0.0])
    assert (found["gum", 2.0] - found["top_v", 0.0]).abs().max() > 1e-3


def test_an_own_loop_prunes_as_the_step_written_out() -> None:
    found = []
    for face in (True, False):
        model = tiny_model("gpt_neo", resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0).train()
        pruner = pruner_of(model, "gum")
        optimizer = AdamW(groups(pruner))
        for t in range(STEPS):
            batches = [tokens(4, 16, seed=2 * t + i) for i in range(2)]
            if face:
                with pruner.step(t):
                    for batch in batches:
                        (pruner.loss(model(batch, labels=batch).loss) / 2).backward()
                    optimizer.step()
            else:
                pruner.begin_step(t)
                for batch in batches:
                    (model(batch, labels=batch).loss / 2).backward()
                penalty = pruner.penalty()
                assert penalty is not None
                penalty.backward()
                optimizer.step()
                pruner.end_step()
            optimizer.zero_grad()
        masked = logits(model.eval())
        plan = pruner.finish()
        assert isinstance(plan, lmprune.PrunePlan) and plan.keep == KEEP
        assert plan.settings["method"] == "gum" and plan.settings["scope"] == "global" and plan.provenance["versions"]
        lmprune.shrink(model, plan)
        assert torch.allclose(logits(model), masked, atol=1e-4)
        found.append(masked)
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_parts_of_a_step_add_up_to_one_penalty() -> None:
    model = tiny_model("llama").train()
    pruner = pruner_of(model, "soft")
    pruner.begin_step(STEPS - 1)
    zero, penalty = torch.zeros(()), pruner.penalty()
    assert penalty is not None and penalty.item() > 0
    assert sum(pruner.loss(zero, parts=4).item() for _ in range(4)) == pytest.approx(penalty.item())


def test_groups_are_the_trainers_own(tmp_path: Path) -> None:
    """Every parameter once; what decays is what lmprune's trainer lets decay: no norm, by whatever name it goes."""
    for name in ("llama", "gpt2", "gpt_neo", "opt", "qwen3", "phi", "diffllama", "apertus"):
        model = tiny_model(name)
        pruner = pruner_of(model)
        trainer = PruneTrainer(model=model, args=arguments(tmp_path), pruner=pruner, score_lr=2e-2)
        theirs, ours = trainer.create_optimizer().param_groups, groups(pruner)
        assert len(theirs) == len(ours) == 3
        for a, b in zip(theirs, ours, strict=True):
            assert set(map(id, a["params"])) == set(map(id, b["params"])), name
            assert (a["lr"], a["weight_decay"]) == (b["lr"], b["weight_decay"])
        assert all(p.ndim > 1 for p in theirs[0]["params"])
        assert ours[2]["eps"] == theirs[2]["eps"] == 1e-4 and ours[2]["lr"] == 2e-2
    assert pruner_of(tiny_model("llama"), "soft").score_lr == 10 / STEPS
    assert len(pruner_of(tiny_model("llama"), "magnitude").param_groups(lr=1e-3)) == 2


def test_a_plain_trainers_run_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    found = []
    for stops in (False, True):
        model = tiny_model("llama")
        pruner = pruner_of(model, "gum")
        trainer = plain(model, pruner, tmp_path / str(stops), save_strategy="steps", save_steps=7)
        trainer.train()
        if stops:
            model = tiny_model("llama")
            pruner = pruner_of(model, "gum")
            trainer = plain(model, pruner, tmp_path / str(stops), save_strategy="no")
            trainer.train(resume_from_checkpoint=str(tmp_path / str(stops) / "checkpoint-7"))
        found.append(outcome(model, pruner))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    (tmp_path / "True" / "checkpoint-7" / "pruner-0.safetensors").unlink()
    model = tiny_model("llama")
    trainer = plain(model, pruner_of(model), tmp_path / "True")
    with pytest.raises(UserError, match=r"can't go on without .*pruner-0"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "True" / "checkpoint-7"))


def test_a_plain_trainers_run_that_was_killed_before_finish_has_only_that_to_do(tmp_path: Path) -> None:
    """Its state is that of the last step, which ends an epoch: transformers then makes no step more."""
    found = []
    for whole in (None, str(tmp_path / "checkpoint-11")):
        model = tiny_model("llama")
        pruner = pruner_of(model, num_steps=11)
        trainer = plain(model, pruner, tmp_path, max_steps=11, save_strategy="steps", save_steps=11)
        trainer.train(resume_from_checkpoint=whole)
        found.append(outcome(model, pruner))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


class Streamed(IterableDataset[Any]):
    """EXAMPLES in their order; transformers shuffles no such set."""

    def __iter__(self) -> Iterator[Any]:
        return iter(EXAMPLES)


class Counted(Streamed):
    def __len__(self) -> int:
        return len(EXAMPLES)


def test_a_streaming_text_without_a_length_trains_as_one_with_it(tmp_path: Path) -> None:
    found = []
    for text in (Streamed(), Counted()):
        model = tiny_model("llama")
        pruner = pruner_of(model, "gum")
        trainer = plain(model, pruner, tmp_path)
        trainer.train_dataset = text
        trainer.train()
        found.append(outcome(model, pruner))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


# -- what is refused


@pytest.mark.parametrize("rank", [None, 2])
def test_what_an_older_run_left_in_output_dir_is_not_taken_for_the_resumed_ones(
    rank: int | None, tmp_path: Path
) -> None:
    for seed in (1, 2):
        model = tiny_model("llama")
        trained = model if rank is None else add_lora(model, rank, 0)
        pruner = pruner_of(model, settings=replace(GUM, compute="full"))
        how = {"save_strategy": "steps", "save_steps": 7, "seed": seed}
        plain(trained, pruner, tmp_path / str(seed), **how).train()
    model = tiny_model("llama")
    trained = model if rank is None else add_lora(model, rank, 0)
    pruner = pruner_of(model, settings=replace(GUM, compute="full"))
    trainer = plain(trained, pruner, tmp_path / "1")
    with pytest.raises(UserError, match=r"checkpoint-7/pruner-0.* beside other weights.*let output_dir be the folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "2" / "checkpoint-7"))
    trainer = plain(trained, pruner, tmp_path / "2")
    trainer.train(resume_from_checkpoint=str(tmp_path / "2" / "checkpoint-7"))


def test_a_run_does_not_begin_with_what_another_has_pruned(tmp_path: Path) -> None:
    """Units that had gone in the first run were gone in the second's first steps, and came back in its tenth part."""
    model = tiny_model("llama")
    pruner = pruner_of(model)
    plain(model, pruner, tmp_path / "first").train()
    with pytest.raises(UserError, match=rf"step 0 can't follow after {STEPS} steps.*a new GradualPruner"):
        plain(model, pruner, tmp_path / "second").train()


class OwnLoss(Trainer):
    """Computes its loss from the logits, past the model's."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        loss = outputs.logits.float().square().mean()
        return (loss, outputs) if return_outputs else loss


def own_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return outputs.logits.float().square().mean()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_smoothing_factor": 0.1}, "ended without the penalty of 'gum'"),
        ({"trainer_class": OwnLoss}, "ended without the penalty of 'gum'"),
        ({"how": {"compute_loss_func": own_loss}}, "ended without the penalty of 'gum'"),
        ({"max_steps": STEPS + 1}, f"schedule is for {STEPS} steps, and this training has {STEPS + 1}"),
        ({"auto_find_batch_size": True}, "would start the schedule anew"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps",
          "save_steps": 5, "how": {"eval_dataset": EXAMPLES[:4]}}, "take weights from before"),
    ],
)  # fmt: skip
def test_a_trainer_that_would_prune_otherwise_is_refused(changes: Any, sentence: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    pruner = pruner_of(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UserError, match=sentence) as caught:
        plain(model, pruner, tmp_path, **changes).train()
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))  # no step was taken


def test_methods_without_a_penalty_take_any_loss(tmp_path: Path) -> None:
    model = tiny_model("llama")
    pruner = pruner_of(model, "top_v")
    plain(model, pruner, tmp_path, trainer_class=OwnLoss).train()
    assert pruner.finish().keep == KEEP


def test_a_prune_trainer_with_the_callback_too_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    pruner = pruner_of(model)
    with pytest.raises(UserError, match="no PruneCallback"):
        PruneTrainer(model=model, args=arguments(tmp_path), pruner=pruner, callbacks=[PruneCallback(pruner)])


def one_group(pruner: GradualPruner) -> Any:
    return AdamW(pruner.model.parameters(), lr=1e-3)


def changed(**changes: Any) -> Any:
    def optimizer(pruner: GradualPruner) -> Any:
        *weights, scores = groups(pruner)
        return AdamW([*weights, {**scores, **changes}])

    return optimizer


OPTIMIZERS = [
    (one_group, "are in one group with weights"),
    (lambda pruner: AdamW(groups(pruner)[:2]), "are not in the optimizer"),
    (changed(eps=1e-8), "have ε = 1e-08"),
    (changed(weight_decay=0.1), "have a weight decay of 0.1"),
    (changed(lr=5e-3), "have the weights' learning rate of 0.005"),
]


@pytest.mark.parametrize(("optimizer", "sentence"), OPTIMIZERS)
def test_an_optimizer_that_would_not_train_scores_as_scores_is_refused(
    optimizer: Any, sentence: str, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    pruner = pruner_of(model, "top_v")
    with pytest.raises(UserError, match=f"{sentence}.*pruner.param_groups"):
        plain(model, pruner, tmp_path, optimizer=optimizer(pruner)).train()
    batch, wrong = tokens(), optimizer(pruner)
    with pytest.raises(UserError, match=f"{sentence}.*pruner.param_groups"), pruner.step(0):
        pruner.loss(model.train()(batch, labels=batch).loss).backward()
        wrong.step()


def test_a_trainers_own_optimizer_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=EXAMPLES, data_collator=collate,
        callbacks=[PruneCallback(pruner_of(model))],
    )  # fmt: skip
    with pytest.raises(UserError, match="one group with weights"):
        trainer.train()


def test_optimizers_that_are_right_in_another_way_are_taken() -> None:
    """One for the weights and one for the scores; one rate that was asked for; a schedule that begins at 0; SGD."""

    def apart(pruner: GradualPruner) -> list[Any]:
        *weights, scores = groups(pruner)
        return [SGD(weights), AdamW([scores])]

    def warming(pruner: GradualPruner) -> list[Any]:
        optimizer = AdamW(groups(pruner))
        LambdaLR(optimizer, lambda step: step / STEPS)
        return [optimizer]

    for make in (apart, warming, lambda p: [AdamW(p.param_groups(lr=1e-3, score_lr=1e-3))], lambda p: [SGD(groups(p))]):
        model = tiny_model("llama").train()
        pruner = pruner_of(model, "top_v")
        optimizers, batch = make(pruner), tokens()
        with pruner.step(0):
            pruner.loss(model(batch, labels=batch).loss).backward()
            for optimizer in optimizers:
                optimizer.step()


def test_a_step_without_its_penalty_is_refused() -> None:
    model = tiny_model("llama").train()
    pruner = pruner_of(model)
    batch = tokens()
    ways: list[Any] = [lambda loss: loss.backward(), lambda loss: (pruner.loss(loss), loss.backward()), pruner.loss]
    for forgets in ways:
        sentence = r"step 0 ended without the penalty of 'gum': call backward\(\) on"
        with pytest.raises(UserError, match=sentence), pruner.step(0):
            forgets(model(batch, labels=batch).loss)
    with pruner.step(0):  # the control
        pruner.loss(model(batch, labels=batch).loss).backward()
    with pytest.raises(UserError, match="step 1 ended without"), pruner.step(1):  # that it was there once is not enough
        model(batch, labels=batch).loss.backward()


def test_steps_are_counted_through() -> None:
    model = tiny_model("llama")
    pruner = pruner_of(model, "magnitude")
    for t in range(3):
        with pruner.step(t):
            pass
    for wrong in (0, 2, 4):
        with pytest.raises(UserError, match=f"step {wrong} can't follow after 3 steps"), pruner.step(wrong):
            pass
    with pytest.raises(UserError, match="3 of 12 steps are done, and 85% of the neurons asked for, not 50% yet"):
        pruner.finish()
    assert pruner.finish(early=True).keep == pytest.approx(0.85, abs=0.01)
    with pytest.raises(UserError, match="is finished"):
        pruner.finish()


def test_what_is_no_loss_and_a_second_pruner_are_refused() -> None:
    model = tiny_model("llama")
    pruner = pruner_of(model)
    with pytest.raises(UserError, match=r"expected the loss.*got CausalLMOutput"):
        pruner.loss(model(tokens()))
    with pytest.raises(UserError, match=r"expected the loss.*got \(2, 12\)"):
        pruner.loss(tokens().float())
    with pytest.raises(UserError, match="being pruned already"):
        pruner_of(model)
    assert sum(mask.count for mask in pruner.masks) == LAYERS * WIDTH


def test_batches_of_a_step() -> None:
    assert [Batches(4, 1, 10).parts(step) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [Batches(4, 2, 8).parts(step) for step in range(3)] == [8, 8, 8]
    assert Batches(4, 1, None).parts(5) == 4
