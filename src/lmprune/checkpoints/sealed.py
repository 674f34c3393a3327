"""Tensors in a file that is, to the bit, what was written there, or is damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..foreign import reading
from . import tensor_file
from .fingerprint import tensors_fingerprint
from .tensor_file import InFile, Outline
from .writing import written_aside

#: in a file's metadata, what its tensors are known by
_SEAL = "sha256"


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file has its name when the disk has all of it; of the tensors one is in memory at a time, where they are not.

    Raises: UserError for what the disk refuses.
    """
    outlines: dict[str, Outline] = {}
    seal = tensors_fingerprint(tensors, lambda name, values: outlines.update({name: tensor_file.outline(values)}))
    with written_aside(file, folder=False) as aside:
        tensor_file.write(aside, tensors, outlines, {_SEAL: seal})
        to_disk(aside)
    to_disk(file.parent)


def read(file: Path, cure: str) -> Mapping[str, Tensor]:
    """What was written, each tensor when it is asked for; all have been looked at by then.

    cure: what to do about a file that is damaged, for the message. Raises: UserError.
    """
    with reading(f"{file} is damaged", cure):
        found = InFile(file)
        if found.metadata.get(_SEAL) != tensors_fingerprint(found):
            raise ValueError("it is not what was written there")
        return found


def to_disk(path: Path) -> None:
    """A file, or what a folder lists: a power cut does not take it away any more."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
