"""Tensors on the disk by name."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from . import sealed, tensor_file
from .rooms import scratch
from .tensor_file import InFile

Tensors = Mapping[str, Tensor]

SUFFIX = ".safetensors"


class Shelf(MutableMapping[str, Tensors]):
    """Files of tensors by name; what comes of one is read when it is asked for. lasting: for a later run, too; a file
    that is not what was written is as good as none, and asking for it raises a UserError."""

    def __init__(self, folder: Path, *, lasting: bool):
        self.folder, self.lasting = folder, lasting

    @classmethod
    def for_now(cls, name: str) -> Shelf:
        """One among temporary files, that goes when nobody knows of it any more."""
        life = ExitStack()
        found = cls(life.enter_context(scratch(name)), lasting=False)
        weakref.finalize(found, life.close)
        return found

    def __setitem__(self, name: str, tensors: Tensors) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lasting:
            sealed.write(self._file(name), tensors)
        else:
            tensor_file.write_all(self._file(name), tensors)

    def __getitem__(self, name: str) -> Tensors:
        if self.lasting:
            return sealed.read(self._file(name), "throw the run away with --force")
        return InFile(self._file(name))

    def __contains__(self, name: object) -> bool:
        if not self.has(str(name)):
            return False
        try:
            self[str(name)]
        except UserError:
            return False
        return True

    def has(self, name: str) -> bool:
        """Whether there is a file, damaged or not."""
        return self._file(name).exists()

    def __delitem__(self, name: str) -> None:
        """One that is not there may go, too."""
        self._file(name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return (file.name.removesuffix(SUFFIX) for file in self.folder.glob(f"*{SUFFIX}"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"
