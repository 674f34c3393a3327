"""The weights of a model whose blocks are in files, as a file for each block, one for all else, and an index.

A block's file is written as soon as nobody changes the block any more, into a folder beside the result, where there is
one; the result is then made of links to these files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import core_model_loading as loading

from ..foreign import reading
from ..sites.pages import Pages, pages_of, place_of
from ..sites.walk import list_of
from . import dtypes, tensor_file
from .fingerprint import tensors_fingerprint
from .sealed import to_disk
from .shelf import SUFFIX, Tensors
from .stored import INDEX
from .tensor_file import InFile
from .writing import written_aside

#: what readers of safetensors ask for
_FORMAT = {"format": "pt"}
_SEAL = "sha256"


def write_blocks(model: Any, pages: Pages, folder: Path, wanted: Mapping[str, torch.dtype]) -> None:
    """All of it, in the dtypes `wanted`, by the tensors' names."""
    number, placed, total = len(pages.blocks) + 1, dict[str, str](), 0
    path, state = path_of_blocks(model, pages), model.state_dict()
    doubles = {target for target, _ in tied(model)}
    rest = {name: v for name, v in state.items() if name not in doubles and not name.startswith(f"{path}.")}
    for place, block in enumerate([None, *pages.blocks]):
        file = folder / f"model-{place + 1:05}-of-{number:05}{SUFFIX}"
        begin = f"{path}.{place - 1}."
        if block is None:
            _write(file, loading.revert_weight_conversion(model, _cast(rest, wanted)))
        elif (written := _written(model, pages, block, begin, wanted)) is not None:
            _link(written, file)
        else:
            named = _named(model, begin, pages.state(block))
            _write(file, loading.revert_weight_conversion(model, _cast(named, wanted)))
        placed |= dict.fromkeys(InFile(file), file.name)
        total += tensor_file.size(file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def tied(model: Any) -> list[tuple[str, str]]:
    """Parameters that are another one."""
    names = dict(model.named_parameters(remove_duplicate=False))
    pairs = model.all_tied_weights_keys.items()
    return [(target, source) for target, source in pairs if names[target] is names[source]]


def path_of_blocks(model: Any, pages: Pages) -> str:
    """Of their list in the model."""
    home = list_of(model, pages.blocks[0])
    return next(name for name, module in model.named_modules() if module is home)


@dataclass(frozen=True)
class Staged:
    """A `pages.Final`: files in a folder, with the tensors' names in the model. path: of the list of blocks there.
    dtype: what they are saved in, see `dtypes.to_save`."""

    model: Any
    folder: Path
    path: str
    dtype: torch.dtype | None

    def file(self, number: int) -> Path:
        return self.folder / f"{number}{SUFFIX}"

    def begin(self, number: int) -> str:
        return f"{self.path}.{number}."

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        named = _named(self.model, self.begin(number), tensors)
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_aside(self.file(number), folder=False) as aside:
            _write(aside, _cast(named, dtypes.to_save(self.model, self.dtype)))
            to_disk(aside)
        to_disk(self.folder)

    def read(self, number: int) -> Mapping[str, Tensor]:
        found, begin = InFile(self.file(number)), self.begin(number)
        return {name.removeprefix(begin): found[name] for name in found}


def stage_blocks(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """From now on a block that nobody changes any more (`pages.done_with`) is written to `folder` as it is to be saved.

    dtype: as for `checkpoint.save`.
    """
    pages = pages_of(model)
    assert pages is not None, "the model is in memory as a whole"
    pages.final = Staged(model, folder, path_of_blocks(model, pages), dtype)


def _staged(block: nn.Module) -> tuple[Pages, int, Staged] | None:
    if (found := place_of(block)) is None or not isinstance(found[0].final, Staged):
        return None
    return *found, found[0].final


def stages_blocks(block: nn.Module) -> bool:
    """Whether the block is written when it is finished."""
    return _staged(block) is not None


def seal_of(block: nn.Module) -> Tensors:
    """What the file of a block that is finished is known by; nothing where it was never changed."""
    if (found := _staged(block)) is None or found[1] not in found[0].finished:
        return {}
    _, number, staged = found
    digest = tensors_fingerprint(InFile(staged.file(number)))
    return {_SEAL: torch.tensor([*bytes.fromhex(digest)], dtype=torch.uint8)}


def finish_again(block: nn.Module, seal: Tensors) -> None:
    """The block, which is cut as it was in an earlier run, is what that run has written. seal: has `seal_of` it then.

    Raises: UserError where the file is another.
    """
    if (found := _staged(block)) is None or _SEAL not in seal:
        return
    pages, number, staged = found
    with reading(f"{staged.file(number)} is damaged", "throw the run away with --force"):
        if tensors_fingerprint(InFile(staged.file(number))) != bytes(seal[_SEAL].tolist()).hex():
            raise ValueError("it is not what was written there")
    pages.finish_as(number)


def _named(model: Any, begin: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A block's tensors by their names in the model, and its buffers."""
    buffers = {name: values for name, values in model.state_dict().items() if name.startswith(begin)}
    named = {name: values for name, values in buffers.items() if not values.is_meta}
    return named | {begin + name: values for name, values in tensors.items()}


def _cast(state: Mapping[str, Tensor], wanted: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    return {name: dtypes.cast_one(name, value, wanted.get(name, value.dtype)) for name, value in state.items()}


def _write(file: Path, state: Mapping[str, Tensor]) -> None:
    tensor_file.write_all(file, state, _FORMAT)


def _written(model: Any, pages: Pages, block: nn.Module, begin: str, wanted: Mapping[str, torch.dtype]) -> Path | None:
    """The block's file, where it was written when it was finished, and is what is to be saved of it now."""
    if (found := _staged(block)) is None or found[1] not in pages.finished or found[2].begin(found[1]) != begin:
        return None
    there = tensor_file.outlines_in(file := found[2].file(found[1]))
    blank = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in there.items()}
    reverted = loading.revert_weight_conversion(model, blank)  # in a few families a file has other tensors than a model
    as_is = reverted.keys() == blank.keys() and all(reverted[name] is blank[name] for name in blank)
    same = all(dtype == wanted.get(name, dtype) for name, (dtype, _) in there.items())
    return file if as_is and same else None


def _link(file: Path, place: Path) -> None:
    """Another name of the file, or a copy where the system has no such."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
