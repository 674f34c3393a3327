"""What a user did that can't work, said in one sentence: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints the message on stderr and exits with code 2."""


class Interrupted(UserError):
    """The user stopped a long job, which saved what it had. The command line exits with code 130."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error that teaches: the nearest known names first.

    >>> print(unknown("method", "magnitud", ["magnitude", "obs"]))
    unknown method 'magnitud'; did you mean magnitude? known: magnitude, obs
    """
    names = list(known)
    hint = did_you_mean(name, names)
    return UserError(f"unknown {kind} {name!r};{hint and ' ' + hint} known: {', '.join(names)}")


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The question that goes with a misspelt name; empty where nothing known is like it. cutoff: difflib's.

    >>> did_you_mean("magnitud", ["magnitude", "obs"])
    'did you mean magnitude?'
    """
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""
