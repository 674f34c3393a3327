"""How much memory this process has held."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in 10⁶ bytes."""
    if _STATUS.exists():  # Linux's getrusage would also tell what the process that started this one held
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        assert found is not None, "Linux tells the peak of every process"
        return int(found[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kibibytes, but bytes on macOS
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
