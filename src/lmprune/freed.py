"""Memory that was freed, and that the C library holds for later."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Let the system have it, where that can be asked for (glibc): pieces left by many small tensors are not used again
    for large ones."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
