"""A training as the command line asks for it: what is read, where it goes, and the two ways to prune beside it.

Under torchrun or accelerate every process runs the same code; the first one alone writes and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState

from .. import pruning
from ..budget.keeps import Keep
from ..budget.selection import Scope
from ..checkpoints import checkpoint, dtypes, models
from ..checkpoints.fingerprint import weights_fingerprint
from ..checkpoints.shrinking import shrink
from ..data import TextData
from ..data.beginning import Beginning
from ..data.overlap import in_common
from ..data.tokens import sequences, stream
from ..errors import Interrupted, UserError
from ..gradual import GradualPruner
from ..methods import Method, needs_text
from ..plan import PLAN_FILE, PrunePlan
from ..processes import check_agreed
from ..progress import Teller
from ..scores.redundancy import uniqueness
from ..sites.address import Kind
from ..sites.families import FFNSpec
from ..sites.find import find_sites
from ..sites.limits import check_seq_len
from ..sites.mixtures import is_mixture
from ..sites.proof import check_ffns
from ..training.early_stop import EarlyStop
from ..training.examples import Corpus, check_examples
from ..training.lora import add_lora, merged
from ..training.run_folder import RunFolder
from ..training.settings import TrainSettings
from ..training.spread import filled, outline
from ..training.teachers import STORED, OnlineTeacher, StoredTeacher, fingerprint
from ..training.train import TrainResult, check_enough, check_tracker, check_trainable, train
from ..training.trainer import Teacher
from .opening import check_tokenizer
from .reproduce import data_record
from .training_options import Training

#: tokens of the validation split that --eval-every reads
HELD_OUT_TOKENS = 16384
#: tokens of the training text that the uniqueness of the result is measured on
UNIQUENESS_TOKENS = 16384


@dataclass(frozen=True)
class Prepared:
    """What a training needs beside the model."""

    examples: list[dict[str, Any]]
    settings: TrainSettings
    teacher: Teacher | None
    held_out: list[dict[str, Any]]
    stop: EarlyStop | None = None


@dataclass(frozen=True)
class Job:
    """A training about to begin. text: the training split of `corpus`, read. how: dtype, device, … for a teacher."""

    terminal: Teller
    training: Training
    tokenizer: Any
    corpus: Corpus
    text: TextData
    seq_len: int
    seed: int
    folder: RunFolder
    how: Mapping[str, Any]
    spec: FFNSpec | None = None

    def prepare(self, model: Any) -> Prepared:
        """All that may turn out to be wrong; call it before long work on the model. Raises: UserError."""
        if self.training.lora_rank is None:
            check_trainable(model)
        examples = self.examples(model)
        check_examples(examples, model)
        settings = self.training.settings(len(examples), self.seed)
        check_enough(settings, len(examples), PartialState().num_processes)
        check_tracker(settings.report_to)
        held_out = self.held_out(model)
        check_examples(held_out, model)
        text = fingerprint(examples)
        check_agreed({"training text": text})
        teacher = self.teacher(model, examples)
        if PartialState().is_main_process:
            known = {"model": weights_fingerprint(model), "text": text}
            self.folder.check_inputs(known | ({"teacher": teacher.identity()} if teacher else {}))
        return Prepared(examples, settings, teacher, held_out)

    def run(
        self, model: Any, prepared: Prepared, pruner: Pruner | None = None
    ) -> tuple[Any, TrainSettings, TrainResult]:
        """Train; the model comes back plain, what LoRA learned merged into its weights."""
        settings = prepared.settings
        if self.training.report_to == "tensorboard":  # by default it would go with the run's folder
            where = os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(self.folder.path.with_suffix(".tensorboard")))
            self.terminal.note(f"TensorBoard's logs are in {where}")
        rank = self.training.lora_rank
        trained = model if rank is None else add_lora(model, rank, self.seed)
        device, blank = model.device, outline(model) if settings.fsdp else None  # of the model without masks
        attached = pruner(settings) if pruner else None
        with self.terminal.training(settings.steps) as report, models.quiet():
            try:
                result = train(
                    trained, prepared.examples, settings,
                    pruner=attached, teacher=prepared.teacher, held_out=prepared.held_out,
                    stop=prepared.stop, folder=self.folder, report=report,
                    note=self.terminal.note, **self.training.given("kl_weight"),
                )  # fmt: skip
            except Interrupted as stopped:
                raise Interrupted(f"{stopped}; go on with the same command and --resume") from None
        return merged(trained) if blank is None else filled(blank, trained, device), settings, result

    def examples(self, model: Any) -> list[dict[str, Any]]:
        seq_len = check_seq_len(model, self.seq_len)
        with self.terminal.busy(f"tokenising {self.text.name}"):
            return self.corpus.examples(
                "train", self.tokenizer, seq_len=seq_len, num_tokens=self.training.train_tokens, text=self.text,
                note=self.terminal.note,
            )  # fmt: skip

    def held_out(self, model: Any) -> list[dict[str, Any]]:
        if not self.training.measures:
            return []
        number = self.training.eval_tokens or HELD_OUT_TOKENS
        text = self.corpus.text("validation", number, tokenizer=self.tokenizer, model=model)
        if (name := in_common(text.provenance, self.text.provenance)) is not None:
            self.terminal.note(f"{name} has no validation split: perplexity will be of the training text")
        return self.corpus.examples("validation", self.tokenizer, seq_len=self.seq_len, num_tokens=number, text=text)

    def teacher(self, student: Any, examples: list[dict[str, Any]]) -> Teacher | None:
        name, temperature = self.training.teacher, self.training.kl_temperature
        if name is None:
            return None
        if Path(name).suffix == STORED:
            return StoredTeacher(Path(name), examples, student, temperature)
        with self.terminal.busy(f"loading {name}"):
            model = models.load(name, note=self.terminal.note, **self.how)
        trust = self.how["trust_remote_code"]
        check_tokenizer(self.terminal, self.tokenizer, name, self.text, "the teacher", trust)
        check_seq_len(model, self.seq_len, "the teacher")
        return OnlineTeacher(model, student, temperature)


Pruner = Callable[[TrainSettings], GradualPruner]
Pruned = tuple[Any, PrunePlan, dict[str, Any], list[dict[str, Any]]]


def prune_gradually(
    job: Job, model: Any, row: Method, *, units: Sequence[Kind], keep: Keep, scope: Scope | None, multiple_of: int,
    calibration_tokens: int, provenance: Mapping[str, Any], named: bool = True,
) -> Pruned:  # fmt: skip
    """Train with masks that close along the cubic schedule, then cut. (model, plan, record, log).

    calibration_tokens: of the training text, for a criterion that reads text, at each milestone. named: see
    `GradualPruner`.
    """
    if job.training.fsdp and row.learned and model.dtype != torch.float32:
        raise UserError(
            f"--fsdp spreads numbers of one dtype, and learned scores are in float32, the weights in {model.dtype}; "
            "take --dtype float32, and --bf16 for its speed"
        )
    calibration = None
    if needs_text(row) or job.training.warm_start:
        calibration = sequences(
            job.tokenizer, job.text, seq_len=job.seq_len, num_tokens=max(calibration_tokens, job.seq_len), seed=job.seed
        )
    attached: list[GradualPruner] = []

    def attach(settings: TrainSettings) -> GradualPruner:
        pruner = GradualPruner(
            model, units=units, method=row.name, keep=keep, num_steps=settings.steps, scope=scope,
            multiple_of=multiple_of,
            seed=job.seed, calibration=calibration, settings=job.training.gradual(), spec=job.spec, named=named,
        )  # fmt: skip
        attached.append(pruner)
        return pruner

    if job.spec is not None:
        check_ffns(model, find_sites(model, spec=job.spec))
    model, settings, result = job.run(model, job.prepare(model), attach)
    (pruner,) = attached
    plan = pruner.finish()
    plan = replace(
        plan,
        settings={**plan.settings, **_how(job, settings, "cubic")},
        provenance={**plan.provenance, **provenance, "training": data_record(job.text, job.tokenizer)},
    )
    shrink(model, plan, job.spec)
    return model, plan, record_of(settings, result, "cubic") | _redundancy(job, model), result.log


def recover(job: Job, model: Any, prune: Callable[[Any], PrunePlan]) -> Pruned:
    """Prune at once, then train what is left. (model, plan, record, log). prune: cuts a model in place."""
    prepared = job.prepare(model)
    cut = job.folder.cut
    if job.folder.resume and cut.exists():
        shrink(dense := model, plan := PrunePlan.load(cut / PLAN_FILE), job.spec)  # which knows what it is saved in
        model = models.load(str(cut), note=job.terminal.note, **job.how)
        dtypes.hand_on(dense, model)
    else:
        plan = prune(model)
        if PartialState().is_main_process:
            checkpoint.save(model, cut, plan=plan, spec=job.spec, dtype=model.dtype)
    PartialState().wait_for_everyone()
    model, settings, result = job.run(model, prepared)
    plan = replace(
        plan,
        settings={**plan.settings, **_how(job, settings, "oneshot")},
        provenance={**plan.provenance, "training": data_record(job.text, job.tokenizer)},
    )
    return model, plan, record_of(settings, result, "oneshot") | _redundancy(job, model), result.log


def _redundancy(job: Job, model: Any) -> dict[str, float]:
    """The result's uniqueness on the first tokens it was trained on (docs/methods.md, "Uniqueness"), if it has one."""
    if is_mixture(model.config):
        return {}
    ids, _ = stream(job.tokenizer, job.text, max(UNIQUENESS_TOKENS, job.seq_len))
    begin = Beginning.of(job.tokenizer)
    seq_len = min(job.seq_len, len(begin.ids) + len(ids))  # pairs may be fewer tokens in all than one block of text
    input_ids = begin.rows(ids, seq_len)
    with job.terminal.busy("measuring redundancy"):
        return {"uniqueness": uniqueness(model, find_sites(model, spec=job.spec), input_ids.to(model.device))}


def _how(job: Job, settings: TrainSettings, schedule: str | None) -> dict[str, Any]:
    """How a model was trained, for its plan."""
    distilled = job.training.given("teacher", "kl_weight", "temperature")
    return {"schedule": schedule, "training": {**asdict(settings), **job.training.given("lora_rank"), **distilled}}


def trained_plan(job: Job, plan: PrunePlan, settings: TrainSettings, provenance: Mapping[str, Any]) -> PrunePlan:
    """The plan of a model that was trained as it is, of the neurons that `plan` names.

    provenance: without the training's text and what `plan` says of itself.
    """
    before = {"plan": plan.record()} if plan.settings or plan.provenance else {}
    return replace(
        plan,
        settings={**plan.chosen, "seed": job.seed, "seq_len": job.seq_len, **_how(job, settings, None)},
        provenance={
            "versions": pruning.versions(),
            **provenance,
            "training": data_record(job.text, job.tokenizer),
            **before,
        },
    )


def record_of(settings: TrainSettings, result: TrainResult, schedule: str | None) -> dict[str, Any]:
    """What `--json` prints as `training`."""
    losses = [line["loss"] for line in result.log if "loss" in line]
    perplexities = [line["perplexity"] for line in result.log if "perplexity" in line]
    some = max(len(losses) // 20, 1)
    return {
        "schedule": schedule,
        **asdict(settings),
        "seconds": result.seconds,
        "first_loss": fmean(losses[:some]),
        "last_loss": fmean(losses[-some:]),
        "first_perplexity": perplexities[0] if perplexities else None,
        "perplexity": perplexities[-1] if perplexities else None,
    }
