"""What `lmprune run` does: check the whole file, carry its steps out, each a command of its own; go on where it was.

The run's folder holds `run.yaml`, the file as it was, and `run.jsonl`, a line for each step that is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..checkpoints.writing import written_aside
from ..errors import UserError
from ..foreign import json_of, misfit, reading, text_of
from ..progress import Teller
from ..study import recipe
from ..study.children import end_with_parent
from ..study.recipe import Recipe, Step
from ..study.yaml_file import Commands
from ..training.run_folder import unfinished

FILE, RECORDS = "run.yaml", "run.jsonl"
#: what a step is checked by, before the first one is carried out: its words -> None; raises UserError
Check = Callable[[Sequence[str]], object]
#: called with each step's name and record as soon as it is done
Shown = Callable[[str, Mapping[str, Any]], None]


def run(
    terminal: Teller, *, file: Path, dry_run: bool, force: bool, commands: Commands, check: Check, shown: Shown
) -> dict[str, Any]:
    """`lmprune run`. Raises: UserError, before the first step, for all that can be known to be wrong by then."""
    found = recipe.read(file, commands)
    place = found.out.expanduser().resolve()
    done = [] if force else _done(place, found)
    todo = found.steps[len(done) :]
    for step in todo:
        try:
            check([*step.words, *_again(place, step, force=force)])
        except UserError as error:
            raise found.fail(step, error) from None
    head = {"file": str(file), "out": str(place)}
    if dry_run:
        return head | {"steps": done, "todo": [step.command() for step in todo]}
    if done:
        terminal.note(f"{len(done)} of {len(found.steps)} steps were done before: {', '.join(s['name'] for s in done)}")
    start = time.perf_counter()
    _begin(place, found, fresh=not done)
    for number, step in enumerate(todo, start=len(done) + 1):
        terminal.note(f"step {number} of {len(found.steps)}: lmprune {' '.join(step.words)}")
        record = _carry_out(found, step, place, force=force)
        done.append({"name": step.name, "command": step.command(), "record": record})
        with written_aside(place / RECORDS, folder=False) as aside:
            aside.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in done), encoding="utf-8")
        shown(step.name, record)
    return head | {"steps": done, "seconds": time.perf_counter() - start}


def _done(place: Path, found: Recipe) -> list[dict[str, Any]]:
    """The steps that were carried out before, from the first on.

    Raises: UserError where the folder is something else, or holds a run that was asked for differently.
    """
    if place.exists() and not (place.is_dir() and ((place / FILE).is_file() or not any(place.iterdir()))):
        raise UserError(f"{place} is there already, and no run's folder; choose another out")
    records = place / RECORDS
    done = steps_of(records)
    for before, step in zip(done, found.steps, strict=False):
        if before["command"] != step.command():
            raise found.fail(
                step,
                f"{place} holds a run in which this step was asked for with "
                f"{_other(before['command'], step.command())}; choose another out, or start again with --force",
            )
    if len(done) > len(found.steps):
        raise UserError(f"{place} holds a run with more steps; choose another out, or start again with --force")
    kept = next((n for n, step in enumerate(found.steps[: len(done)]) if not _is_there(step)), len(done))
    return done[:kept]


def _other(before: Sequence[str], now: Sequence[str]) -> str:
    """The options that one command has and another has not."""
    theirs = {f"{a} {b}" for a, b in pairwise(now)}
    found = [said for a, b in pairwise(before) if a.startswith("--") and (said := f"{a} {b}") not in theirs]
    return ", ".join(found) or "fewer options"


def steps_of(records: Path) -> list[dict[str, Any]]:
    """`name`, `command` and `record` of each step that a folder's records tell of. Raises: UserError."""
    if not records.is_file():
        return []
    with reading(f"{records} is damaged", "start again with --force"):
        found = [json_of(line) for line in text_of(records).splitlines()]
        if misfit(found, [{"name": str, "command": [str], "record": dict}]) or not all(
            None not in (step.get("name"), step.get("command"), step.get("record")) for step in found
        ):
            raise ValueError("a line of it is no step")
    return found


def _is_there(step: Step) -> bool:
    return step.out is None or step.out.exists()


def _begin(place: Path, found: Recipe, *, fresh: bool) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        if fresh:
            (place / RECORDS).unlink(missing_ok=True)
        with written_aside(place / FILE, folder=False) as aside:
            aside.write_text(found.text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't write {place}: {error.strerror}; choose another out") from None


def _again(place: Path, step: Step, *, force: bool) -> list[str]:
    """What a step needs that was begun before: a training goes on, and what it wrote in this folder makes room."""
    if step.verb in recipe.MAKE and step.out is not None and unfinished(step.out) and not force:
        return ["--resume"]
    ours = step.own and (place / FILE).is_file()
    return ["--force"] if step.verb in {*recipe.MAKE, "analyze", "export"} and (force or ours) else []


def _carry_out(found: Recipe, step: Step, place: Path, *, force: bool) -> dict[str, Any]:
    told = ["--run-file", str(place / FILE)] if step.verb in recipe.MAKE else []
    code, record = record_of([*step.words, *_again(place, step, force=force), *told])
    if record is None:
        raise UserError(
            f"{found.path}: {step.name} ended with exit code {code}, and said why above; "
            "run the same file again when it is mended: what was done before it is kept"
        )
    return record


def record_of(words: Sequence[str]) -> tuple[int, dict[str, Any] | None]:
    """The exit code of a command in a process of its own, and its record where that is 0; what it says on the way is
    seen as it says it."""
    line = [sys.executable, "-m", "lmprune", *words, "--json"]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, preexec_fn=end_with_parent)
    try:
        out, _ = child.communicate()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    return child.returncode, None if child.returncode else json.loads(out)
