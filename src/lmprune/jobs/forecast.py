"""What `lmprune prune --dry-run` tells, from the config alone: what would be left, and what the work would take."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from ..budget.choosing import alike, choose
from ..budget.keeps import Keep
from ..checkpoints import dtypes, models
from ..errors import UserError
from ..progress import Teller
from ..sites.find import find_sites
from ..sites.limits import check_seq_len
from ..sites.place import Place
from ..solve.duration import Work, guess
from ..solve.memory import Memory, Shape
from . import budgeting, timing
from .asked import Asked
from .opening import fits
from .prune import check

#: bytes of a text, its tokenizer, and what is imported for them
_TEXT = 150e6


def forecast(terminal: Teller, **options: Any) -> dict[str, Any]:
    """The options are those of `prune.check`; neither weights nor text are read, and nothing is written.

    Raises: UserError as `prune` does before it reads, and where pruning at once is not what was asked for.
    """
    asked = check(**options)
    if asked.training is not None:
        raise UserError("--dry-run tells of pruning at once; leave out --steps or --epochs, or --dry-run")
    if asked.budget is not None and asked.budget.by != "uniform":
        raise UserError(f"drop --dry-run: what --budget {asked.budget.by} holds and takes is not known beforehand")
    if asked["max_ppl_ratio"] is not None:
        raise UserError("drop --dry-run: how small a model holds --max-ppl-ratio is not known beforehand")
    how = {"trust_remote_code": asked["trust_remote_code"]}
    with terminal.busy(f"reading {asked['model']}"):
        skeleton = models.skeleton(asked["model"], note=terminal.note, **how)
    if asked.calibrates:
        check_seq_len(skeleton, asked["seq_len"])
    kind = models.check_dtype(asked["dtype"])
    number = (skeleton.dtype if isinstance(kind, str) else kind).itemsize
    keep = asked["keep"]
    if asked.plan is None:  # with a target, what it leaves of every layer
        keep, _ = budgeting.uniform_share(asked.budget, skeleton, asked.kind, asked.kinds, asked.options)
    sites = find_sites(skeleton, asked.kinds, asked.spec)
    before, after = _parameters(asked, skeleton, sites, keep)
    work = Work(sites, asked.calibration_tokens, asked["seq_len"], keep, asked["scope"] or asked.row.scope)
    saved = after * (asked.kind or dtypes.main(skeleton, None)).itemsize
    ways = {
        name: _way(
            asked, Shape.of(skeleton, sites, number=number, streamed=name == "streamed"), work, after=after, saved=saved
        )
        for name in ("whole", "streamed")
        if name == "whole" or asked.spec is None
    }
    return {
        "model": asked["model"],
        "method": asked.row.name,
        "params_before": before,
        "params_after": after,
        "megabytes_after": saved / 1e6,
        "ways": ways,
        "available_mb": psutil.virtual_memory().available / 1e6,
        "would_stream": asked["stream"] or not fits(asked["model"], asked["dtype"], asked["trust_remote_code"]),
        "free_disk_mb": _free(asked["out"]) / 1e6,
        "free_temporary_mb": shutil.disk_usage(tempfile.gettempdir()).free / 1e6,
    }


def _parameters(asked: Asked, skeleton: Any, sites: Sequence[Place], keep: Keep) -> tuple[int, int]:
    """Of the model, before and after."""
    before = sum(p.numel() for p in skeleton.parameters())
    if asked.plan is not None:
        kept = asked.plan.indices([site.address for site in sites])
    else:
        kept = choose(sites, alike(sites), keep, scope="local", multiple_of=asked["multiple_of"], seed=0)
    gone = sum((site.count - len(units)) * site.params for site, units in zip(sites, kept, strict=True))
    return before, before - gone


def _way(asked: Asked, shape: Shape, work: Work, *, after: int, saved: int) -> dict[str, Any]:
    """What the work holds and takes where the model is in memory as a whole, or read block by block."""
    solver, number, streamed = asked.row.solver_of(asked.kinds), shape.number, shape.streamed
    held = solver.memory(work, shape) if asked.calibrates or asked.plan is None else Memory(0.0)
    base = psutil.Process().memory_info().rss + (_TEXT if asked.calibrates else 0)
    # a file is made of a copy, and of another where the dtype is not the one that was computed with
    saving = 0 if streamed else after * number + saved * (1 if saved == after * number else 2)
    phases = solver.phases(work, guess(shape, models.check_device(asked.how["device"]))) if asked.plan is None else []
    return {
        "memory_mb": None if held is None else (base + max(shape.weights + held.peak, saving)) / 1e6,
        "result_mb": saved / 1e6,
        "temporary_mb": None if held is None else (held.disk + streamed * sum(shape.blocks) * number) / 1e6,
        "seconds": timing.total(phases) or None,
    }


def _free(out: Path) -> int:
    place = out.expanduser().resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
