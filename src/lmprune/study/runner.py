"""Carry a study out: dense references first, several runs at a time, here or on Ray; nothing is done twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.writing import claimed, resolved
from ..errors import UserError
from ..progress import Stages, silent
from . import records
from .grid import Run, Study
from .records import RESULTS_FILE
from .run import Errand, checkpoint_of, execute, stop

RUNS = "runs"
_ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Workers:
    """jobs: runs at a time. ray: the address of a Ray cluster, whose processors then set the limit; None = here."""

    jobs: int = 1
    ray: str | None = None

    @property
    def threads(self) -> int:
        """Of each run: the processors shared out, unless OMP_NUM_THREADS says otherwise."""
        return int(os.environ.get("OMP_NUM_THREADS") or max((os.cpu_count() or 1) // self.jobs, 1))


def carry_out(
    study: Study, out: Path, *, workers: Workers = Workers(), keep_checkpoints: bool = False, stages: Stages = silent
) -> None:
    """Do the runs that `out`/results.jsonl does not have yet, or has as failed, and add their records to it.

    A run whose reference failed is recorded as failed, without being tried.
    Raises: UserError where `out` can't be written, or another command is at work in it.
    """
    out = resolved(out)
    with claimed(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write {out}: {error.strerror}; choose another --out") from None
        _put_last(study, out)
        for references in (True, False):
            done = finished(study, out)
            todo = [run for run in study.runs if run.reference == references and run.id not in done]
            progress = stages("references" if references else "runs")
            errands, hopeless = [], []
            for run in todo:
                errand = _errand(study, run, out, workers, keep_checkpoints)
                possible = run.reference or study.reference(run).id in done
                (errands if possible else hopeless).append(errand)
            for errand in hopeless:
                reason = f"its dense reference {study.reference(errand.run).id} failed"
                records.append(out / RESULTS_FILE, execute(errand, error=reason))
            results = _on_ray(errands, workers.ray) if workers.ray is not None else _here(errands, workers.jobs)
            for number, record in enumerate(results, start=1):
                records.append(out / RESULTS_FILE, record)
                if progress:
                    progress(number, len(errands))


def finished(study: Study, out: Path) -> set[str]:
    """Ids of the study's runs that ended well before, and need not be done again."""
    if not (out / RESULTS_FILE).is_file():
        return set()
    done = {record["id"] for record in records.read(out / RESULTS_FILE).done}
    # without its model, a reference is of no use to the runs that are still to come
    return {run.id for run in study.runs if run.id in done and (not run.reference or _model_of(run, out) is not None)}


def _put_last(study: Study, out: Path) -> None:
    """Write again what is done of a study that was edited and edited back: of a place in a table the last record is
    what a report takes."""
    if (out / RESULTS_FILE).is_file():
        found, ids = records.read(out / RESULTS_FILE), {run.id for run in study.runs}
        latest = {record["id"] for record in found.latest}
        for record in found.done:
            if record["id"] in ids - latest:
                records.append(out / RESULTS_FILE, record)


def _model_of(run: Run, out: Path) -> str | None:
    """Where a reference's model is, if it is still there."""
    place = checkpoint_of(run, out / RUNS / run.id)
    return place if place == run.model or Path(place).exists() else None


def _errand(study: Study, run: Run, out: Path, workers: Workers, keep_checkpoints: bool) -> Errand:
    dense = None if run.reference else _model_of(study.reference(run), out)
    keep = keep_checkpoints or run.reference
    return Errand(run, study.name, out / RUNS / run.id, dense, keep, workers.threads, Path.cwd())


def _here(errands: Sequence[Errand], jobs: int) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(execute, errand) for errand in errands]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # where we are interrupted, what has not begun does not begin, and what runs ends
            for future in futures:
                future.cancel()
            stop()


def _on_ray(errands: Sequence[Errand], address: str) -> Iterator[dict[str, Any]]:
    """address: as `ray.init` takes it (`local` starts a cluster of this machine). Machines share the file system."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--ray needs the package ray: pip install 'lmprune[ray]'") from None
    path = os.environ.get("PYTHONPATH")
    try:
        host, _, port = address.removeprefix("ray://").partition(":")
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from None
    try:
        waiting = [ray.remote(num_cpus=errand.threads)(execute).remote(errand) for errand in errands]
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            yield ray.get(done)
    finally:
        ray.shutdown()
