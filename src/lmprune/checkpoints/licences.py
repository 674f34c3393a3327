"""The licence that a model came with: what is made of its weights goes on under it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..errors import UserError, one_line
from ..foreign import reading, yaml_of
from ..runtimes.gguf_file import read_gguf
from .models import hub_options
from .sources import resolve

#: names of files that say what one may do with a model: they go along with every copy
_FILE = re.compile(r"(licen[sc]e|notice|copying|use_policy)([-_.].*)?", re.IGNORECASE)
_CARD = "README.md"
#: the same, and the card, as the hub takes patterns
_WANTED = [_CARD, "[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*", "[Nn][Oo][Tt][Ii][Cc][Ee]*", "COPYING*", "USE_POLICY*"]
_LARGEST = 2**20  # bytes; no licence is longer
_WORD = 300  # characters of its name, or its address


@dataclass(frozen=True)
class Licence:
    """A model's licence, each part as far as the model says it.

    id: as the hub spells it (`apache-2.0`, `gemma`, `other`). name, link: of one that the hub has no id for.
    files: texts to go along with a copy (LICENSE, NOTICE, …), by file name.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For plans and cards: `license`, `license_name`, `license_link`, `license_files`, those that are known."""
        names = list(self.files)
        told = {"license": self.id, "license_name": self.name, "license_link": self.link, "license_files": names}
        return {key: value for key, value in told.items() if value}


#: of a model that tells none
UNKNOWN = Licence()


def find_licence(source: str | Path, *, revision: str | None = None) -> Licence:
    """The licence of the model that `source` names (see `sources.resolve`); an empty one where it tells none.

    A GGUF file tells it in its header; a folder, and a repository of the hub, in the front matter of README.md and in
    files beside it. Raises: UserError where there is no such model.
    """
    found = resolve(source, revision=revision)
    if found.gguf:  # what lies beside a single file need not be about it
        header = read_gguf(Path(str(found))).metadata
        identifier, name, link = (_word(header.get(f"general.license{part}")) for part in ("", ".name", ".link"))
        return Licence(identifier, name, link)
    if not found.on_hub:
        return _of_folder(Path(found.place))
    try:
        return _of_folder(Path(snapshot_download(found.place, allow_patterns=_WANTED, **hub_options(found))))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return UNKNOWN


def is_licence(name: str) -> bool:
    """Whether a file of this name says what one may do with a model."""
    return _FILE.fullmatch(name) is not None


def _of_folder(folder: Path) -> Licence:
    files = {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if is_licence(file.name) and file.is_file() and file.stat().st_size <= _LARGEST
    }
    told = _front_matter(folder / _CARD)
    identifier, name, link = (_word(told.get(key)) for key in ("license", "license_name", "license_link"))
    return Licence(identifier, name, link, files)


def _front_matter(card: Path) -> Mapping[str, Any]:
    """What stands between the first two lines of dashes of a card; nothing where it is not there, or no YAML."""
    if not card.is_file():
        return {}
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", _beginning(card), re.DOTALL)
    try:
        with reading(card):
            node = yaml_of(front[1]) if front else None
            told = yaml.SafeLoader("").construct_document(node) if node else None
    except UserError:
        return {}
    return told if isinstance(told, dict) else {}


def _beginning(card: Path) -> str:
    with card.open("rb") as file:
        return file.read(_LARGEST).decode("utf-8-sig", errors="replace")


def _word(value: Any) -> str | None:
    """A licence as one string: the hub also takes a list of them."""
    words = value if isinstance(value, list) else [value]
    return one_line(", ".join(each for each in words if isinstance(each, str)))[:_WORD] or None
