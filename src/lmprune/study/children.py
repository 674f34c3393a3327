"""Processes that are not to outlive the one that began them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Called in a new process of `parent`: one that is killed (-9) must not leave another behind that writes where the
    next one works; Linux only."""
    if sys.platform == "linux":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the parent does on it is of no use here
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)
