"""A YAML file that a user wrote, read so that every complaint names the file and the line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, shown, unknown
from ..foreign import clipped, finite, reading, reason, yaml_of

#: command -> its options (with underscores) -> whether it is a flag; handed in by the command line, so that an option
#: is known here as soon as it is known there
Commands = Mapping[str, Mapping[str, bool]]
Options = dict[str, Any]
_LARGEST = 2**18


class YamlFile:
    """what: what it is called in messages. hidden: options of commands that the file can't set."""

    def __init__(self, path: Path, what: str, commands: Commands, hidden: frozenset[str]):
        self.path, self.commands, self.hidden = path, commands, hidden
        try:
            if path.stat().st_size > _LARGEST:
                raise UserError(f"{path} is larger than {_LARGEST >> 10} kB, which no {what} is")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"can't read the {what} {path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not YAML: {reason(error)}") from None
        with reading(f"{path} is not YAML"):
            try:
                self.root = yaml_of(text)
            except yaml.YAMLError as error:  # of several lines, which tell where
                raise UserError(f"{path} is not YAML: {clipped(str(error))}") from None

    def fail(self, node: yaml.Node, error: str | UserError) -> UserError:
        return UserError(clipped(f"{self.path}, line {node.start_mark.line + 1}: {error}"))

    def mapping(self, node: yaml.Node | None, known: Sequence[str] | None = None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            place = f", line {node.start_mark.line + 1}" if node else ""
            raise UserError(
                f"{self.path}{place}: expected keys and values" + (f": {', '.join(known)}" if known else "")
            )
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail(key, "a key is a word")
            name = str(key.value)
            if known is not None and name not in known:
                raise self.fail(key, unknown("key", name, known))
            if name in found:
                raise self.fail(key, f"{shown(name)} is there twice")
            found[name] = value
        return found

    def items(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.fail(node, "expected a list with something in it, like [a, b]")
        return node.value

    def constructed(self, node: yaml.Node) -> Any:
        try:
            with reading("not a value"):
                found = yaml.SafeLoader("").construct_document(node)
        except UserError as error:  # an unknown tag, the 30th of February, a key that is a list
            raise self.fail(node, error) from None
        if not finite(found):
            raise self.fail(node, f"expected a number that is one, got {shown(found)}")
        return found

    def value(self, node: yaml.Node, kind: type, check: Any = None) -> Any:
        found = self.constructed(node)
        if kind is float and type(found) is int:
            found = float(found)
        if type(found) is not kind:
            names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
            raise self.fail(node, f"expected {names[kind]}, got {shown(found)}")
        return self.checked(node, check, found) if check else found

    def checked(self, node: yaml.Node, check: Callable[[Any], Any], value: Any) -> Any:
        try:
            check(value)
        except UserError as error:
            raise self.fail(node, error) from None
        return value

    def options(self, node: yaml.Node, command: str) -> Options:
        """Options of a command by their names in Python."""
        if command not in self.commands:
            raise self.fail(node, f"this lmprune has no command {shown(command)}; leave the section out")
        known = [name for name in self.commands[command] if name not in self.hidden]
        found: Options = {}
        for name, value in self.mapping(node).items():
            if as_in_python(name) not in known:
                raise self.fail(value, unknown(f"option of `lmprune {command}`", name, known))
            found[as_in_python(name)] = self.plain(value)
        return found

    def plain(self, node: yaml.Node) -> str | int | float | bool | None:
        found = self.constructed(node)
        if not isinstance(found, str | int | float | bool | None):
            raise self.fail(node, f"expected a single value, got {shown(found)}")
        return int(found) if type(found) is float and found.is_integer() else found  # a run's id is not of a spelling


def as_in_python(option: str) -> str:
    return option.replace("-", "_")
