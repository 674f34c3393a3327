"""What `lmprune prune` does, in four steps: check, open, work, write; it returns its record (docs/json.md)."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import pruning
from ..budget.budget import is_named
from ..budget.keeps import check_keeps, parse_keep, parse_units
from ..budget.selection import SCOPES
from ..checkpoints import checkpoint, dtypes
from ..checkpoints.begun import PRUNING, forget
from ..checkpoints.licences import find_licence
from ..checkpoints.states import bind
from ..checkpoints.writing import check_not_read
from ..data.tokens import check_lengths
from ..errors import unknown
from ..evaluation.memory import peak_memory_mb
from ..methods import get_method
from ..plan import PrunePlan
from ..processes import together, wait, writes
from ..progress import Teller
from ..sites.families import parse_spec
from ..sites.find import find_sites
from ..sites.pages import pages_of
from ..solve.duration import RECOVERING, Work
from ..training.examples import Corpus
from ..training.run_folder import RunFolder
from . import budgeting, by_quality, inspection, passes, timing
from .answers import answers, check_prompts, compared
from .asked import Asked, Made, Opened, goes_on_schedule, usual_text
from .card import model_card
from .earlier_plan import history, tell_of_plan
from .kept import Kept, kept_before, staging
from .needs import parse_memory, room_for_states
from .opening import check_streams, check_trains, one_device, open_model
from .reproduce import (
    check_unfinished,
    command,
    data_record,
    dtype_record,
    flat,
    log_file,
    made_by,
    result_settings,
    tell_dtype,
)
from .scores_file import check_scores_file, write_scores
from .together import check_whole, device_of_mine
from .training_checks import check_method, check_source, training_of

#: tokens that neurons are scored on: at once, and at each milestone of a training
CALIBRATION_TOKENS, MILESTONE_TOKENS = 65536, 16384


def prune(terminal: Teller, **options: Any) -> dict[str, Any]:
    """`lmprune prune`; the options are those of `check`. Raises: UserError; nothing is written then."""
    began = time.perf_counter()
    asked = check(**options)
    room = room_for_states(terminal, asked)
    opened = open_asked(terminal, asked)
    check_whole(opened.dense)
    if room is not None:
        bind(opened.dense, room)
    walks = pages_of(opened.dense) is not None and asked.calibrates and asked["max_ppl_ratio"] is None
    asked = replace(asked, kept=(asked.kept or Kept(asked["out"], asked.options)) if walks else None)
    with asked.begun(opened.dense, terminal), staging(opened.dense, asked.kept, asked["out"], asked.kind):
        before = answers(terminal, opened.dense, opened.tokenizer, asked.prompts, asked["answer_tokens"])
        asked, opened = in_time(terminal, asked, opened, began, before.seconds if before else 0.0)
        start = time.perf_counter()
        made = train_and_prune(terminal, asked, opened) if asked.run else prune_at_once(terminal, asked, opened)
        seconds = time.perf_counter() - start
        dtypes.round_to_saved(made.model, asked.kind)  # so that what answers is what is written
        record = write(terminal, asked, opened, made, seconds, compared(terminal, before, made.model))
    if asked.run is not None:
        asked.run.finish()
    else:
        if writes():
            forget(asked["out"], PRUNING)
        wait()
    return record


def check(
    *, model: str, out: Path, units: str, method: str, keep: str, scope: Any, data: str | None, data_dir: Path | None,
    holdout: float | None, calibration_tokens: int | None, seq_len: int, multiple_of: int, plan: Path | None,
    dtype: str, save_dtype: str | None, device: str, seed: int, scores_out: Path | None, force: bool,
    ffn: str | None, chat_template: bool, stream: bool, trust_remote_code: bool, prompts: Path | None,
    answer_tokens: int, max_ppl_ratio: float | None = None, quick: bool = False, time_budget: str | None = None,
    max_memory: str | None = None, recover: int = 0, run_file: Path | None = None, **training_options: Any,
) -> Asked:  # fmt: skip
    """Everything that can be found wrong before a weight or a text is read. Raises: UserError."""
    options = flat(locals())
    training, questions = training_of(training_options), check_prompts(prompts, answer_tokens)
    options["data"] = data = data or usual_text(trains=training is not None)
    options = timing.without_quick(options, training)
    chosen = PrunePlan.load(plan) if plan else None
    kinds = chosen.kinds if chosen else parse_units(units)
    options["keep"] = ratio = check_keeps(parse_keep(keep), kinds) if chosen is None else parse_keep(keep)
    usual = MILESTONE_TOKENS if goes_on_schedule(training, chosen) else CALIBRATION_TOKENS
    options["calibration_tokens"] = tokens = options["calibration_tokens"] or usual
    row = get_method(chosen.settings.get("method", method) if chosen else method)
    budgeting.check_spread(spent := budgeting.budget_of(options), row, kinds, training, options)
    by_quality.check_ratio(max_ppl_ratio, options, training)
    check_method(row, training, keep=ratio, kinds=kinds, planned=chosen is not None, scope=scope)
    if scope not in (None, *SCOPES):
        raise unknown("scope", scope, SCOPES)
    kind = checkpoint.check_save_dtype(save_dtype)
    options["stream"] = stream = stream or parse_memory(max_memory) is not None
    passes.check_passes(options, training)
    check_not_read(out, model, training.teacher if training else None)
    check_unfinished("prune", options, out)
    destination = checkpoint.check_out(out, force=force)
    again = force or bool(training and training.resume)
    scores = check_scores_file(scores_out, planned=chosen is not None, force=again) if scores_out is not None else None
    spec = parse_spec(ffn) if ffn else None
    loss_on = training.given("loss_on") if training else {}
    corpus = Corpus(data, data_dir, chat_template, seed, **loss_on, held_out=holdout)
    how, run, kept = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}, None, None
    if training is not None:
        check_source(corpus, seq_len, training.train_tokens, training)
        check_trains(stream)
        how["device"] = one_device(device)
        run = RunFolder(out, result_settings(options), resume=training.resume, force=force)
    else:
        corpus.check()
        how["device"] = device_of_mine(options)
        kept = kept_before(out, options, walks=stream and row.solver_of(kinds).reads_text(chosen=chosen is not None))
        how["stream"] = stream or (kept is not None and kept.resume)
        check_streams(how["stream"], ffn)
    asked = Asked(
        options, row, kinds, chosen, training, tokens, corpus, how, kind, spec, questions, run, (), spent, destination,
        kept, scores,
    )  # fmt: skip
    if asked.calibrates and not asked.gradual:
        check_lengths(seq_len, tokens)
    return asked


def open_asked(terminal: Teller, asked: Asked) -> Opened:
    """Model, tokenizer and text, and what is said of them. Raises: UserError."""
    for sentence in asked.plan.remarks() if asked.plan else ():
        terminal.note(sentence)
    training, model = asked.training, asked["model"]
    num_tokens = training.train_tokens if training else asked.calibration_tokens
    read = partial(asked.corpus.text, "train", num_tokens) if asked.calibrates or training else None
    dense, tokenizer, text = open_model(terminal, model, asked["data"], read, data_dir=asked["data_dir"], **asked.how)
    if text is not None:
        terminal.note(f"{'training' if training else 'calibrating'} on {text.name}")
    if asked.plan is not None:
        tell_of_plan(terminal, asked.plan, model, text if asked.calibrates else None)
    tell_dtype(terminal, dense, asked.kind)
    for sentence in asked.row.solver_of(asked.kinds).remarks(find_sites(dense, asked.kinds, asked.spec)):
        terminal.note(sentence)
    before = inspection.sizes(dense, inspection.feed_forward(dense, asked.spec))
    licence = find_licence(model)
    provenance = {"model": history(model, licence), **made_by("prune", asked.options)}
    return Opened(dense, tokenizer, text, before, licence, provenance)


def in_time(terminal: Teller, asked: Asked, opened: Opened, began: float, answering: float) -> tuple[Asked, Opened]:
    """What was asked for, with how long it will take, which is said; and with as much text as the time allows.

    began: when the command did. answering: what the prompts took, and will take once more. Raises: UserError.
    """
    if asked.plan is not None or asked.gradual or not asked.calibrates or asked.budget or asked["max_ppl_ratio"]:
        return asked, opened
    dense, scope = opened.dense, asked["scope"] or asked.row.scope
    sites, solver = find_sites(dense, asked.kinds, asked.spec), asked.row.solver_of(asked.kinds)
    work = Work(sites, asked.calibration_tokens, asked["seq_len"], asked["keep"], scope)
    spent = time.perf_counter() - began + answering
    tokens, phases = timing.fit(terminal, dense, solver, work, asked["time_budget"], spent, asked["recover"])
    options = {**asked.options, "calibration_tokens": tokens, "time_budget": None}
    opened = replace(opened, provenance={**opened.provenance, **made_by("prune", options)})
    return replace(asked, options=options, calibration_tokens=tokens, phases=phases), opened


def prune_at_once(terminal: Teller, asked: Asked, opened: Opened) -> Made:
    if asked["max_ppl_ratio"] is not None:
        by_quality.check_copies(opened.dense)
        made = by_quality.smallest(terminal, asked, opened, partial(_cut, terminal))
        _keep_scores(asked, made.plan)
        return made
    dense = passes.dense_copy(asked["recover"], opened.dense)
    plan = _cut(terminal, asked, opened, opened.dense)
    num_read = plan.settings.get("calibration_tokens", asked.calibration_tokens)
    if asked.plan is None and num_read <= asked.calibration_tokens - asked["seq_len"]:
        terminal.note(f"that text has only {num_read} tokens in whole sequences")
    made = Made(opened.dense, plan, {}, [])
    return made if dense is None else passes.recovered(terminal, asked, opened, made, dense)


def train_and_prune(terminal: Teller, asked: Asked, opened: Opened) -> Made:
    """Little by little while it trains, or at once before it."""
    from .train import Job, prune_gradually, recover  # transformers' Trainer takes seconds to import

    assert asked.training is not None and asked.run is not None and opened.text is not None
    job = Job(
        terminal, asked.training, opened.tokenizer, asked.corpus, opened.text, asked["seq_len"], asked["seed"],
        asked.run, asked.how, asked.spec,
    )  # fmt: skip
    if not asked.gradual:
        return Made(*recover(job, opened.dense, partial(_cut, terminal, asked, opened)))
    keep, scope = budgeting.uniform_share(asked, opened.dense)
    made = Made(*prune_gradually(
        job, opened.dense, asked.row, units=asked.kinds, keep=keep, scope=scope,
        calibration_tokens=asked.calibration_tokens, provenance=opened.provenance,
        named=is_named(asked.budget), **asked.named("multiple_of"),
    ))  # fmt: skip
    _keep_scores(asked, made.plan)
    return made


def write(
    terminal: Teller, asked: Asked, opened: Opened, made: Made, seconds: float, answered: dict[str, Any] | None
) -> dict[str, Any]:
    """The checkpoint, with its plan, card and papers, and the record of all of it."""
    plan, out = asked["plan"], asked["out"]
    done = replace(made.plan, provenance={**made.plan.provenance, "dtype": dtype_record(made.model, asked.kind)})
    sites = inspection.feed_forward(made.model, asked.spec)
    record = {
        "model": asked["model"],
        "method": asked.row.name,
        "keep": done.settings.get("keep"),
        "scope": done.settings.get("scope"),
        "plan": plan and str(plan),
        **budgeting.record(asked.budget, done),
        **inspection.pruning(made.model, sites, opened.before, done, asked.kind),
        "data": opened.text and data_record(opened.text, opened.tokenizer),
        **({"training": made.training} if made.training else {}),
        "quality": made.quality,
        "answers": answered,
    }
    if writes():
        with terminal.busy(f"writing {out}"):
            checkpoint.save(
                made.model, asked.destination or out, tokenizer=opened.tokenizer, plan=done, spec=asked.spec,
                card=model_card(done, record), force=asked["force"], dtype=asked.kind,
                files={**log_file(made.log), **opened.licence.files},
            )  # fmt: skip
    return record | {
        "seconds": seconds,
        "estimated_seconds": timing.total(asked.phases) if asked.phases else None,
        "peak_memory_mb": peak_memory_mb(),
        "out": str(out.expanduser().resolve()),
        "scores_out": asked.scores and str(asked.scores.path),
        "command": command("prune", asked.options),
    }


def _cut(terminal: Teller, asked: Asked, opened: Opened, dense: Any) -> PrunePlan:
    """Prune the model in place, at once."""
    with terminal.stages([phase for phase in asked.phases if phase.name != RECOVERING]) as stages, together():
        plan = pruning.prune(
            dense, opened.tokenizer, units=asked.kinds, method=asked.row.name,
            data=opened.text or asked["data"], plan=asked.plan,
            spec=asked.spec, calibration_tokens=asked.calibration_tokens, stages=stages, provenance=opened.provenance,
            budget=asked.budget and budgeting.at_work(asked, asked.budget, dense, terminal.note),
            **asked.named("keep", "scope", "seq_len", "multiple_of", "seed"),
        )  # fmt: skip
    _keep_scores(asked, plan)  # at once: a training that is resumed reads its plan from the run's folder, without them
    return plan


def _keep_scores(asked: Asked, plan: PrunePlan) -> None:
    if asked.scores is not None and writes():
        write_scores(plan, asked.scores)
