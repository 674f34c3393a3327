"""How long a study will take: operations over a measured rate, corrected by the runs that are already done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checkpoints import models
from ..data.pairs import is_source
from ..methods import get_method, needs_text
from .grid import Run
from .yaml_file import Options

#: the share of a large matrix product's rate that a small model's training reaches, measured on gpt-neo-mini
_EFFICIENCY = 0.35
#: seconds that a command takes before it works: imports, loading
_START = 7.0
#: where the study does not say it: tokens of a validation and of a training text, pairs of a validation split
_WHOLE_SPLIT, _WHOLE_TRAIN, _ALL_PAIRS = 250_000, 2_500_000, 4_000
#: tokens of a pair, padded to its batch, and of an answer; what a decoded token costs beside one that is read
_PAIR_TOKENS, _DECODED_TOKENS, _DECODING = 160, 40, 3


def estimate(runs: Sequence[Run], done: Sequence[Mapping[str, Any]], *, jobs: int, threads: int) -> float:
    """Seconds that `runs` take, `jobs` at a time.

    done: records of finished runs; where they are of the same study, what they took corrects the estimate.
    """
    parameters = {model: _parameters(model) for model in {run.model for run in runs}}
    rates = {device: _rate(threads, device) * _EFFICIENCY for device in {_device(run) for run in runs}}
    predicted = {run.id: _seconds(run, parameters[run.model], rates[_device(run)]) for run in runs}
    known = {record["id"]: record["seconds"]["total"] for record in done}
    correction = statistics.median([known[i] / predicted[i] for i in known if i in predicted] or [1.0])
    return sum(predicted[run.id] * correction for run in runs if run.id not in known) / jobs


def _parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in models.skeleton(model).parameters())


def _device(run: Run) -> str:
    return str(run.sections["eval"].get("device", "cpu"))


def _rate(threads: int, device: str) -> float:
    """Operations a second in matrix products of a size that models have. Raises: UserError where there is no device."""
    before, place = torch.get_num_threads(), models.check_device(device)
    torch.set_num_threads(threads)
    a, b = torch.randn(512, 768, device=place), torch.randn(768, 768, device=place)
    number, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.3:
        a = (a @ b).tanh_()
        number += 1
        float(a[0, 0])  # an accelerator is waited for
    seconds = time.perf_counter() - start
    torch.set_num_threads(before)
    return number * 2 * 512 * 768 * 768 / seconds


def _seconds(run: Run, parameters: int, rate: float) -> float:
    """2 operations a parameter and token for a forward pass, 6 with the backward pass."""
    sections = run.sections
    work = _evaluation(sections["eval"], run.reference)
    work += 8.0 * int(sections["analyze"].get("max_tokens", 16384)) * (1 if run.reference else 2)
    for name in ("prune", "finetune"):
        work += 6.0 * _training_tokens(sections.get(name, {})) * (4 / 3 if run.distil else 1)
    prune = sections.get("prune")
    if prune is not None and not _training_tokens(prune) and needs_text(get_method(run.criterion)):
        work += 6.0 * int(prune.get("calibration_tokens", 65536))
    return work * parameters / rate + _START * len(sections)


def _evaluation(options: Options, reference: bool) -> float:
    """Operations a parameter: a text is read by both models, answers are decoded by the one."""
    if not is_source(options["data"]):
        return 2.0 * int(options.get("max_tokens", _WHOLE_SPLIT)) * (1 if reference else 2)
    return 2.0 * int(options.get("limit", _ALL_PAIRS)) * (_PAIR_TOKENS + _DECODED_TOKENS * _DECODING)


def _training_tokens(options: Options) -> float:
    if not options:
        return 0
    seq_len = options.get("seq_len") or 512
    if options.get("epochs"):
        return options["epochs"] * (options.get("train_tokens") or _WHOLE_TRAIN)
    steps, batch = options.get("steps") or 0, (options.get("batch_size") or 4) * (options.get("grad_accum") or 1)
    return steps * batch * (min(_PAIR_TOKENS, seq_len) if is_source(options["data"]) else seq_len)
