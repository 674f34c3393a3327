"""A training as the command line asks for it: what is read, where it goes, and the two ways to prune beside it.

Under torchrun or accelerate every process runs the same code; the first one alone writes and speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from .. import checkpoint, models, pruning
from ..console import Terminal
from ..data import TextData
from ..data.tokens import sequences
from ..errors import Interrupted, UserError
from ..evaluation.perplexity import max_context
from ..families import FFNSpec
from ..ffn import find_ffns
from ..gradual import GradualPruner
from ..methods import Method, needs_text
from ..plan import PLAN_FILE, PrunePlan
from ..selection import Scope
from ..shrink import shrink
from ..training_options import Training
from .lora import add_lora, merged
from .run_folder import RunFolder
from .teachers import STORED, OnlineTeacher, StoredTeacher
from .train import Teacher, TrainResult, TrainSettings, train

#: tokens of the validation split that --eval-every reads
HELD_OUT_TOKENS = 16384
#: tokens of the training text that a criterion which reads text is asked on at each milestone
MILESTONE_TOKENS = 16384


@dataclass(frozen=True)
class Job:
    """A training about to begin. settings: all that its result depends on. how: dtype, device, … for a teacher.

    read: `data.load` of the same source but for split, tokenizer and num_tokens.
    """

    terminal: Terminal
    training: Training
    tokenizer: Any
    text: TextData
    read: Callable[..., TextData]
    seq_len: int
    seed: int
    out: Path
    how: Mapping[str, Any]
    spec: FFNSpec | None
    settings: Mapping[str, Any]

    def folder(self, *, force: bool) -> RunFolder:
        """The run's folder, begun or taken up."""
        folder, process = RunFolder(self.out), PartialState()
        if process.is_main_process:
            folder.begin(self.settings, resume=self.training.resume, force=force)
        process.wait_for_everyone()
        return folder

    def run(
        self, model: Any, folder: RunFolder, pruner: Pruner | None = None
    ) -> tuple[Any, TrainSettings, TrainResult]:
        """Train; the model comes back plain, what LoRA learned merged into its weights."""
        examples = self.examples(model)
        settings = self.training.settings(len(examples), self.seed)
        teacher = self.teacher(model, examples)
        held_out = self.held_out()
        trained = model if self.training.lora_rank is None else add_lora(model, self.training.lora_rank)
        attached = pruner(settings) if pruner else None
        with self.terminal.training(settings.steps) as report:
            try:
                result = train(
                    trained, examples, settings, pruner=attached, teacher=teacher, held_out=held_out, folder=folder,
                    pad_token_id=self.tokenizer.pad_token_id or 0, report=report, resume=self.training.resume,
                    **self.training.given("kl_weight"),
                )  # fmt: skip
            except Interrupted as stopped:
                raise Interrupted(f"{stopped}; go on with the same command and --resume") from None
        return merged(trained), settings, result

    def examples(self, model: Any) -> list[dict[str, Any]]:
        seq_len = check_seq_len(model, self.seq_len)
        with self.terminal.busy(f"tokenising {self.text.name}"):
            return blocks(self.tokenizer, self.text, seq_len, self.training.train_tokens)

    def held_out(self) -> list[dict[str, Any]]:
        if self.training.eval_every is None:
            return []
        text = self.read(split="validation", tokenizer=self.tokenizer, num_tokens=HELD_OUT_TOKENS)
        return blocks(self.tokenizer, text, self.seq_len, HELD_OUT_TOKENS)

    def teacher(self, student: Any, examples: list[dict[str, Any]]) -> Teacher | None:
        name, temperature = self.training.teacher, self.training.kl_temperature
        if name is None:
            return None
        if Path(name).suffix == STORED:
            return StoredTeacher(Path(name), examples, student, temperature)
        with self.terminal.busy(f"loading {name}"):
            return OnlineTeacher(models.load(name, **self.how), student, temperature)


Pruner = Callable[[TrainSettings], GradualPruner]
Pruned = tuple[Any, PrunePlan, dict[str, Any], list[dict[str, Any]]]


def check_seq_len(model: Any, seq_len: int) -> int:
    """`seq_len` as given, if the model has so many positions."""
    limit = max_context(model.config)
    if limit is not None and seq_len > limit:
        raise UserError(f"seq_len {seq_len} is more than the model's {limit} positions; use {limit} or less")
    return seq_len


def blocks(tokenizer: Any, text: TextData, seq_len: int, num_tokens: int | None) -> list[dict[str, Tensor]]:
    """Training examples: the text's tokens in order, in blocks of `seq_len`, without a remainder. None = all."""
    everything = 2**62
    return [
        {"input_ids": row}
        for row in sequences(tokenizer, text, seq_len=seq_len, num_tokens=num_tokens or everything, seed=None)
    ]


def prune_gradually(
    job: Job, model: Any, row: Method, *, keep: float, scope: Scope | None, multiple_of: int, force: bool,
    provenance: Mapping[str, Any],
) -> Pruned:  # fmt: skip
    """Train with masks that close along the cubic schedule, then cut. (model, plan, record, log)."""
    folder = job.folder(force=force)
    calibration = None
    if needs_text(row):
        calibration = sequences(
            job.tokenizer, job.text, seq_len=job.seq_len, num_tokens=max(MILESTONE_TOKENS, job.seq_len), seed=job.seed
        )
    attached: list[GradualPruner] = []

    def attach(settings: TrainSettings) -> GradualPruner:
        attached.append(
            GradualPruner(
                model, method=row.name, keep=keep, num_steps=settings.steps, scope=scope, multiple_of=multiple_of,
                seed=job.seed, calibration=calibration, settings=job.training.gradual(), spec=job.spec,
            )
        )  # fmt: skip
        return attached[0]

    widths_before = tuple(ffn.width for ffn in find_ffns(model, job.spec))
    model, settings, result = job.run(model, folder, attach)
    (pruner,) = attached
    kept = pruner.finish()
    about = {
        "method": row.name,
        "keep": keep,
        "scope": scope or row.scope,
        "multiple_of": multiple_of,
        "seed": job.seed,
    }
    plan = PrunePlan(
        tuple(tuple(indices.tolist()) for indices in kept), widths_before,
        {
            **about, "seed": job.seed, "schedule": "cubic", "gradual": asdict(pruner.settings),
            "training": asdict(settings),
        },
        {"versions": pruning.versions(), **provenance},
    )  # fmt: skip
    shrink(model, plan, job.spec)
    return model, plan, record_of(settings, result, "cubic"), result.log


def recover(job: Job, model: Any, prune: Callable[[Any], PrunePlan], *, force: bool) -> Pruned:
    """Prune at once, then train what is left. (model, plan, record, log). prune: cuts a model in place."""
    folder = job.folder(force=force)
    cut = folder.path / "cut"
    if job.training.resume and (cut / PLAN_FILE).exists():
        model, plan = models.load(str(cut), **job.how), PrunePlan.load(cut / PLAN_FILE)
    else:
        plan = prune(model)
        if PartialState().is_main_process:
            checkpoint.save(model, cut, plan=plan, spec=job.spec)
    model, settings, result = job.run(model, folder)
    trained = {"schedule": "oneshot", "training": asdict(settings)}
    plan = PrunePlan(plan.kept, plan.widths_before, {**plan.settings, **trained}, plan.provenance)
    return model, plan, record_of(settings, result, "oneshot"), result.log


def record_of(settings: TrainSettings, result: TrainResult, schedule: str | None) -> dict[str, Any]:
    losses = [line["loss"] for line in result.log if "loss" in line]
    perplexities = [line["perplexity"] for line in result.log if "perplexity" in line]
    return {
        "schedule": schedule,
        **asdict(settings),
        "seconds": result.seconds,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "perplexity": perplexities[-1] if perplexities else None,
    }
