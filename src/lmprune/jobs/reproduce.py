"""What a record says of how it came about: the command that makes it again, its model, its data, its log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import plugins
from ..checkpoints import dtypes, sources
from ..checkpoints.licences import Licence
from ..data import TextData
from ..data.beginning import Beginning
from ..data.records import PairData
from ..errors import Finished
from ..plan import PLAN_FILE, PrunePlan
from ..progress import Teller
from ..study.run import spelt
from ..training.run_folder import TRAINING_LOG
from ..training.settings import TrainSettings

#: options that a run's result does not depend on
_WITHOUT_EFFECT = frozenset(
    "out scores_out force resume save_every report_to run_file prompts answer_tokens stream max_memory".split()
)


def log_file(log: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A training log as a file to go with the checkpoint: its name and its text."""
    lines = "".join(json.dumps(line) + "\n" for line in log)
    return {TRAINING_LOG: lines} if lines else {}


def origin(model: str, licence: Licence, plan: PrunePlan | None = None) -> dict[str, Any]:
    """Where a model comes from, for the plan: `sources.describe`, its licence, `base_model` where the hub has the
    original. plan: the model's own, where lmprune made it."""
    before = (plan.provenance.get("model") or {}) if plan else {}
    base = sources.base_model(model) or before.get("base_model")
    return {**sources.describe(model), **({"base_model": base} if base else {}), **licence.record()}


def flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A job's options as the command line has them."""
    given = {name: value for name, value in parameters.items() if name not in ("terminal", "training_options")}
    return {**given, **parameters["training_options"]}


def result_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's result depends on, of a command's options: what `--resume` must find unchanged."""
    from accelerate import PartialState

    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if name not in _WITHOUT_EFFECT and value is not None
    }
    if files := plugins.loaded_files():
        given["plugin"] = files
    processes = PartialState(cpu=options["device"] == "cpu").num_processes
    if not options.get("fsdp"):
        return given | {"processes": processes}
    # what is saved is put together by any number of processes: how many sequences a step has is what counts
    usual = TrainSettings(steps=1)
    size, accum = options.get("batch_size") or usual.batch_size, options.get("grad_accum") or usual.grad_accum
    alike = {name: value for name, value in given.items() if name not in ("batch_size", "grad_accum")}
    return alike | {"sequences_a_step": size * accum * processes}


def command(verb: str, options: Mapping[str, Any]) -> list[str]:
    """The command line that does a job again, every setting spelt out; a plan stands for what it has decided."""
    implied = {"method", "keep", "scope", "multiple_of"} if options.get("plan") else set()
    left_out = {"model", "force", "resume", "run_file", *implied}
    told = {name: value for name, value in options.items() if name not in left_out}
    return ["lmprune", verb, options["model"], *spelt(told | {"plugin": plugins.loaded_files()})]


def check_unfinished(verb: str, options: Mapping[str, Any], out: Path) -> None:
    """A scheduler repeats the command of a run that has ended, with --resume.

    Raises: Finished where its result is there, made by this very command.
    """
    if not options.get("resume") or not (out / PLAN_FILE).is_file():
        return
    made = PrunePlan.load(out / PLAN_FILE).provenance.get("command") or []
    if sorted(made) == sorted(command(verb, options)):
        raise Finished(f"{out} is there, whole: that run has ended, and there is nothing to resume", str(out))


def made_by(verb: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """For a plan: the command, and the run file that it was a step of."""
    file: Path | None = options.get("run_file")
    return {"command": command(verb, options), **({"run": file.read_text(encoding="utf-8")} if file else {})}


def dtype_record(model: Any, dtype: torch.dtype | None) -> dict[str, str]:
    """What a model is computed with, and what most of it is saved in. dtype: as for `checkpoint.save`."""
    return {"computed": dtypes.name_of(model.dtype), "saved": dtypes.name_of(dtypes.main(model, dtype))}


def tell_dtype(terminal: Teller, model: Any, dtype: torch.dtype | None) -> None:
    """Say it where the file will not hold what was computed, and nobody asked for that."""
    computed, saved = dtype_record(model, dtype).values()
    known = dtypes.recall(model)
    if dtype is not None or known is None or computed == saved:
        return
    why = "its weights were quantised, and can't be so again" if known.quantised else "as the original is"
    terminal.note(f"computed in {computed}, saved in {saved}: {why}; --save-dtype {computed} keeps what was computed")


def data_record(text: TextData | PairData, tokenizer: Any) -> dict[str, Any]:
    """tokenizer: it was read with; what that puts before every text is `bos`."""
    return {"name": text.name, **text.provenance, "bos": Beginning.of(tokenizer).text or None}
