"""What `lmprune recover` does: a training of `jobs.training` that ends when held-out text or the clock says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints.writing import written_aside
from ..data.overlap import check_held_out
from ..errors import UserError
from ..foreign import reading, text_of
from ..gradual.milestones import agreed
from ..progress import Teller
from ..training.early_stop import EarlyStop, divergence_of, seconds_of_a_step
from ..training.examples import check_examples
from ..training.teachers import STORED, OnlineTeacher
from ..training.trainer import collate
from .reproduce import check_unfinished
from .train import Job, Prepared
from .training import Asked, carry_out, check_finetune
from .training_options import LONG_LR, LORA_LR, RECOVERY, SHORT, SHORT_LR

#: tokens of the validation split that tell when to stop
JUDGED_TOKENS = 8192
#: how often they are read in a run, where nobody says
_TIMES = 10
#: of the minutes, what steps and held-out text are given, and what of that held-out text may have
_SHARE, _JUDGING = 0.9, 0.15
#: what minutes came to, for a resumed run: steps, and after how many of them held-out text is read
_STEPS, _DIGITS = "steps", 10


def recover(terminal: Teller, **options: Any) -> dict[str, Any]:
    """`lmprune recover`; the options are those of `check_recover`. Raises: UserError; nothing is written then."""
    options = with_defaults(options)
    asked = check_recover(**options)
    prepare = partial(_prepare, options)
    return carry_out(terminal, "recover", asked, options, prepare=prepare, told=_told)


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as given, and RECOVERY for those that were not."""
    return {**options, **{name: value for name, value in RECOVERY.items() if options.get(name) is None}}


def check_recover(*, minutes: float | None, patience: int, teacher: str | None, **options: Any) -> Asked:
    """Raises: UserError for all that can be found wrong before a weight or a text is read."""
    if teacher is None:
        raise UserError("name the dense model with --teacher: what it predicts is what is recovered")
    if Path(teacher).suffix == STORED:
        raise UserError(
            f"{teacher} holds a teacher's predictions for a training text, and recover asks the teacher about held-out "
            "text too; name the model"
        )
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"minutes must be above 0, got {minutes:g}")
    if options["data"] == "self":
        raise UserError("text that the model writes itself (self) has no validation split; take mix:self=0.5,…")
    asked = {"minutes": minutes, "patience": patience, "teacher": teacher, **options}
    if _by_the_clock(options):
        if minutes is None:
            raise UserError("say how long to recover, with --minutes, --steps or --epochs")
        options["steps"] = 1  # until a step has been timed
    check_unfinished("recover", asked, options["out"])
    return check_finetune(teacher=teacher, minutes=minutes, patience=patience, **options)


def _by_the_clock(options: Mapping[str, Any]) -> bool:
    """Whether nobody said how many steps, so that the minutes have to."""
    return options.get("steps") is None and options.get("epochs") is None


def _prepare(options: Mapping[str, Any], job: Job, model: Any) -> Prepared:
    prepared = job.prepare(model)
    settings, teacher = prepared.settings, prepared.teacher
    assert isinstance(teacher, OnlineTeacher)
    judge, held_out = OnlineTeacher(teacher.model, model, 1.0), _held_out(job, model, settings.batch_size)
    every = settings.eval_every or -(-settings.steps // _TIMES)
    if _by_the_clock(options):
        steps, every = _timed(job, model, prepared, partial(divergence_of, model, judge), held_out, options["minutes"])
        settings = replace(settings, steps=steps)
    if options.get("lr") is None:
        settings = replace(settings, lr=_rate(settings.steps, lora=options.get("lora_rank") is not None))
    stop = EarlyStop(
        judge, held_out, every=every, patience=options["patience"], minutes=options["minutes"], folder=job.folder.path
    )
    return replace(prepared, settings=replace(settings, eval_every=every), held_out=[], stop=stop)


def _rate(steps: int, *, lora: bool) -> float:
    """The peak rate where nobody says (docs/lab_notes.md, 27 November)."""
    if lora:
        return LORA_LR
    return SHORT_LR if steps < SHORT else LONG_LR


def _held_out(job: Job, model: Any, batch_size: int) -> list[dict[str, Any]]:
    """Batches of the validation split. Raises: UserError where it is the training text."""
    number = job.training.eval_tokens or JUDGED_TOKENS
    text = job.corpus.text("validation", number, tokenizer=job.tokenizer, model=model)
    check_held_out(text, job.text, "which says when to stop")
    examples = job.corpus.examples("validation", job.tokenizer, seq_len=job.seq_len, num_tokens=number, text=text)
    check_examples(examples, model)
    return [collate(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]


def _timed(
    job: Job, model: Any, prepared: Prepared, judge: Callable[[list[dict[str, Any]]], float],
    held_out: list[dict[str, Any]], minutes: float,
) -> tuple[int, int]:  # fmt: skip
    """How many steps the minutes are enough for, and after how many held-out text is read; resumed, as before."""
    file = job.folder.path / _STEPS
    if job.folder.resume and file.exists():
        return steps_before(file)
    settings, teacher = prepared.settings, prepared.teacher
    assert teacher is not None
    batch = collate(prepared.examples[: settings.batch_size])
    how: dict[str, Any] = {"bf16": settings.bf16, **job.training.given("kl_weight")}
    with job.terminal.busy("timing a step"):
        step = agreed(seconds_of_a_step(model, teacher, batch, settings.grad_accum, **how))
        start = time.perf_counter()
        judge(held_out[:1])
        judging = agreed((time.perf_counter() - start) * len(held_out))
    steps, every = timetable(60 * minutes, step, judging, settings.eval_every)
    job.terminal.note(
        f"a step takes about {step:.1f} s, held-out text {judging:.1f} s: {steps:,} steps in {minutes:g} minutes"
    )
    with written_aside(file, folder=False) as aside:
        aside.write_text(f"{steps} {every}", encoding="utf-8")
    return steps, every


def timetable(seconds: float, step: float, judging: float, every: int | None = None) -> tuple[int, int]:
    """How many steps go into the seconds, and after how many of them held-out text is read; every: where that is said.

    step, judging: seconds that a step, and reading that text, take. It is read before the first step and after the
    last, up to ten times on the way, and fewer where that would take more than a share of the time.

    >>> timetable(1000, 10, 1), timetable(1000, 10, 40), timetable(1000, 10, 40, every=5), timetable(1, 10, 40)
    ((88, 9), (78, 39), (47, 5), (1, 1))
    """
    given = _SHARE * seconds
    if every is None:
        times = min(max(int(_JUDGING * given / judging) - 1, 1), _TIMES)
        steps = max(int((given - (times + 1) * judging) / step), 1)
        return steps, -(-steps // times)
    return max(int((given - judging) / (step + judging / every)), 1), every


def steps_before(file: Path) -> tuple[int, int]:
    """What `timetable` said to an earlier run. Raises: UserError where the file doesn't say it."""
    with reading(f"{file} is damaged", "throw the run away with --force"):
        said = text_of(file).split(" ")
        if len(said) != 2 or not all(n.isascii() and n.isdigit() and len(n) < _DIGITS and int(n) for n in said):
            raise ValueError("it holds no number of steps")
        return int(said[0]), int(said[1])


def _told(prepared: Prepared, log: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the record adds to a training's: how far it came, also before it was resumed, and why it ended."""
    stop = prepared.stop
    assert stop is not None and stop.best is not None
    measured = [line["kl"] for line in log if "kl" in line]
    kl, step = stop.best
    done = max([step, *(int(line["step"]) for line in log)])
    return {"first_kl": measured[0], "kl": kl, "best_step": step, "steps_done": done, "ended_by": stop.why}
