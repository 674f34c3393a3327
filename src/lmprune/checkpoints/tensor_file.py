"""Safetensors files that are written and read a tensor at a time: of a mapping whose tensors are not all in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

#: what safetensors calls the types
_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
#: the header's length, and what it is a multiple of
_WORD = 8

#: of a tensor, before it is there
Outline = tuple[torch.dtype, tuple[int, ...]]


def outline(tensor: Tensor) -> Outline:
    return tensor.dtype, tuple(tensor.shape)


def write(
    file: Path, tensors: Mapping[str, Tensor], outlines: Mapping[str, Outline], metadata: Mapping[str, str] = {}
) -> None:
    """outlines: of each tensor, what it will be; `tensors` is asked for each once. Raises: OSError."""
    names, end = sorted(tensors, key=lambda name: (-outlines[name][0].itemsize, name)), 0
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name in names:
        dtype, shape = outlines[name]
        begin, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _KINDS[dtype], "shape": [*shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _WORD)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(_WORD, "little") + text)
        for name in names:
            out.write(raw(tensors[name]))


def write_all(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = {}) -> None:
    """Each is asked for twice."""
    write(file, tensors, {name: outline(tensors[name]) for name in tensors}, metadata)


def size(file: Path) -> int:
    """Bytes of its tensors."""
    with file.open("rb") as found:
        return file.stat().st_size - _WORD - int.from_bytes(found.read(_WORD), "little")


def outlines_in(file: Path) -> dict[str, Outline]:
    """Of its tensors, by name."""
    by_kind, found = {kind: dtype for dtype, kind in _KINDS.items()}, dict[str, Outline]()
    with safe_open(file, "pt", backend="pread") as opened:
        for name in opened.keys():  # noqa: SIM118 - no mapping
            stored = opened.get_slice(name)
            found[name] = by_kind[stored.get_dtype()], tuple(stored.get_shape())
    return found


def raw(tensor: Tensor) -> memoryview:
    """Its numbers as bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


class InFile(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for. Raises: what `safe_open` does."""

    def __init__(self, file: Path):
        self._opened = safe_open(file, "pt", backend="pread")
        self._names = dict.fromkeys(self._opened.keys())

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._opened.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
