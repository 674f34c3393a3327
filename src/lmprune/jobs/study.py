"""What `lmprune study` does; its record is in docs/json.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.writing import resolved
from ..errors import UserError
from ..progress import Teller
from ..study import grid, records
from ..study.estimate import estimate
from ..study.grid import Run
from ..study.records import RESULTS_FILE
from ..study.run import Errand
from ..study.run import commands as run_commands
from ..study.runner import RUNS, Workers, carry_out, finished
from ..study.yaml_file import Commands


def study(
    terminal: Teller, *, file: Path, out: Path, jobs: int, ray: str | None, keep_checkpoints: bool, dry_run: bool,
    resume: bool, device: str | None, commands: Commands, check: Callable[[Sequence[str]], object],
) -> dict[str, Any]:  # fmt: skip
    """`lmprune study`, whose options these are. Raises: UserError; failed runs are told in the record instead.

    check: what each command would refuse before it reads a weight; asked of every run where nothing is carried out.
    resume: only go on with one that was begun. device: instead of what the file says.
    """
    found, out = grid.read(file, commands, device=device), resolved(out)
    results = out / RESULTS_FILE
    if resume and not (results.is_file() or (out / RUNS).is_dir()):
        raise UserError(f"there is no study to resume in {out}; leave out --resume")
    done = finished(found, out)
    todo = [run for run in found.runs if run.id not in done]
    workers = Workers(jobs, ray)
    head = {"study": found.name, "runs": len(found.runs), "finished": len(done)}
    if dry_run:
        with terminal.busy("checking the runs"):
            check_runs(todo, out, workers, check)
        before = records.read(results).done if results.is_file() else []
        with terminal.busy("estimating"):
            seconds = estimate(found.runs, before, jobs=jobs, threads=workers.threads)
        return {**head, "todo": [run.id for run in todo], "estimated_seconds": seconds}
    if todo:
        terminal.note(f"{len(todo)} of {len(found.runs)} runs to do, {len(done)} finished before")
    else:
        terminal.note(f"that study has ended, all {len(done)} runs are in {results}: there is nothing to resume")
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
        "results": str(results),
        "seconds": time.perf_counter() - start,
    }


def check_runs(runs: Sequence[Run], out: Path, workers: Workers, check: Callable[[Sequence[str]], object]) -> None:
    """Raises: UserError for the first run that a command of its own would refuse, by its name."""
    asked: set[tuple[str, ...]] = set()
    for run in runs:
        # a reference that is yet to be made stands for its own model: they are of one kind
        dense = None if run.reference else run.model
        errand = Errand(run, "", out / RUNS / run.id, dense, False, workers.threads, Path.cwd())
        made = str(errand.folder)
        for words in run_commands(errand).values():
            # what differs by the run's own folder alone is asked once, and what is yet to be made is its model
            told = [run.model if word.startswith(made) and at == 1 else word for at, word in enumerate(words)]
            if (key := tuple(word for word in told if not word.startswith(made))) in asked:
                continue
            asked.add(key)
            try:
                check(told)
            except UserError as error:
                raise UserError(f"{run.id}: lmprune {words[0]}: {error}") from None
