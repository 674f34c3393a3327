"""What others add: methods and families of installed packages (entry points), and Python files that the user names.

A package offers a method or a family under a name:

    [project.entry-points."lmprune.methods"]
    fisher = "my_package:FISHER"          # a lmprune.Method of that name, or a criterion's function

It is imported when that name is asked for, or all are listed, and not before. A file is run as it is: its code calls
`lmprune.register_method`, `lmprune.register_family` or `lmprune.criterion`.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from .errors import UserError
from .foreign import reading

METHODS, FAMILIES = "lmprune.methods", "lmprune.families"
#: the files that this process has run, as they were named, in their order; children are told of them
_files: dict[Path, Path] = {}


@cache
def offered(group: str) -> dict[str, EntryPoint]:
    """Name -> what installed packages offer under it."""
    return {entry.name: entry for entry in entry_points(group=group)}


def from_package(group: str, name: str) -> Any:
    """The object that a package offers. Raises: UserError where it can't be imported."""
    entry = offered(group)[name]
    try:
        return entry.load()
    except Exception as error:
        raise UserError(
            f"{_package(entry)} offers {group} {name!r}, and {entry.value} can't be loaded: {_said(error)}"
        ) from error


def check_new(group: str, known: Any, name: str) -> None:
    """Raises: UserError where an installed package offers what lmprune has itself."""
    if name in known and name in offered(group):
        entry = offered(group)[name]
        raise UserError(f"{_package(entry)} offers {group} {name!r}, which lmprune has itself; remove that package")


def load_file(file: Path) -> None:
    """Run a Python file that registers something, once a process. Raises: UserError where it is missing or fails."""
    with reading(f"no plugin at {file}"):
        place = file.expanduser().resolve()
        there = place.is_file()
    if place in _files:
        return
    if not there or place.suffix != ".py":
        raise UserError(f"no plugin at {file}; expected a Python file (.py) that registers methods or families")
    name = f"lmprune_plugin_{place.stem}"
    loader = SourceFileLoader(name, str(place))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"the plugin {file} can't be loaded: {_said(error)}") from error
    _files[place] = file


def loaded_files() -> list[str]:
    """As they were named."""
    return [str(file) for file in _files.values()]


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "a package"


def _said(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
