"""What people see of a run file's steps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from . import measured_views, views
from .console import Views
from .quality_views import of_evaluation

_OF: Mapping[str, Callable[[Mapping[str, Any]], Views]] = {
    "prune": views.pruning,
    "finetune": views.finetuning,
    "recover": views.recovering,
    "export": views.exporting,
    "analyze": measured_views.analysis,
    "bench": measured_views.benchmark,
}


def of_step(name: str, record: Mapping[str, Any]) -> Views:
    verb = name.split()[0]
    if record.get("finished"):
        return [f"{record['out']} was finished before"]
    if verb == "eval":
        return of_evaluation(record)(record)
    return _OF[verb](record)


def run(record: Mapping[str, Any]) -> Views:
    if "todo" in record:
        done = [f"done: {step['name']}" for step in record["steps"]]
        return [*done, *(shlex.join(command) for command in record["todo"]), "", "The file is right; nothing was run."]
    return ["", f"{len(record['steps'])} steps done in {record['seconds']:.0f} s; all of it is in {record['out']}"]
