"""A GGUF file's metadata and tensors. gguf's own reader takes half a minute over a large vocabulary."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from ..errors import UserError
from ..foreign import misfit, reading

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # unless `general.alignment` says another
_PLAIN = {
    **{GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h"},
    **{GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q"},
    **{GGUFValueType.FLOAT32: "f", GGUFValueType.FLOAT64: "d", GGUFValueType.BOOL: "?"},
}


_TOKENIZER = {
    "model": str, "pre": str, "tokens": [str], "token_type": [int], "scores": [float], "merges": [str],
    **{f"{name}_token_id": int for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask")},
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), bool),
}  # fmt: skip
#: of what kind a key's value is, where somebody reads it
_KINDS = {
    "general.architecture": str, "general.type": str, "general.alignment": int, "general.file_type": int,
    "split.count": int, "tokenizer.chat_template": str,
    **{f"tokenizer.ggml.{name}": kind for name, kind in _TOKENIZER.items()},
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """shape: of the values, rows first. begin: its first byte in the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int

    @property
    def num_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor] = field(repr=False)

    @property
    def arch(self) -> str:
        return self.metadata.get("general.architecture", "unknown")

    def settings(self) -> dict[str, Any]:
        """The model's hyper-parameters, which are all that llama.cpp looks up: `{arch}.x` as `x`."""
        begin = self.arch + "."
        return {key.removeprefix(begin): value for key, value in self.metadata.items() if key.startswith(begin)}

    def numbers(self) -> Mapping[GGMLQuantizationType, int]:
        """How many numbers the tensors hold of each of ggml's types."""
        found: Counter[GGMLQuantizationType] = Counter()
        for tensor in self.tensors.values():
            found[tensor.kind] += math.prod(tensor.shape)
        return found

    def values(self, name: str) -> np.ndarray:
        """A tensor's values in float32."""
        stored = self.tensors[name]
        return gguf.dequantize(self.stored_values(name), stored.kind).reshape(stored.shape)

    def stored_values(self, name: str) -> np.ndarray:
        """As they are in the file: numbers, or the bytes of blocks."""
        stored = self.tensors[name]
        kinds = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        content = np.fromfile(self.path, np.uint8, stored.num_bytes, offset=stored.begin)
        if stored.kind in kinds:
            return content.view(kinds[stored.kind]).reshape(stored.shape)
        block, size = gguf.GGML_QUANT_SIZES[stored.kind]
        return content.reshape(*stored.shape[:-1], stored.shape[-1] // block * size)


def read_gguf(path: Path) -> GGUFFile:
    """Read everything but the tensors' values. Raises: UserError for a file that is none, or cut short."""
    with (
        reading(f"{path} is damaged or cut short: its header can't be read"),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        found = _parse(path, _Cursor(content))
        end = max((tensor.begin + tensor.num_bytes for tensor in found.tensors.values()), default=0)
        if end > len(content):
            raise UserError(f"{path} is cut short: {len(content):,} bytes of {end:,}; copy or download it again")
        return found


class _Cursor:
    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def numbers(self, codes: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + codes, self.content, self.at)
        self.at += struct.calcsize("<" + codes)
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        (found,) = self.numbers(f"{length}s")
        return found.decode("utf-8")

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.numbers(_PLAIN[kind])[0]
        inner, count = self.numbers("IQ")
        inner = GGUFValueType(inner)
        if inner in _PLAIN:
            return list(self.numbers(f"{count}{_PLAIN[inner]}"))
        return [self.value(inner) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], GGMLQuantizationType, int]]:
        """Name, (shape, kind, first byte after the header)."""
        name = self.text()
        (dims,) = self.numbers("I")
        shape = tuple(reversed(self.numbers(f"{dims}Q")))
        kind, offset = self.numbers("IQ")
        return name, (shape, GGMLQuantizationType(kind), offset)


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    magic, version, num_tensors, num_keys = cursor.numbers("4sIQQ")
    if magic != b"GGUF":
        raise UserError(f"{path} is not a GGUF file")
    if version not in _VERSIONS:
        raise UserError(f"{path} is of GGUF version {version}; lmprune reads {' and '.join(map(str, _VERSIONS))}")
    metadata = _unique((cursor.text(), cursor.value(GGUFValueType(cursor.numbers("I")[0]))) for _ in range(num_keys))
    first = {key: value[:1] if isinstance(value, list) else value for key, value in metadata.items()}  # of one type
    if wrong := misfit(first, _KINDS):
        raise UserError(f"{path} has {wrong} of a type that GGUF does not give it")
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    infos = _unique(cursor.tensor() for _ in range(num_tensors))
    begin = _aligned(cursor.at, alignment)
    tensors = {name: StoredTensor(shape, kind, begin + offset) for name, (shape, kind, offset) in infos.items()}
    for name, tensor in tensors.items():  # one behind the other, as llama.cpp insists
        if tensor.begin != begin:
            raise ValueError(f"{name} is not behind the tensor before it")
        begin = _aligned(begin + tensor.num_bytes, alignment)
    return GGUFFile(path, metadata, tensors)


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} twice")
        found[name] = value
    return found
