"""How long a study will take: what each run reads, over what the model itself takes to read, corrected by the runs that
are already done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from ..budget.keeps import parse_units
from ..checkpoints import devices, models
from ..checkpoints.sources import resolve
from ..data.pairs import is_source
from ..methods import get_method, needs_text
from ..sites.families import parse_spec
from ..sites.find import find_sites
from ..solve.duration import Pace, Work, guess, measure
from ..solve.memory import Shape
from .grid import Run
from .yaml_file import Options

#: seconds that a command takes before it works, without loading: imports, its text
_START = 5.0
#: where the study does not say it: tokens of a validation and of a training text, pairs of a validation split
_WHOLE_SPLIT, _WHOLE_TRAIN, _ALL_PAIRS = 250_000, 2_500_000, 4_000
#: tokens of a pair, padded to its batch, and of an answer; what a decoded token costs beside one that is read
_PAIR_TOKENS, _DECODED_TOKENS, _DECODING = 160, 40, 3
#: of a zero-shot task: items, and tokens of one with all its choices
_ITEMS, _ITEM_TOKENS = 2_000, 200
#: a token that is trained on, in tokens that are read: there and back, and the optimizer's share
_TRAINED = 3.3
_FLOAT32 = 4


@dataclass(frozen=True)
class Speed:
    """Of a model where it runs. skeleton: the model without weights. loading: seconds."""

    skeleton: Any
    pace: Pace
    loading: float


def estimate(runs: Sequence[Run], done: Sequence[Mapping[str, Any]], *, jobs: int, threads: int) -> float:
    """Seconds that `runs` take, `jobs` at a time. Raises: UserError where there is no such device.

    done: records of finished runs; where they are of the same study, what they took corrects the estimate.
    """
    speeds = {where: _speed(*where, threads) for where in {(run.model, _device(run)) for run in runs}}
    predicted = {run.id: _seconds(run, speeds[run.model, _device(run)]) for run in runs}
    known = {record["id"]: record["seconds"]["total"] for record in done}
    correction = statistics.median([known[i] / predicted[i] for i in known if i in predicted] or [1.0])
    return sum(predicted[run.id] * correction for run in runs if run.id not in known) / jobs


def _device(run: Run) -> str:
    return str(run.sections["eval"].get("device", "cpu"))


def _speed(model: str, device: str, threads: int) -> Speed:
    """Measured on the model; from its shapes alone where it is yet to be downloaded, or is large for this machine."""
    before, place = torch.get_num_threads(), devices.check_device(device)
    torch.set_num_threads(threads)
    try:
        skeleton = models.skeleton(model)
        weights = _FLOAT32 * sum(parameter.numel() for parameter in skeleton.parameters())
        if resolve(model).on_hub or 3 * weights > psutil.virtual_memory().available:
            sites = find_sites(skeleton, ["layers"])
            return Speed(skeleton, guess(Shape.of(skeleton, sites, number=_FLOAT32, streamed=False), place), 0.0)
        start = time.perf_counter()
        loaded = models.load(model, device=device)
        return Speed(skeleton, measure(loaded, _PAIR_TOKENS, gradients=False), time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


def _seconds(run: Run, speed: Speed) -> float:
    sections = run.sections
    tokens = _evaluation(sections["eval"], run.reference)
    tokens += 4.0 * int(sections["analyze"].get("max_tokens", 16384)) * (1 if run.reference else 2)
    if "zero_shot" in sections:
        tasks = str(sections["zero_shot"].get("tasks")).count(",") + 1
        items = tasks * int(sections["zero_shot"].get("limit", _ITEMS))
        tokens += items * _ITEM_TOKENS * (1 if run.reference else 2)
    for name in ("prune", "finetune"):
        tokens += _TRAINED * _training_tokens(sections.get(name, {})) * (4 / 3 if run.distil else 1)
    if recover := sections.get("prune", {}).get("recover"):
        tokens += _TRAINED * recover * int(sections["prune"].get("calibration_tokens") or 65536) * 4 / 3
    seconds = tokens * speed.pace.forward + (_START + speed.loading) * len(sections)
    return seconds + (_at_once(run, sections["prune"], speed) if "prune" in sections else 0.0)


def _at_once(run: Run, prune: Options, speed: Speed) -> float:
    """Of pruning without training: what `lmprune prune` would tell."""
    method = get_method(run.criterion)
    if _training_tokens(prune) or not needs_text(method):
        return 0.0
    kinds, ffn = parse_units(str(prune.get("units") or "neurons")), prune.get("ffn")
    sites = find_sites(speed.skeleton, kinds, parse_spec(ffn) if ffn else None)
    tokens, scope = int(prune.get("calibration_tokens") or 65536), prune.get("scope") or method.scope
    work = Work(sites, tokens, int(prune.get("seq_len") or 512), run.keep, scope)
    return sum(phase.seconds for phase in method.solver_of(kinds).phases(work, speed.pace))


def _evaluation(options: Options, reference: bool) -> float:
    """In tokens that are read: a text is read by both models, answers are decoded by the one."""
    if not is_source(options["data"]):
        return float(options.get("max_tokens", _WHOLE_SPLIT)) * (1 if reference else 2)
    return float(options.get("limit", _ALL_PAIRS)) * (_PAIR_TOKENS + _DECODED_TOKENS * _DECODING)


def _training_tokens(options: Options) -> float:
    if not options:
        return 0
    seq_len = options.get("seq_len") or 512
    if options.get("epochs"):
        return options["epochs"] * (options.get("train_tokens") or _WHOLE_TRAIN)
    steps, batch = options.get("steps") or 0, (options.get("batch_size") or 4) * (options.get("grad_accum") or 1)
    return steps * batch * (min(_PAIR_TOKENS, seq_len) if is_source(options["data"]) else seq_len)
