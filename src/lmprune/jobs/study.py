"""What `lmprune study` does; its record is in docs/json.md."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..progress import Teller
from ..study import grid, records
from ..study.estimate import estimate
from ..study.records import RESULTS_FILE
from ..study.runner import Workers, carry_out, finished
from ..study.yaml_file import Commands


def study(
    terminal: Teller, *, file: Path, out: Path, jobs: int, ray: str | None, keep_checkpoints: bool, dry_run: bool,
    commands: Commands,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune study`, whose options these are. Raises: UserError; failed runs are told in the record instead."""
    found = grid.read(file, commands)
    results = out / RESULTS_FILE
    done = finished(found, out)
    todo = [run for run in found.runs if run.id not in done]
    workers = Workers(jobs, ray)
    head = {"study": found.name, "runs": len(found.runs), "finished": len(done)}
    if dry_run:
        before = records.read(results).done if results.is_file() else []
        with terminal.busy("estimating"):
            seconds = estimate(found.runs, before, jobs=jobs, threads=workers.threads)
        return {**head, "todo": [run.id for run in todo], "estimated_seconds": seconds}
    terminal.note(f"{len(todo)} of {len(found.runs)} runs to do, {len(done)} finished before")
    start = time.perf_counter()
    with terminal.stages() as stages:
        carry_out(found, out, workers=workers, keep_checkpoints=keep_checkpoints, stages=stages)
    after = records.read(results)
    ours = {run.id for run in found.runs}
    failed = [{"id": r["id"], "error": r["error"]} for r in after.failed if r["id"] in ours]
    return {
        **head,
        "finished": len(finished(found, out)),
        "failed": failed,
        "results": str(results.resolve()),
        "seconds": time.perf_counter() - start,
    }
