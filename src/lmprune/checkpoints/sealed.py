"""Tensors in a file that is, to the bit, what was written there, or is damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..foreign import reading
from .fingerprint import tensors_fingerprint
from .writing import written_aside

#: in a file's metadata, what its tensors are known by
_SEAL = "sha256"


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file has its name when the disk has all of it. Raises: UserError for what the disk refuses."""
    held = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    with written_aside(file, folder=False) as aside:
        save_file(held, aside, {_SEAL: tensors_fingerprint(held)})
        to_disk(aside)
    to_disk(file.parent)


def read(file: Path, cure: str) -> dict[str, Tensor]:
    """cure: what to do about a file that is damaged, for the message. Raises: UserError."""
    with reading(f"{file} is damaged", cure), safe_open(file, "pt", backend="pread") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        if (opened.metadata() or {}).get(_SEAL) != tensors_fingerprint(found):
            raise ValueError("it is not what was written there")
        return found


def to_disk(path: Path) -> None:
    """A file, or what a folder lists: a power cut does not take it away any more."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
