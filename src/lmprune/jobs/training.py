"""What `lmprune finetune` and `lmprune teach` do; each returns its record (docs/json.md). See also `jobs`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..checkpoints import checkpoint
from ..checkpoints.licences import find_licence
from ..checkpoints.shrinking import is_stock
from ..checkpoints.writing import Destination, check_not_read
from ..errors import UserError
from ..evaluation.memory import peak_memory_mb
from ..plan import PLAN_FILE, PrunePlan, whole
from ..progress import Teller
from ..sites.address import Kind
from ..sites.families import FFNSpec, parse_spec
from ..sites.find import find_sites
from ..sites.limits import check_seq_len
from ..sites.proof import check_ffns
from ..training.distillation import check_temperature
from ..training.examples import Corpus, check_examples
from ..training.run_folder import RunFolder
from ..training.teachers import check_teacher_file, fingerprint, write_teacher
from . import inspection
from .card import tuned_card
from .opening import one_device, open_model
from .reproduce import (
    check_unfinished,
    command,
    data_record,
    dtype_record,
    flat,
    log_file,
    made_by,
    origin,
    result_settings,
    tell_dtype,
)
from .train import Job, Prepared, record_of, trained_plan
from .training_checks import check_source, training_of
from .training_options import Training


def finetune(terminal: Teller, **options: Any) -> dict[str, Any]:
    """`lmprune finetune`; the options are those of `check_finetune`. Raises: UserError; nothing is written then."""
    return carry_out(terminal, "finetune", check_finetune(**options), options)


def carry_out(
    terminal: Teller, verb: str, asked: Asked, options: Mapping[str, Any], *,
    prepare: Callable[[Job, Any], Prepared] = Job.prepare,
    told: Callable[[Prepared, Sequence[Mapping[str, float]]], dict[str, Any]] = lambda *_: {},
) -> dict[str, Any]:  # fmt: skip
    """Train as `finetune` does, and write the checkpoint; the record.

    options: of the command `verb`. prepare: makes ready what a model is trained with. told: what the record's
    `training` has beside a training's own, of that and of the log.
    """
    model, out, kind, training = options["model"], options["out"], asked.kind, asked.training
    read = partial(asked.corpus.text, "train", training.train_tokens)
    net, tokenizer, text = open_model(terminal, model, options["data"], read, data_dir=options["data_dir"], **asked.how)
    assert text is not None
    ffns = inspection.feed_forward(net, asked.spec)
    if asked.spec is not None:
        check_ffns(net, find_sites(net, spec=asked.spec))
    whole_plan = whole({site.address: site.count for site in ffns})  # of what can be saved
    before, licence = _own_plan(terminal, model, net, asked.spec), find_licence(model)
    tell_dtype(terminal, net, kind)
    terminal.note(f"training on {text.name}")
    start = time.perf_counter()
    with asked.run.begun():
        seq_len, seed = options["seq_len"], options["seed"]
        job = Job(terminal, training, tokenizer, asked.corpus, text, seq_len, seed, asked.run, asked.how, asked.spec)
        prepared = prepare(job, net)
        net, settings, result = job.run(net, prepared)
        record = {
            "model": model,
            "params": sum(p.numel() for p in net.parameters()),
            "dtype": dtype_record(net, kind)["saved"],
            "stock": is_stock(net),
            "data": data_record(text, tokenizer),
            "training": record_of(settings, result, None) | told(prepared, result.log),
            "seconds": time.perf_counter() - start,
            "peak_memory_mb": peak_memory_mb(),
            "out": str(out.expanduser().resolve()),
            "command": command(verb, options),
        }
        if PartialState().is_main_process:
            provenance = {"model": origin(model, licence, before), **made_by(verb, options)}
            plan = trained_plan(job, before or whole_plan, settings, provenance | {"dtype": dtype_record(net, kind)})
            checkpoint.save(
                net, asked.destination, tokenizer=tokenizer, plan=plan, card=tuned_card(plan, record),
                files={**log_file(result.log), **licence.files}, dtype=kind, spec=asked.spec,
            )  # fmt: skip
    asked.run.finish()
    return record


@dataclass(frozen=True)
class Asked:
    """What `finetune` was asked for, checked as far as it can be before a weight is read; see `jobs.prune.Asked`."""

    training: Training
    corpus: Corpus
    how: Mapping[str, Any]
    kind: torch.dtype | None
    run: RunFolder
    destination: Destination
    spec: FFNSpec | None = None


def check_finetune(
    *, model: str, out: Path, data: str, data_dir: Path | None, holdout: float | None, seq_len: int, dtype: str,
    save_dtype: str | None, device: str, seed: int, force: bool, chat_template: bool, trust_remote_code: bool,
    ffn: str | None = None, run_file: Path | None = None, **training_options: Any,
) -> Asked:  # fmt: skip
    """Raises: UserError for all that can be found wrong before a weight or a text is read."""
    options = flat(locals())
    training = training_of(training_options)
    if training is None:
        raise UserError("say how long to train with --steps or --epochs")
    kind = checkpoint.check_save_dtype(save_dtype)
    corpus = Corpus(data, data_dir, chat_template, seed, **training.given("loss_on"), held_out=holdout)
    check_source(corpus, seq_len, training.train_tokens, training)
    check_not_read(out, model, training.teacher)
    check_unfinished("finetune", options, out)
    destination = checkpoint.check_out(out, force=force)
    how = {"dtype": dtype, "device": one_device(device), "trust_remote_code": trust_remote_code}
    run = RunFolder(out, result_settings(options), resume=training.resume, force=force)
    return Asked(training, corpus, how, kind, run, destination, parse_spec(ffn) if ffn else None)


def _own_plan(terminal: Teller, model: str, net: Any, spec: FFNSpec | None) -> PrunePlan | None:
    """The plan that a checkpoint of lmprune's was made with."""
    plan = inspection.find_plan(model)
    for sentence in plan.remarks() if plan else ():
        terminal.note(sentence)
    if plan is not None and not _is_of(plan, net, spec):
        terminal.note(f"the {PLAN_FILE} in {model} is of a model with other widths, and left aside")
        return None
    return plan


def _is_of(plan: PrunePlan, net: Any, spec: FFNSpec | None) -> bool:
    """Whether what the plan left is what the model has; a layer without any units is none that is found."""

    def left(kind: Kind) -> list[int]:
        return [count for count in plan.counts(kind)[1] if count]

    return all([site.count for site in find_sites(net, [kind], spec)] == left(kind) for kind in plan.kinds)


def teach(
    terminal: Teller,
    *,
    model: str,
    out: Path,
    data: str,
    data_dir: Path | None,
    holdout: float | None,
    seq_len: int,
    train_tokens: int | None,
    top_k: int,
    temperature: float,
    dtype: str,
    device: str,
    chat_template: bool,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """`lmprune teach`, whose options these are. Raises: UserError; nothing is written then."""
    check_teacher_file(out)
    check_temperature(temperature)
    corpus = Corpus(data, data_dir, chat_template, held_out=holdout)
    check_source(corpus, seq_len, train_tokens)
    read = partial(corpus.text, "train", train_tokens)
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    net, tokenizer, text = open_model(terminal, model, data, read, data_dir=data_dir, **how)
    assert text is not None
    start = time.perf_counter()
    examples = corpus.examples(
        "train", tokenizer, seq_len=check_seq_len(net, seq_len), num_tokens=train_tokens, text=text, note=terminal.note
    )
    check_examples(examples, net)
    with terminal.stages() as stages:
        write_teacher(net, examples, out, k=top_k, temperature=temperature, progress=stages("blocks"))
    return {
        "model": model,
        "data": data_record(text, tokenizer),
        "examples": len(examples),
        "tokens": sum(len(example["input_ids"]) for example in examples),
        "top_k": top_k,
        "temperature": temperature,
        "fingerprint": fingerprint(examples),
        "bytes": out.stat().st_size,
        "seconds": time.perf_counter() - start,
        "out": str(out),
    }
