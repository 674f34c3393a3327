"""Processes that are not to outlive the one that began them."""

from __future__ import annotations

import ctypes
import signal
import sys

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Called in a new process: one that is killed (-9) must not leave another behind that writes where the next one
    works; Linux only."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
