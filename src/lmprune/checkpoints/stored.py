"""What the weight files of a checkpoint hold, and reading them.

Weights are regular `*.safetensors` files of the checkpoint's own folder, and nothing else is ever opened. They are
read, not memory-mapped: a file that changes under a running job changes no model.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError, shown
from ..foreign import json_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: what safetensors calls the types that a weight may be stored in; everything else is packed or quantised
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLES = (".bin", ".pt", ".pth")
_ROWS = 1024  # compared at once


@dataclass
class Stored:
    """One tensor of a file. Indexing reads it; `used` says whether anyone did.

    kind: its type, as safetensors calls it. blank: indexing gives a tensor on the meta device, and nothing is read.
    whole: reads all of it, where that is quicker than `values[...]`, whose bytes safetensors copies once more.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    values: Any
    blank: bool = False
    used: bool = False
    whole: Callable[[], torch.Tensor] | None = None

    def __getitem__(self, where: Any) -> torch.Tensor:
        self.used = True
        if self.blank:
            return torch.empty(self.shape, device="meta")
        return self.whole() if where is ... and self.whole else self.values[where]


def weight_files(
    names: Collection[str], path_of: Callable[[str], Path], place: object, named: str | None = None
) -> list[Path]:
    """The files that hold a checkpoint's weights, all seen to be regular ones; none of them is opened.

    names: of the files in its folder. path_of: makes sure that one is here. place: what messages call the checkpoint.
    named: the file of weights, or index of them, that the config names, if it does.
    Raises: UserError where there is none, or it is not certain which.
    """
    if named is not None and not _is_plain(named, (".safetensors", ".safetensors.index.json")):
        raise UserError(
            f"{place}: config.json names {shown(named)} as its weights; expected a *.safetensors file beside it"
        )
    index = named if named is not None and named.endswith(".json") else INDEX
    single = SINGLE if named is None or named == index else named
    if index in names and named in (None, index):
        chosen = _shards(_regular(path_of(index)))
        if named is None and SINGLE in names and SINGLE not in chosen:
            raise UserError(
                f"{place} has both {SINGLE} and {INDEX}, which names other files; remove what is not the model's"
            )
    elif single in names:
        chosen = [single]
        if named is None and (others := sorted(filter(_SHARD.fullmatch, names))):
            raise UserError(f"{place} has {others[0]} beside {SINGLE}, but no {INDEX}; remove what is not the model's")
    else:
        raise UserError(_no_weights(names, place, named))
    if absent := [name for name in chosen if name not in names]:
        raise UserError(f"{place}: {index} names {absent[0]}, which is not there; copy or download it again")
    return [_regular(path_of(name)) for name in chosen]


class Unchanged:
    """Files that are to stay as they are now."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._versions = {path: _version(path) for path in files}

    def check(self) -> None:
        """Raises: UserError where one of them has changed since."""
        for path, version in self._versions.items():
            if (now := _version(path)) != version:
                shorter = now is not None and version is not None and now[2] < version[2]
                what = "disappeared" if now is None else "was cut short" if shorter else "changed"
                raise UserError(f"{path} {what} while it was read; try again when nothing writes to it")


@contextmanager
def opened(files: Sequence[Path], *, blank: bool = False) -> Iterator[dict[str, Stored]]:
    """The tensors of some files by name, readable while the `with` block lasts.

    Raises: UserError where a file is damaged, where two hold one tensor, or, at the end, where one changed meanwhile.
    """
    seen = Unchanged(files)
    tensors: dict[str, Stored] = {}
    with ExitStack() as stack:
        for path in files:
            try:  # pread gives every tensor memory of its own
                file = stack.enter_context(safe_open(path, "pt", backend="pread"))
            except SafetensorError as error:
                raise UserError(f"{path} is damaged or cut short ({error}); copy or download it again") from error
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name in tensors:
                    raise UserError(f"{path.parent}: {name} is in two files, one of them {path.name}; remove one")
                values = file.get_slice(name)
                shape, whole = tuple(values.get_shape()), partial(file.get_tensor, name)
                tensors[name] = Stored(name, values.get_dtype(), shape, values, blank, whole=whole)
        yield tensors
    seen.check()


def same(one: Stored, other: Stored) -> bool:
    """Whether two matrices are equal, bit for bit; compared in parts, up to the first difference."""
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    rows = one.shape[0]
    parts = [slice(at, min(at + _ROWS, rows)) for at in range(0, rows, _ROWS)]
    return all(torch.equal(one.values[part], other.values[part]) for part in parts)


def _shards(index: Path) -> list[str]:
    """The files that an index names. Raises: UserError for whatever is no file of weights in its own folder."""
    amiss, cure = "no index of weights", "expected JSON whose weight_map names files"
    named = json_file(index, amiss, cure).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise UserError(f"{index} is {amiss}; {cure}")
    for name in named.values():
        if not _is_plain(name, (".safetensors",)):
            raise UserError(
                f"{index} names {shown(name)} as a file of weights; expected *.safetensors files of its own folder"
            )
    return sorted(set(named.values()))


def _is_plain(name: object, suffixes: tuple[str, ...]) -> bool:
    """Whether it is the name of a file, without any way to another folder."""
    return isinstance(name, str) and name.endswith(suffixes) and not {"/", "\\", "\0"} & set(name) and name[0] != "."


def _regular(path: Path) -> Path:
    """A link to a regular file is one: the hub's cache is made of them."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file; expected weights as safetensors")
    return path


def _version(path: Path) -> tuple[int, ...] | None:
    """None for one that is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _no_weights(names: Collection[str], place: object, named: str | None) -> str:
    if named is not None:
        return f"{place}: config.json names {named} as its weights, which is not there"
    if shards := sorted(filter(_SHARD.fullmatch, names)):
        return f"{place} has {shards[0]}, but no {INDEX} that says what belongs to the model; copy it, too"
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        return (
            f"{place} has its weights in a pickle ({pickles[0]}), which can run code when opened; "
            "convert it to safetensors first (save_pretrained writes that)"
        )
    return f"{place} has no weights: expected {SINGLE} beside config.json"
