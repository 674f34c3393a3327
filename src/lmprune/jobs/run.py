"""What `lmprune run` does: check the whole file, carry its steps out, each a command of its own; go on where it was.

The run's folder holds `run.yaml`, the file as it was, and `run.jsonl`, a line for each step that is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.writing import claimed, resolved, written_aside
from ..errors import Finished, UserError
from ..progress import Teller
from ..study import recipe
from ..study.recipe import Recipe, Step
from ..study.yaml_file import Commands
from .steps import Steps, failed, going_on, record_of

FILE, RECORDS = "run.yaml", "run.jsonl"
#: what a step is checked by, before the first one is carried out: its words, and the models that will be made before
#: it; raises UserError
Check = Callable[[Sequence[str], Collection[str]], object]
#: called with each step's name and record as soon as it is done
Shown = Callable[[str, Mapping[str, Any]], None]


def run(
    terminal: Teller, *, file: Path, dry_run: bool, force: bool, resume: bool, commands: Commands, check: Check,
    shown: Shown,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune run`. resume: only go on with one that was begun.

    Raises: UserError, before the first step, for all that can be known to be wrong by then.
    """
    found = recipe.read(file, commands)
    place = resolved(found.out)
    steps = Steps(place / RECORDS, "run", "choose another out")
    steps.check_begun(resume)
    steps.check(FILE)
    done = [] if force else steps_done(steps, found)
    todo = found.steps[len(done) :]
    to_come: list[str] = []
    for step in todo:
        try:
            check([*step.words, *_again(place, step, force=force)], to_come)
        except Finished:  # it was killed before anybody wrote that down; carried out, it says so
            pass
        except UserError as error:
            raise found.fail(step, error) from None
        to_come += [str(step.out)] if step.verb in recipe.MAKE else []
    head = {"file": str(file), "out": str(place)}
    if dry_run:
        return head | {"steps": done, "todo": [step.command() for step in todo]}
    start = time.perf_counter()
    with claimed(place):
        steps.tell(terminal, [step["name"] for step in done], len(found.steps))
        _begin(steps, found, done)
        for number, step in enumerate(todo, start=len(done) + 1):
            terminal.note(f"step {number} of {len(found.steps)}: lmprune {' '.join(step.words)}")
            record = _carry_out(found, step, place, force=force)
            done.append({"name": step.name, "command": step.command(), "record": record})
            steps.write(done)
            shown(step.name, record)
    return head | {"steps": done, "seconds": time.perf_counter() - start}


def steps_done(steps: Steps, found: Recipe) -> list[dict[str, Any]]:
    """The steps that were carried out before, from the first on.

    Raises: UserError where the folder is something else, or holds a run that was asked for differently.
    """
    done = steps.read()
    for before, step in zip(done, found.steps, strict=False):
        try:
            steps.check_same(before, step.command())
        except UserError as error:
            raise found.fail(step, error) from None
    if len(done) > len(found.steps):
        raise UserError(f"{steps.folder} holds a run with more steps; {steps.cure}, or start again with --force")
    kept = next((n for n, step in enumerate(found.steps[: len(done)]) if not _is_there(step)), len(done))
    return done[:kept]


def _is_there(step: Step) -> bool:
    return step.out is None or step.out.exists()


def _begin(steps: Steps, found: Recipe, done: Sequence[Mapping[str, Any]]) -> None:
    try:
        steps.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write {steps.folder}: {error.strerror}; {steps.cure}") from None
    steps.write(done)
    with written_aside(steps.folder / FILE, folder=False) as aside:
        aside.write_text(found.text, encoding="utf-8")


def _again(place: Path, step: Step, *, force: bool) -> list[str]:
    """What a step needs that was begun before: a training goes on, and what it wrote in this folder makes room."""
    if step.verb not in {*recipe.MAKE, "analyze", "export"} or step.out is None:
        return []
    return going_on(step.out, force=force, ours=step.own and (place / FILE).is_file())


def _carry_out(found: Recipe, step: Step, place: Path, *, force: bool) -> dict[str, Any]:
    told = ["--run-file", str(place / FILE)] if step.verb in recipe.MAKE else []
    code, record = record_of([*step.words, *_again(place, step, force=force), *told])
    if record is None:
        then = "run the same file again when it is mended: what was done before it is kept"
        raise failed(code, f"{found.path}: {step.name}", then)
    return record
