"""Whether a change of structure cost time or memory: the same commands from two commits, in turn, in one run.

    python benchmarks/before_after.py --before COMMIT [--after HEAD] [--repeats 5]

Both commits are checked out beside each other and run by this environment: `lmprune prune` of SmolLM2-135M (obs, the
default, on 16,384 tokens, as the demo does it) and `lmprune --help`. The medians of the ratios of neighbours are
written to benchmarks/records/before_after.json.
CPU seconds are told beside wall-clock ones, as machines are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "records" / "before_after.json"
PRUNE = "prune smollm2-135m --data python-docs --keep 0.75 --calibration-tokens 16384 --force --out"
COMMANDS = {"obs": PRUNE, "help": "--help", "prune_help": "prune --help"}


def checked_out(commit: str, place: Path) -> Path:
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", place, commit], check=True)
    return place


def timed(tree: Path, words: list[str]) -> dict[str, float]:
    """Wall-clock and CPU seconds, and the most memory (MB), of one command."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "lmprune", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"lmprune {' '.join(words)} failed in {tree}"
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_mb": usage.ru_maxrss * 1024 / 1e6,
    }


def compared(trees: list[Path], line: str, repeats: int, room: Path) -> dict[str, object]:
    runs: list[list[dict[str, float]]] = [[], []]
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):  # neither is always the first
            words = line.split()
            runs[which].append(timed(trees[which], [*words, str(room / str(which))] if "--out" in words else words))
    return {
        name: {
            "before": median(run[name] for run in runs[0]),
            "after": median(run[name] for run in runs[1]),
            "ratio": median(after[name] / before[name] for before, after in zip(*runs, strict=True)),
        }
        for name in runs[0][0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", required=True, help="a commit")
    parser.add_argument("--after", default="HEAD", help="a commit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    asked = parser.parse_args()
    ids = [
        subprocess.run(["git", "-C", ROOT, "rev-parse", c], capture_output=True, text=True, check=True).stdout.strip()
        for c in (asked.before, asked.after)
    ]
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        trees = [checked_out(commit, room / f"tree-{n}") for n, commit in enumerate(ids)]
        try:
            found = {name: compared(trees, COMMANDS[name], asked.repeats, room) for name in asked.only}
        finally:
            for tree in trees:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    head: dict[str, object] = {
        "date": date.today().isoformat(),
        "before": ids[0],
        "after": ids[1],
        "repeats": asked.repeats,
    }
    head["machine"] = f"{os.cpu_count()} cpus, {platform.platform()}"
    there = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    record = there | {name: {**head, **ratios} for name, ratios in found.items()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(RECORD.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
