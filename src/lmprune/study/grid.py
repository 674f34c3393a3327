"""A study: models × tasks × methods × keep ratios × seeds × distillation, read from YAML and spelt out as runs.

Every error names the file and the line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from .. import plugins
from ..budget.selection import check_keep
from ..checkpoints.sources import resolve
from ..errors import UserError, shown, unknown
from ..methods import get_method
from .yaml_file import Commands, Options, YamlFile, as_in_python

#: the sections that are passed on to the command of that name
SECTIONS = ("finetune", "prune", "eval", "analyze", "bench", "zero_shot")
#: the section that is another use of a command
COMMAND_OF = {"zero_shot": "eval"}
#: measured only where a section says how
_ASKED = ("bench", "zero_shot")
#: what the study itself sets, and a section can't
_OURS = frozenset(
    "out force model models baseline method keep seed teacher plan resume plugin scores_out save_config run_file "
    "as_json json help".split()
)
_KEYS = ("name", "plugins", "models", "tasks", "methods", "keep", "seeds", "distil", *SECTIONS)
_METHOD_KEYS = ("name", "label", "start", "prune", "finetune")
DENSE = "dense"
_NAME = 80  # characters of a model's name in a folder's
_LABEL = re.compile(r"\w[\w .,:=+()-]{0,59}")


@dataclass(frozen=True)
class Run:
    """One model, trained or not, pruned or not, and measured.

    method: what tables call it; DENSE for the reference. criterion: the method's own name.
    start: what is pruned: `base`, the model as it came, or `dense`, the reference.
    sections: options of each command that the run calls; a command that is not there is not called.
    """

    model: str
    task: str
    method: str
    criterion: str
    keep: float
    seed: int
    distil: bool
    start: str
    sections: Mapping[str, Options] = field(hash=False)

    @property
    def reference(self) -> bool:
        return self.method == DENSE

    @property
    def id(self) -> str:
        """Readable, and different for every setting that could change the result."""
        digest = hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:8]
        name = Path(self.model).name.replace("/", "-")[:_NAME]
        parts = [name, self.task, self.method, f"k{self.keep:g}", f"s{self.seed}", *(["distil"] if self.distil else [])]
        return "-".join([*parts, digest])

    def config(self) -> dict[str, Any]:
        return {
            "model": self.model, "task": self.task, "method": self.method, "criterion": self.criterion,
            "keep": self.keep, "seed": self.seed, "distil": self.distil, "start": self.start,
            "options": {name: dict(options) for name, options in self.sections.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Study:
    """runs: the dense references first."""

    name: str
    runs: tuple[Run, ...]

    def reference(self, run: Run) -> Run:
        """The dense run that `run` is compared with, learns from, or starts from."""
        dense = [r for r in self.runs if r.reference and (r.model, r.task) == (run.model, run.task)]
        return next((r for r in dense if r.seed == run.seed), dense[0])


def read(path: Path, commands: Commands, *, device: str | None = None) -> Study:
    """device: where every command of it works, whatever the file says; None = as the file says.

    Raises: UserError, with the line, for an unknown key, method, model or option, and for a value out of range.
    """
    file = _StudyFile(path, "study", commands, _OURS)
    file.device = device
    return file.study(file.root)


def check_label(name: str) -> None:
    """Raises: UserError for what can't be a part of the name of a run's folder."""
    if not _LABEL.fullmatch(name):
        raise UserError(f"{shown(name)} names folders; expected up to 60 letters, digits, spaces and _.,:=+()-")


def check_seed(seed: int) -> None:
    """Raises: UserError for one that the random numbers of no library begin with."""
    if not 0 <= seed < 2**32:
        raise UserError(f"a seed is a number from 0 to {2**32 - 1}, got {shown(seed)}")


class _StudyFile(YamlFile):
    device: str | None = None

    def study(self, node: yaml.Node | None) -> Study:
        keys = self.mapping(node, _KEYS)
        for name in ("models", "tasks", "methods", "keep"):
            if name not in keys:
                raise UserError(f"{self.path}: there is no {name!r}; a study needs models, tasks, methods and keep")
        files = [self.value(n, str) for n in self.items(keys["plugins"])] if "plugins" in keys else []
        for file, n in zip(files, self.items(keys["plugins"]) if files else [], strict=True):
            self.checked(n, plugins.load_file, Path(file))  # now, so that their methods are known below
        models = [self.model(n) for n in self.items(keys["models"])]
        tasks = {name: self.task(n) for name, n in self.mapping(keys["tasks"]).items()}
        for name, n in self.mapping(keys["tasks"]).items():
            self.checked(n, check_label, name)
        methods = [self.method(n) for n in self.items(keys["methods"])]
        keeps = [self.value(n, float, check_keep) for n in self.items(keys["keep"])]
        seeds = [self.value(n, int, check_seed) for n in self.items(keys["seeds"])] if "seeds" in keys else [0]
        distil = [self.value(n, bool) for n in self.items(keys["distil"])] if "distil" in keys else [False]
        common: dict[str, Options] = {name: self.section(keys[name], name) for name in SECTIONS if name in keys}

        if files:
            common["all"] = {"plugin": files}

        runs = []
        for model, task in product(models, tasks):
            layers = [common, tasks[task]]
            measured = ["eval", "analyze", *(name for name in _ASKED if any(name in layer for layer in layers))]
            trains = any("finetune" in layer for layer in layers)
            alone = [name for name in measured if name != "bench"]  # which is beside the reference
            dense = self.sections([*(["finetune"] if trains else []), *alone], layers)
            for seed in seeds if trains else seeds[:1]:
                runs += [Run(model, task, DENSE, DENSE, 1.0, seed, False, "base", dense)]
            for method, keep, distilled, seed in product(methods, keeps, distil, seeds):
                called = ["prune", *(["finetune"] if "finetune" in method else []), *measured]
                sections = self.sections(called, [*layers, method])
                label, start = method.get("label", method["name"]), method.get("start", "base")
                runs += [Run(model, task, label, method["name"], keep, seed, distilled, start, sections)]
        # not by their ids: a report knows no more of a run than this
        if len({(r.model, r.task, r.method, r.keep, r.seed, r.distil) for r in runs}) < len(runs):
            raise UserError(f"{self.path}: the same run occurs twice; give methods that differ in options a label each")
        name = self.value(keys["name"], str) if "name" in keys else self.path.stem
        return Study(name, tuple(sorted(runs, key=lambda run: not run.reference)))

    def sections(self, called: Sequence[str], layers: Sequence[Mapping[str, Any]]) -> dict[str, Options]:
        """The options of each command that is called: what a task says for all commands, then layer over layer.

        None takes an option away that an earlier layer gave.
        """
        found = {}
        for section in called:
            command = COMMAND_OF.get(section, section)
            shared = [] if section in COMMAND_OF else layers  # its text is another
            options = {k: v for layer in shared for k, v in layer.get("all", {}).items() if k in self.commands[command]}
            for layer in layers:
                options |= layer.get(section, {})
            if self.device and "device" in self.commands[command]:
                options["device"] = self.device
            found[section] = {name: value for name, value in options.items() if value is not None}
        return found

    def section(self, node: yaml.Node, name: str) -> Options:
        return self.options(node, COMMAND_OF.get(name, name))

    def model(self, node: yaml.Node) -> str:
        return self.value(node, str, resolve)

    def task(self, node: yaml.Node) -> dict[str, Options]:
        """Options that several commands take (`data`, `data_dir`, …), and sections for one of them."""
        keys = self.mapping(node)
        if "data" not in keys:
            raise self.fail(node, "a task needs 'data', a text source as `lmprune eval --data` takes it")
        found: dict[str, Options] = {name: self.section(keys.pop(name), name) for name in SECTIONS if name in keys}
        known = {o for command in SECTIONS for o in self.commands.get(command, ()) if o not in _OURS}
        for name, value in keys.items():
            if as_in_python(name) not in known:
                raise self.fail(value, unknown("key", name, ["data", "data_dir", "chat_template", *SECTIONS]))
        return {**found, "all": {as_in_python(name): self.plain(value) for name, value in keys.items()}}

    def method(self, node: yaml.Node) -> dict[str, Any]:
        if isinstance(node, yaml.ScalarNode):
            return {"name": self.value(node, str, get_method)}
        keys = self.mapping(node, _METHOD_KEYS)
        if "name" not in keys:
            raise self.fail(node, "a method needs a name")
        found: dict[str, Any] = {"name": self.value(keys["name"], str, get_method)}
        if "label" in keys:
            found["label"] = self.value(keys["label"], str, check_label)
            if found["label"] == DENSE:
                raise self.fail(keys["label"], f"{DENSE!r} is the reference's own name; choose another label")
        if "start" in keys:
            found["start"] = self.value(keys["start"], str)
            if found["start"] not in ("base", DENSE):
                raise self.fail(keys["start"], unknown("start", found["start"], ["base", DENSE]))
        return {**found, **{name: self.options(keys[name], name) for name in ("prune", "finetune") if name in keys}}
