"""Damage done to a file, all of it drawn from one generator: bytes, JSON values, lines, the headers of binary files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

#: what is put in the place of a value
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**40, -(10**40), 0.5, -0.5, 1e308, float("nan"), float("inf"), "",
    "a", "x" * 5000, "\x1b[31mred\n# heading\u202e", "../../../etc/passwd", "/etc/passwd", "\ud800", "[a](b)<script>|`",
    [], [[]], {}, [None], {"a": {"b": []}}, [0] * 1000, ["global", 10**12], [[["global", "local"], 10**12]],
)  # fmt: skip
NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"\x00", b"\xff", b"\n", b"\r\n", b"\t", b"{", b"}", b"[" * 3000, b"]", b'"', b"'", b",", b":", b"- ",
    b"&a [*a, *a]", b"<<: *a", b".nan", b"!!python/object:os.system", b"1e999", b"9" * 5000, b"null", b"NaN",
    b"\xed\xa0\x80", b"\\ud800", b"\x1b]0;title\x07", "\u202e".encode(), b"{{ 'a' * 10**10 }}",
    b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
)  # fmt: skip

Mutation = Callable[[random.Random, bytes], bytes]


def of_bytes(draw: random.Random, content: bytes) -> bytes:
    """One to four places changed."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        length = draw.choice((1, 1, 2, 8, 64, 4096))
        kind = draw.randrange(6)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = draw.choice(WORDS)
        elif kind == 3:
            found[at : at + length] = found[draw.randrange(len(found) + 1) :][:length]
        elif kind == 4:
            del found[at:]
        else:
            found[at : at + length] = draw.randbytes(length)
    return bytes(found)


def of_lines(draw: random.Random, content: bytes) -> bytes:
    """Lines doubled, removed, exchanged, and words of other formats put into them."""
    lines = content.split(b"\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0:
            lines[at:at] = [lines[draw.randrange(len(lines))]] * draw.choice((1, 2, 50))
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        elif kind == 2:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            before, sign, _ = lines[at].partition(b":")
            lines[at] = before + sign + b" " + draw.choice(WORDS)
        else:
            place = draw.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + draw.choice(WORDS) + lines[at][place:]
    return b"\n".join(lines)


def of_json(draw: random.Random, content: bytes) -> bytes:
    """Values replaced, removed, renamed, made a thousand times larger, nested; in one line of several now and then."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines)) if all(line[:1] in (b"{", b"") for line in lines) else None
    try:
        value = json.loads(content if at is None or not lines[at] else lines[at])
    except ValueError:
        return of_lines(draw, content)
    for _ in range(draw.randint(1, 3)):
        value = _changed(draw, value)
    try:
        told = json.dumps(value, ensure_ascii=draw.random() < 0.8).encode("utf-8", "surrogatepass")
    except RecursionError:  # deeper than Python writes
        return of_lines(draw, content)
    if draw.random() < 0.03:
        told = told.replace(b"0.5", b"9" * 5000).replace(b"null", b"[" * 100_000)
    if at is None or not lines[at]:
        return told
    return b"\n".join([*lines[:at], told, *lines[at + 1 :]])


def _changed(draw: random.Random, value: Any) -> Any:
    """One part of it, at any depth, is another."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        kind = draw.randrange(12)
        if kind == 0:
            return {name: each for name, each in value.items() if name != key}
        if kind == 1:
            return {(draw.choice(("", "a\nb", name + "x")) if name == key else name): e for name, e in value.items()}
        if kind == 2:
            return {**value, key: draw.choice(list(value.values()))}
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        kind = draw.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value[:at] + [value[at]] * draw.choice((2, 100)) + value[at:]
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice((value * 1000, value + 1, -value, value / 2, str(value), value * 10**6))
    if draw.random() < 0.02:
        for _ in range(draw.choice((5, 500))):
            value = [value]
        return value
    return draw.choice(VALUES)


def of_binary(draw: random.Random, content: bytes) -> bytes:
    """Numbers of four or eight bytes replaced, mostly near the beginning, where headers are."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(min(len(found), draw.choice((64, 2048, len(found)))) + 1)
        code = draw.choice(("<I", "<Q"))
        packed = struct.pack(code, draw.choice(NUMBERS) % 2 ** (32 if code == "<I" else 64))
        found[at : at + len(packed)] = packed
    return bytes(found)


def of_safetensors(draw: random.Random, content: bytes) -> bytes:
    """Its header's JSON damaged, and the length before it right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = of_json(draw, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    "json": (of_json, of_json, of_json, of_lines, of_bytes),
    "lines": (of_lines, of_lines, of_bytes),
    "safetensors": (of_safetensors, of_safetensors, of_binary, of_bytes),
    "gguf": (of_binary, of_binary, of_bytes),
}


def mutated(draw: random.Random, content: bytes, kind: str) -> bytes:
    return draw.choice(MUTATIONS[kind])(draw, content)
