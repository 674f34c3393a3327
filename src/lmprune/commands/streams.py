"""Where a command speaks to: a terminal of whatever alphabet, a pipe that somebody closes, a disk that is full."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import TextIO

#: what is said instead where an alphabet does not have it
_INSTEAD = {
    "…": "...", "–": "-", "—": "-", "−": "-", "±": "+-", "×": "x", "→": "->", "≥": ">=", "≤": "<=", "·": "*",
    "‖": "||", "²": "2", "∞": "inf", "“": '"', "”": '"', "’": "'", "│": "|", "─": "-", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
_HANDLER = "lmprune"


def prepare() -> None:
    """Nothing that is said can fail for its letters, and what is said on the way can't fail at all."""
    codecs.register_error(_HANDLER, _instead)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)  # type: ignore[union-attr]
    sys.stderr = _Careless(sys.stderr) if sys.stderr is not None else open(os.devnull, "w")  # noqa: SIM115, PTH123
    if sys.stdout is None:  # it was closed before we began
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(c, ascii(c)[1:-1] if ord(c) > 127 else c) for c in letters), error.end


class _Careless:
    """A stream of which nobody cares whether it was heard: notes and bars must not end the work that they tell of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
