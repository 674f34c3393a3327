"""What a GGUF file says of itself before its tensors. gguf's own reader takes seconds, over the vocabulary."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

_START = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of fields
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NUMBERS = {kind: struct.Struct(f"<{code}") for kind, code in _CODES.items()}
_U32, _U64 = _NUMBERS[4], _NUMBERS[10]
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """fields: numbers and strings by key (`general.license`, …), in the file's order; lists are left out.

    numbers: how many the tensors hold of each of ggml's types.
    """

    fields: Mapping[str, Any]
    numbers: Mapping[int, int]


def read(path: Path) -> Header:
    """Raises: UserError for what is no GGUF file, or is cut short."""
    fields: dict[str, Any] = {}
    numbers: Counter[int] = Counter()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            magic, _, num_tensors, num_fields = _START.unpack_from(content)
            if magic != b"GGUF":
                raise UserError(f"{path} is not a GGUF file")
            at = _START.size
            for _ in range(num_fields):
                key, at = _string(content, at)
                (kind,) = _U32.unpack_from(content, at)
                value, at = _value(content, at + _U32.size, kind)
                if value is not None:
                    fields[key.decode()] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            for _ in range(num_tensors):
                _, at = _string(content, at)
                (num_axes,) = _U32.unpack_from(content, at)
                *shape, kind, _ = struct.unpack_from(f"<{num_axes}QIQ", content, at + _U32.size)
                at += _U32.size + struct.calcsize(f"<{num_axes}QIQ")
                numbers[kind] += math.prod(shape)
    except (struct.error, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short: its header can't be read") from error
    return Header(fields, numbers)


def _string(content: mmap.mmap, at: int) -> tuple[bytes, int]:
    (length,) = _U64.unpack_from(content, at)
    start = at + _U64.size
    return content[start : start + length], start + length


def _value(content: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """(a number, the bytes of a string, or None for a list; where it ends)."""
    if kind == _STRING:
        return _string(content, at)
    if kind != _ARRAY:
        number = _NUMBERS[kind]
        return number.unpack_from(content, at)[0], at + number.size
    (item,), (length,) = _U32.unpack_from(content, at), _U64.unpack_from(content, at + _U32.size)
    at += _U32.size + _U64.size
    if item in _NUMBERS:
        return None, at + length * _NUMBERS[item].size
    for _ in range(length):
        _, at = _value(content, at, item)
    return None, at
