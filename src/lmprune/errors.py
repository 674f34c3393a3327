"""What a user did that can't work, said in one sentence: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterable

#: what a terminal obeys, or can't show: control characters, halves of characters, what turns the direction of text
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

#: characters of a list of known names in a message
_MOST_KNOWN = 240
#: characters of a value
_MOST_SHOWN = 90


class UserError(ValueError):
    """Bad input. The command line prints the message, one line, on stderr and exits with code 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class Interrupted(UserError):
    """The user stopped a long job, which saved what it had. The command line exits with code 130."""


class Finished(UserError):
    """What was asked for has been done before, in `out`. The command line says so, and exits with code 0."""

    def __init__(self, message: object = "", out: str = "") -> None:
        super().__init__(message)
        self.out = out


class SaidBefore(UserError):
    """A command that ours began ended with `code`, and said why in a sentence of its own; this says what comes of it.

    The command line prints it on stderr as a note, since one failure has one error, and exits with that code.
    """

    def __init__(self, message: object, code: int) -> None:
        super().__init__(message)
        self.code = code


def one_line(text: str) -> str:
    """The text in one line, with what a terminal would obey spelt out.

    >>> one_line("a\\n  b \\x1b[31m")
    'a b \\\\x1b[31m'
    """
    return spelt_out(re.sub(r"\s*[\t\n\r\x0b\x0c]\s*", " ", text))


def spelt_out(text: str, keep: str = "") -> str:
    """What a terminal would obey, spelt out. keep: characters that are left alone."""
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error that teaches: the nearest known names first.

    >>> print(unknown("method", "magnitud", ["magnitude", "obs"]))
    unknown method 'magnitud'; did you mean magnitude? known: magnitude, obs
    """
    names = list(known)
    hint = did_you_mean(name, names)
    told = ", ".join(names)
    if len(told) > _MOST_KNOWN:
        told = f"{told[:_MOST_KNOWN].rpartition(', ')[0]}, … ({len(names)} in all)"
    return UserError(f"unknown {kind} {shown(name)};{hint and ' ' + hint} known: {told}")


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The question that goes with a misspelt name; empty where nothing known is like it. cutoff: difflib's.

    >>> did_you_mean("magnitud", ["magnitude", "obs"])
    'did you mean magnitude?'
    """
    if len(name) > _MOST_KNOWN:  # of which nothing is like it, and telling takes long
        return ""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxlist = self.maxtuple = self.maxdict = 4

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 10**100 else f"a number of {int(math.log10(abs(x)))} digits"


def shown(value: object) -> str:
    """A value as a message quotes it: some of its characters, whatever it is.

    >>> shown([[[[1]]]]), shown(10**9), len(shown("a" * 99))
    ('[[[...]]]', '1000000000', 60)
    """
    told = one_line(_Short().repr(value))
    return told if len(told) <= _MOST_SHOWN else f"{told[:_MOST_SHOWN]}…"
