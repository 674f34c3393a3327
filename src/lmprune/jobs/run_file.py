"""Write a command as a run file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.writing import check_file, written_aside
from ..errors import UserError, one_line


def save(file: Path, verb: str, options: Mapping[str, Any]) -> None:
    """options: of the command, those that were given, its model too. Raises: UserError where the file is there."""
    if file.exists():
        raise UserError(f"{file} is there already; choose another --save-config")
    place_of_file = check_file(file, force=False, option="--save-config")
    plain = {name: _plain(value) for name, value in options.items()}
    models = plain.pop("models", None) or [plain.pop("model")]
    place = plain.get("out", verb)
    found = {"model": models[0], "out": f"{place}.run"} | (
        {"plugins": plugins} if (plugins := plain.pop("plugin", None)) else {}
    )
    if models[1:]:
        raise UserError("a run file benches the model that its steps leave; --save-config takes one MODEL")
    told = yaml.safe_dump({**found, verb: plain}, sort_keys=False, allow_unicode=True)
    with written_aside(place_of_file, folder=False) as aside:
        aside.write_text(f"# lmprune run {one_line(file.name)}\n{told}", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):  # a number that the command line takes as a text, such as keep
        number = yaml.safe_load(value) if value else value
        return number if isinstance(number, int | float) and str(number) == value else value
    return str(value) if isinstance(value, Path) else value
