"""What `lmprune prune --dry-run` tells, from the config alone: what would be left, and what the work would take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psutil

from ..checkpoints import devices, models
from ..data.records import check_template
from ..errors import UserError
from ..progress import Teller, silent
from ..sites.limits import check_seq_len
from ..solve.duration import guess, recovery
from . import timing
from .asked import Asked
from .needs import Needs, bound_of, check_bound, free_at, needs
from .opening import fits
from .prune import check


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
        if asked["chat_template"]:
            check_template(models.load_tokenizer(asked["model"], note=silent, **how))
    about = asked["dtype"], asked["trust_remote_code"], asked.how["device"]
    found = needs(asked, skeleton)
    bound, told = bound_of(asked), found["whole"]
    check_bound(asked, found.get("streamed", told), bound)
    return {
        "model": asked["model"],
        "method": asked.row.name,
        "params_before": told.before,
        "params_after": told.after,
        "megabytes_after": told.result / 1e6,
        "ways": {name: _way(asked, each, bound) for name, each in found.items()},
        "available_mb": psutil.virtual_memory().available / 1e6,
        "would_stream": asked["stream"] or not fits(asked["model"], *about),
        "free_disk_mb": free_at(asked["out"]) / 1e6,
        "free_temporary_mb": free_at(Path(tempfile.gettempdir())) / 1e6,
    }


def _way(asked: Asked, found: Needs, bound: float | None) -> dict[str, Any]:
    """What the work holds and takes where the model is in memory as a whole, or read block by block. bound: bytes of
    memory that it may hold where it can be bounded."""
    solver, shape, held = asked.row.solver_of(asked.kinds), found.shape, found.held
    pace = guess(shape, devices.check_device(asked.how["device"]))
    phases = solver.phases(found.work, pace) if asked.plan is None else []
    if phases:
        phases += recovery(pace, found.work.tokens, asked["recover"])
    most = found.peak
    if shape.streamed and bound is not None and most is not None:
        most = min(most, bound)
    return {
        "memory_mb": None if most is None else most / 1e6,
        "result_mb": found.result / 1e6,
        "disk_mb": None if found.disk is None else found.disk / 1e6,
        "temporary_mb": None if held is None else shape.streamed * found.spilled(bound) / 1e6,
        "seconds": timing.total(phases) or None,
    }
