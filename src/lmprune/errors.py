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
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; "
    return UserError(f"unknown {kind} {name!r}{hint} known: {', '.join(names)}".replace(";  known", "; known"))
