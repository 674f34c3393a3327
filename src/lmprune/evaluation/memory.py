"""How much memory this process needed."""

from __future__ import annotations

import resource
import sys


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in 10⁶ bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kibibytes, but bytes on macOS
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
