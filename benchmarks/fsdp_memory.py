"""What a process of two holds while it trains, with `--fsdp` and without.

    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1000000 python benchmarks/fsdp_memory.py [MODEL]

Without that threshold glibc keeps what is gathered and let go. A line of benchmarks/records/fsdp_memory.jsonl: of the
first process, MB before the training and at most within it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from lmprune.evaluation.memory import peak_memory_mb

RECORD = Path(__file__).parent / "records" / "fsdp_memory.jsonl"
SHORT = ("--data", "python-docs", "--steps", "4", "--batch-size", "1", "--seq-len", "32", "--train-tokens", "2000")


def watched(report: Path) -> None:
    """One process of the training: the command in sys.argv, and its report."""
    from lmprune.commands.cli import app

    job: Any = import_module("lmprune.jobs.train")
    train = job.train

    def measured(*args: Any, **how: Any) -> Any:
        before = psutil.Process().memory_info().rss / 1e6
        Path("/proc/self/clear_refs").write_text("5")
        try:
            return train(*args, **how)
        finally:
            if os.environ["RANK"] == "0":
                report.write_text(json.dumps({"before": before, "most": peak_memory_mb()}))

    job.train = measured
    app()


def main() -> None:
    model, line = (sys.argv[1:] or ["smollm2-135m"])[0], dict[str, Any]()
    for name, more in (("usual", ()), ("fsdp", ("--fsdp",))):
        with tempfile.TemporaryDirectory() as place:
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
            words = [f"{place}/report", "finetune", model, *SHORT, *more, "--out", f"{place}/out"]
            subprocess.run([*start, *words], check=True, capture_output=True)
            line[name] = json.loads(Path(place, "report").read_text())
    told = {
        "model": model,
        **line,
        "mmap_threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_"),
        "date": f"{date.today()}",
    }
    with RECORD.open("a") as file:
        file.write(json.dumps(told) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    if "RANK" in os.environ:
        report = Path(sys.argv.pop(1))
        watched(report)
    else:
        main()
