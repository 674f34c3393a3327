"""What `lmprune prune` does: check, load, work, write; returns its record (docs/json.md)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import save_file

from .. import pruning
from ..budget.selection import SCOPES, check_keep
from ..checkpoints import checkpoint, models
from ..checkpoints.licences import Licence, find_licence
from ..checkpoints.writing import check_not_read, written_aside
from ..data import TextData
from ..errors import UserError, unknown
from ..evaluation.memory import peak_memory_mb
from ..methods import get_method, needs_text
from ..plan import PrunePlan
from ..progress import Teller
from ..sites.families import parse_spec
from ..sites.find import find_sites
from ..training.examples import Corpus
from ..training.run_folder import RunFolder
from . import inspection
from .card import model_card
from .opening import open_model
from .reproduce import command, data_record, dtype_record, flat, log_file, origin, result_settings, tell_dtype
from .training_options import Training, check_method, check_source

SCORES = ".safetensors"
#: tokens that neurons are scored on: at once, and at each milestone of a training
CALIBRATION_TOKENS, MILESTONE_TOKENS = 65536, 16384


def prune(
    terminal: Teller, *, model: str, out: Path, method: str, keep: float, scope: Any, data: str,
    data_dir: Path | None, holdout: float | None, calibration_tokens: int | None, seq_len: int, multiple_of: int,
    plan: Path | None, dtype: str, save_dtype: str | None, device: str, seed: int, scores_out: Path | None, force: bool,
    ffn: str | None, chat_template: bool, trust_remote_code: bool, **training_options: Any,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune prune`, whose options these are. What can be checked is checked before the long work.

    Raises: UserError; nothing is written then.
    """
    options = flat(locals())
    training = Training.of(training_options)
    gradual = training is not None and training.schedule != "oneshot" and plan is None
    if calibration_tokens is None:
        options["calibration_tokens"] = calibration_tokens = MILESTONE_TOKENS if gradual else CALIBRATION_TOKENS
    chosen = PrunePlan.load(plan) if plan else None
    for sentence in chosen.remarks() if chosen else ():
        terminal.note(sentence)
    row = get_method(chosen.settings.get("method", method) if chosen else method)
    check_keep(keep)
    check_method(row, training, keep=keep, planned=chosen is not None, scope=scope)
    if scope not in (None, *SCOPES):
        raise unknown("scope", scope, SCOPES)
    kind = checkpoint.check_save_dtype(save_dtype)
    check_not_read(out, model, training.teacher if training else None)
    checkpoint.check_out(out, force=force)
    resumed = training is not None and training.resume
    if scores_out is not None:
        check_scores_file(scores_out, planned=chosen is not None, force=force or resumed)
    spec = parse_spec(ffn) if ffn else None
    calibrates = needs_text(row, chosen=chosen is not None)
    loss_on = training.given("loss_on") if training else {}
    corpus = Corpus(data, data_dir, chat_template, seed, **loss_on, held_out=holdout)
    num_tokens = training.train_tokens if training else calibration_tokens
    read = partial(corpus.text, "train", num_tokens) if calibrates or training else None
    run = None
    if training is not None:
        check_source(data, training.train_tokens, training)
        run = RunFolder(out, result_settings(options), resume=training.resume, force=force)
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    dense, tokenizer, text = open_model(terminal, model, data, read, **how)
    if text is not None:
        terminal.note(f"{'training' if training else 'calibrating'} on {text.name}")
    if chosen is not None:
        _tell_of_plan(terminal, chosen, model, text if calibrates else None)
    tell_dtype(terminal, dense, kind)
    before = inspection.sizes(dense, find_sites(dense, spec=spec))
    licence = find_licence(model)
    provenance = {"model": _history(model, licence), "command": command("prune", options)}

    def at_once(dense: Any) -> PrunePlan:
        with terminal.stages() as stages:
            plan = pruning.prune(
                dense, tokenizer, method=row.name, keep=keep, scope=scope, data=text or data, plan=chosen, spec=spec,
                calibration_tokens=calibration_tokens, seq_len=seq_len, multiple_of=multiple_of, seed=seed,
                stages=stages, provenance=provenance,
            )  # fmt: skip
        keep_scores(plan)  # at once: a training that is resumed reads its plan from the run's folder, without them
        return plan

    def keep_scores(plan: PrunePlan) -> None:
        if scores_out is not None and (run is None or PartialState().is_main_process):
            write_scores(plan, scores_out)

    start = time.perf_counter()
    trained: dict[str, Any] = {}
    log: list[dict[str, Any]] = []
    with run.begun() if run else nullcontext():
        if training is None or run is None:
            done = at_once(dense)
            num_read = done.settings.get("calibration_tokens", calibration_tokens)
            if chosen is None and num_read <= calibration_tokens - seq_len:
                terminal.note(f"that text has only {num_read} tokens in whole sequences")
        else:
            from .train import Job, prune_gradually, recover

            assert text is not None
            job = Job(terminal, training, tokenizer, corpus, text, seq_len, seed, run, how, spec)
            if gradual:
                dense, done, trained, log = prune_gradually(
                    job, dense, row, keep=keep, scope=scope, multiple_of=multiple_of,
                    calibration_tokens=calibration_tokens, provenance=provenance,
                )  # fmt: skip
                keep_scores(done)
            else:
                dense, done, trained, log = recover(job, dense, at_once)
        seconds = time.perf_counter() - start
        done = replace(done, provenance={**done.provenance, "dtype": dtype_record(dense, kind)})
        record = {
            "model": model,
            "method": row.name,
            "keep": done.settings.get("keep"),
            "scope": done.settings.get("scope"),
            "plan": plan and str(plan),
            **inspection.pruning(dense, find_sites(dense, spec=spec), before, done, kind),
            "data": text and data_record(text, tokenizer),
            **({"training": trained} if trained else {}),
        }
        if run is None or PartialState().is_main_process:
            with terminal.busy(f"writing {out}"):
                checkpoint.save(
                    dense, out, tokenizer=tokenizer, plan=done, card=model_card(done, record), spec=spec, force=force,
                    files={**log_file(log), **licence.files}, dtype=kind,
                )  # fmt: skip
    if run is not None:
        run.finish()
    return record | {
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "out": str(out.expanduser().resolve()),
        "scores_out": scores_out and str(scores_out.expanduser().resolve()),
        "command": command("prune", options),
    }


def check_scores_file(file: Path, *, planned: bool, force: bool) -> None:
    """Raises: UserError, before the work, where the scores of a pruning can't be written to `file`."""
    if planned:
        raise UserError("drop --scores-out, or --plan: a plan says which neurons stay, and not by what scores")
    if file.suffix != SCORES:
        raise UserError(f"a file of scores ends in {SCORES}, got {file}")
    if file.exists() and not force:
        raise UserError(f"{file} is there already; choose another --scores-out, or replace it with --force")


def write_scores(plan: PrunePlan, file: Path) -> None:
    """The scores by layer, `neurons.0`, `neurons.1`, …; `prune(scores=load_file(file))` takes them again."""
    with written_aside(file.expanduser().resolve(), folder=False) as partial_file:
        save_file(plan.named_scores(), partial_file)


def _tell_of_plan(terminal: Teller, plan: PrunePlan, model: str, text: TextData | None) -> None:
    """Where an earlier plan is carried out on something else. text: what readers are refitted on, if they are."""
    if text is not None and not _calibrated_on(plan, text):
        terminal.note("that is not the text the plan was made on, so the refit will differ from the plan's own")
    if others := _made_from(plan, model):
        terminal.note(f"the plan was made from {others}; in other weights its neurons are other neurons")


def _history(model: str, licence: Licence) -> dict[str, Any]:
    """Where the model comes from, with the record of its own pruning if it was pruned before."""
    earlier = inspection.find_plan(model)
    return origin(model, licence, earlier) | ({"record": earlier.record()} if earlier else {})


def _calibrated_on(plan: PrunePlan, text: TextData) -> bool:
    return plan.provenance.get("calibration", {}).get("sha256") == text.provenance["sha256"]


def _made_from(plan: PrunePlan, model: str) -> str | None:
    """The model of the plan, where it has another name."""
    source = plan.first_source() or model
    return None if Path(source).name == Path(model).name else source


def after_prune(record: Mapping[str, Any], options: Mapping[str, Any]) -> list[list[str]]:
    """Commands to try on the checkpoint, arguments only; text that was calibrated on is not evaluated on."""
    data = ["python-docs"]
    if record["data"] is not None and options["data"].startswith("wikitext"):
        data = [options["data"], *(["--data-dir", str(options["data_dir"])] if options["data_dir"] else [])]
    if options["holdout"] is not None:
        data = [options["data"], "--holdout", f"{options['holdout']:g}"]
    trust = ["--trust-remote-code"] if options["trust_remote_code"] else []
    compare = ["--max-tokens", "8192", "--baseline", options["model"]]
    evaluations = [["eval", str(options["out"]), "--data", *data, *compare, *trust]]
    return [
        *(evaluations if models.has_tokenizer(Path(record["out"])) else []),
        ["inspect", str(options["out"]), *trust],
    ]
