"""A run file: one model, and the commands that are carried out on it one after the other, read from YAML.

Each command works on the checkpoint that the ones before it left. Every error names the file and the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .. import plugins
from ..checkpoints.sources import resolve
from ..errors import UserError, unknown
from ..foreign import clipped
from .run import spelt
from .yaml_file import Commands, Options, YamlFile, as_in_python

#: the commands that a run file carries out -> what their output is called in the run's folder; None = they have none
STEPS: dict[str, str | None] = {
    "prune": "pruned", "finetune": "finetuned", "recover": "recovered", "eval": None, "analyze": "analysis",
    "export": "exported", "bench": None,
}  # fmt: skip
#: those that leave the model that later steps work on
MAKE = frozenset({"prune", "finetune", "recover"})
_KEYS = ("model", "out", "plugins")
_OURS = frozenset("model models force resume plugin save_config run_file as_json json help".split())


@dataclass(frozen=True)
class Step:
    """One command. words: what the command line takes after `lmprune`, without --force, --resume and --json.

    out: what it writes, None where it only tells. own: whether that lies in the run's folder.
    line: where it begins in the file; lines: where each of its options is.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    out: Path | None
    own: bool
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)

    def command(self) -> list[str]:
        return ["lmprune", *self.words]


@dataclass(frozen=True)
class Recipe:
    """out: the run's folder. text: the file's own."""

    path: Path
    text: str
    out: Path
    steps: tuple[Step, ...]

    def fail(self, step: Step, error: str | UserError) -> UserError:
        """The error with its place: the option's that it names, or the step's."""
        line = next((line for option, line in step.lines.items() if f"--{option}" in str(error)), step.line)
        return UserError(clipped(f"{self.path}, line {line}: {step.name}: {error}"))


def read(path: Path, commands: Commands) -> Recipe:
    """Raises: UserError, with the line, for an unknown key, model or option, and where there is nothing to do."""
    return _RunFile(path, "run file", commands, _OURS).recipe()


class _RunFile(YamlFile):
    def recipe(self) -> Recipe:
        root = self.mapping(self.root)
        for name in ("model", "out"):
            if name not in root:
                raise UserError(f"{self.path}: there is no {name!r}; a run needs a model, and a folder to write to")
        files = [self.value(n, str) for n in self.items(root["plugins"])] if "plugins" in root else []
        for file, n in zip(files, self.items(root["plugins"]) if files else [], strict=True):
            self.checked(n, plugins.load_file, Path(file))  # now, so that their methods are known below
        model, out = self.value(root["model"], str, resolve), Path(self.value(root["out"], str))
        common, sections = self.common(root), [name for name in root if name in STEPS]
        if not sections:
            raise UserError(f"{self.path}: nothing is to be done; name at least one of {', '.join(STEPS)}")
        steps: list[Step] = []
        now = model
        for verb in sections:
            for node in self.each(root[verb]):
                shared = {k: v for k, v in common.items() if k in self.commands[verb]}
                options = {**shared, **self.options(node, verb), "plugin": files}
                step = self.step(verb, node, options, steps, out, model, now)
                now = str(step.out) if verb in MAKE else now
                steps.append(step)
        return Recipe(self.path, self.path.read_text(encoding="utf-8"), out, tuple(steps))

    def common(self, root: dict[str, yaml.Node]) -> Options:
        """Options for every step that takes them."""
        known = {o for verb in STEPS for o in self.commands.get(verb, ()) if o not in _OURS and o != "out"}
        found: Options = {}
        for name, value in root.items():
            if name in _KEYS or name in STEPS:
                continue
            if as_in_python(name) not in known:
                raise self.fail(value, unknown("key", name, [*_KEYS, *STEPS, *sorted(known)]))
            found[as_in_python(name)] = self.plain(value)
        return found

    def each(self, node: yaml.Node) -> Sequence[yaml.Node]:
        """The steps of a section: a list of them, or one; one without options may be left empty."""
        return self.items(node) if isinstance(node, yaml.SequenceNode) else [node]

    def mapping(self, node: yaml.Node | None, known: Sequence[str] | None = None) -> dict[str, yaml.Node]:
        empty = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null" and node is not self.root
        return {} if empty else super().mapping(node, known)

    def step(
        self, verb: str, node: yaml.Node, options: Options, before: Sequence[Step], out: Path, model: str, now: str
    ) -> Step:  # fmt: skip
        number = 1 + sum(step.verb == verb for step in before)
        name = verb if number == 1 else f"{verb} {number}"
        own = STEPS[verb] is not None and "out" not in options
        if own:
            options["out"] = str(out / self.file_name(verb, number, options))
        models = [model, now] if verb == "bench" else [now]
        written = options.get("out")
        lines = {key.replace("_", "-"): value.start_mark.line + 1 for key, value in self.mapping(node).items()}
        words = (verb, *models, *spelt(options))
        return Step(name, verb, words, Path(written) if written else None, own, node.start_mark.line + 1, lines)

    def file_name(self, verb: str, number: int, options: Options) -> str:
        found = f"{STEPS[verb]}" if number == 1 else f"{STEPS[verb]}-{number}"
        return f"{found}.gguf" if verb == "export" and options.get("to") == "gguf" else found

    def plain(self, node: yaml.Node) -> Any:
        """Lists and mappings of single values as the command line has them: a,b and a=1,b=2."""
        if isinstance(node, yaml.SequenceNode):
            return ",".join(str(super(_RunFile, self).plain(item)) for item in self.items(node))
        if isinstance(node, yaml.MappingNode):
            return ",".join(f"{k}={super(_RunFile, self).plain(v)}" for k, v in self.mapping(node).items())
        return super().plain(node)
