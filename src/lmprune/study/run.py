"""One run of a study: child processes of the lmprune command line, and the record that is made of theirs."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..budget.keeps import spelt_keep
from ..data.pairs import is_source
from ..plan import PLAN_FILE, PrunePlan
from ..pruning import versions
from ..training.run_folder import TRAINING_LOG
from .children import end_with
from .grid import Run
from .records import RECORD_FORMAT

CHECKPOINT, LOG = "checkpoint", "log.txt"


@dataclass(frozen=True)
class Errand:
    """What a worker, here or on another machine, needs to do one run.

    folder: of the run. dense: the reference's checkpoint, None for a reference. keep_checkpoint: when it is measured.
    """

    run: Run
    study: str
    folder: Path
    dense: str | None
    keep_checkpoint: bool
    threads: int
    cwd: Path


class Failed(Exception):
    """A command of the run ended badly."""


#: the commands that run now, in this process's threads
_children: set[subprocess.Popen[bytes]] = set()


def stop() -> None:
    """End the commands that run now, politely; their runs are not recorded."""
    for child in list(_children):
        child.terminate()


def commands(errand: Errand) -> dict[str, list[str]]:
    """command -> arguments after `lmprune`, in the order they are called."""
    run, sections = errand.run, errand.run.sections
    checkpoint = str(errand.folder / CHECKPOINT)
    found: dict[str, list[str]] = {}
    baseline = ["--baseline", errand.dense] if errand.dense else []
    paired = [] if is_source(str(sections["eval"].get("data"))) else baseline  # a task's scores are of one model
    at = run.model
    if "prune" in sections:
        start = errand.dense if run.start == "dense" and errand.dense else run.model
        teacher = ["--teacher", errand.dense] if run.distil and errand.dense else []
        pruned = checkpoint if "finetune" not in sections else str(errand.folder / "pruned")
        once = {"answer_tokens": 0} if paired else {}  # `eval` asks the model as it will be measured
        settings = ["--method", run.criterion, "--keep", f"{run.keep:g}", "--seed", str(run.seed), *teacher]
        found["prune"] = ["prune", start, "--out", pruned, *settings, *spelt({**once, **sections["prune"]})]
        at = pruned
    if "finetune" in sections:
        teacher = ["--teacher", errand.dense] if run.distil and errand.dense else []
        rest = ["--seed", str(run.seed), *teacher, *spelt(sections["finetune"])]
        found["finetune"] = ["finetune", at, "--out", checkpoint, *rest]
        at = checkpoint
    found["eval"] = ["eval", at, *paired, *spelt(sections["eval"])]
    units = str(sections["analyze"].get("units") or "neurons").replace(" ", "").split(",")
    beside = baseline if "neurons" in units else []  # others are not compared
    found["analyze"] = ["analyze", at, *beside, "--out", str(errand.folder / "analysis"), *spelt(sections["analyze"])]
    if "zero_shot" in sections:
        found["zero_shot"] = ["eval", at, *baseline, *spelt(sections["zero_shot"])]
    if "bench" in sections and errand.dense:
        found["bench"] = ["bench", errand.dense, at, *spelt(sections["bench"])]
    return found


def checkpoint_of(run: Run, folder: Path) -> str:
    """Where the run's model is when it is done: a reference that is not trained is the model itself."""
    return str(folder / CHECKPOINT) if {"prune", "finetune"} & run.sections.keys() else run.model


def execute(errand: Errand, *, error: str | None = None) -> dict[str, Any]:
    """Do the run; whatever happens to it, its record comes back. error: why it can't even be tried."""
    todo = commands(errand)
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    peak_kb, told = 0, {}
    try:
        if error is not None:
            raise Failed(error)
        shutil.rmtree(errand.folder, ignore_errors=True)  # what a killed run left there
        errand.folder.mkdir(parents=True)
        for name, arguments in todo.items():
            start = time.perf_counter()
            try:
                found[name], used_kb = _call(arguments, errand)
            finally:
                seconds[name] = time.perf_counter() - start
            peak_kb = max(peak_kb, used_kb)
        told = _told(found, errand.folder)
    except (Failed, OSError, ValueError) as failed:
        error = str(failed)
    record = {
        "format": RECORD_FORMAT,
        "id": errand.run.id,
        "study": errand.study,
        "error": error,
        "config": errand.run.config(),
        "commands": [["lmprune", *arguments] for arguments in todo.values()],
        "versions": versions(),
        "commit": commit(),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": errand.threads,
            "accelerator": accelerator(errand.run.sections["eval"].get("device", "cpu")),
        },
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_mb": peak_kb * 1024 / 1e6,
        **told,
    }
    if not errand.keep_checkpoint:
        for name in (CHECKPOINT, "pruned"):
            shutil.rmtree(errand.folder / name, ignore_errors=True)
    return record


def _call(arguments: Sequence[str], errand: Errand) -> tuple[dict[str, Any], int]:
    """(the command's record, the most memory it held, in KiB). Raises: Failed with its last words."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(errand.threads), "MKL_NUM_THREADS": str(errand.threads)}
    log = errand.folder / LOG
    with log.open("ab") as errors:
        errors.write(f"$ lmprune {' '.join(arguments)}\n".encode())
        errors.flush()
        line = [sys.executable, "-m", "lmprune", *arguments, "--json"]
        child = subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=errand.cwd,
            preexec_fn=partial(end_with, os.getpid()),
        )
        _children.add(child)
        try:
            assert child.stdout is not None
            out = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)  # unlike `wait`, it tells this child's memory
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            _children.discard(child)
    if child.returncode < 0:
        raise Failed(f"lmprune {arguments[0]}: killed by {signal.Signals(-child.returncode).name}; was there memory?")
    if child.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Failed(f"lmprune {arguments[0]}: {said[-1].removeprefix('error: ')}")
    return json.loads(out), usage.ru_maxrss


def _told(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the commands said, without what is long: look-alikes and their tokens stay in the run's folder."""
    told = dict(found)
    if (analysis := told.pop("analyze", None)) is not None:
        told["redundancy"] = {name: value for name, value in analysis.items() if name != "clusters"}
    log = next((f for f in (folder / CHECKPOINT / TRAINING_LOG, folder / "pruned" / TRAINING_LOG) if f.is_file()), None)
    if log is not None:
        told["training_log"] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    plans = [f for f in (folder / "pruned" / PLAN_FILE, folder / CHECKPOINT / PLAN_FILE) if f.is_file()]
    if plans and "prune" in found:
        plan = PrunePlan.load(plans[0])
        told["widths_before"] = plan.widths_before
        neurons = [site for site in plan.addresses if site.kind == "neurons"]
        told["kept"] = [bitmap(plan.kept[site], plan.counts_before[site]) for site in neurons]
    return told


def spelt(options: Mapping[str, Any]) -> list[str]:
    """Options by their names in Python, as words of a command line; None and False are what is not given, a list is
    given once an element."""
    words: list[str] = []
    for name, values in options.items():
        if isinstance(values, Mapping):
            values = spelt_keep(values)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value is not False:
                words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return words


def bitmap(kept: Sequence[int], width: int) -> str:
    """Kept neurons in hex, the first neuron the highest bit of the first digit.

    >>> bitmap([0, 3, 4], 6)
    '98'
    """
    digits = -(-width // 4)
    return f"{sum(1 << (4 * digits - 1 - index) for index in kept):0{digits}x}"


def accelerator(device: str) -> str | None:
    """Its name, of what `--device` asked for; None for the processor."""
    if device == "cpu" or not torch.accelerator.is_available():
        return None
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    return module.get_device_name() if hasattr(module, "get_device_name") else device


def commit() -> str | None:
    """Of lmprune's own checkout; None where it is installed."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None
