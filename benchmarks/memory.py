"""What `lmprune prune --dry-run` says beside what the same command then holds and takes.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--only WORD …]
    python benchmarks/memory.py --table

Peak memory is the process's (VmHWM); seconds are of pruning itself. One record a case goes to
benchmarks/records/memory.jsonl; what is there is not run again. Models of made-up weights are made in a temporary
folder, in bf16 shards as those of streamed.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from streamed import SHAPES, make

RECORD = Path(__file__).parent / "records" / "memory.jsonl"
SHARED = Path(__file__).parents[2] / "shared"


@dataclass(frozen=True)
class Case:
    """model: an alias, a folder of ../shared/models, or a shape of streamed.py with a number of blocks."""

    model: str
    words: str
    blocks: int = 0

    @property
    def name(self) -> str:
        return f"{self.model}{f' of {self.blocks} blocks' if self.blocks else ''} {self.words}"


CASES = (
    Case("smollm2-135m", "--method magnitude"),
    Case("smollm2-135m", "--method activation --calibration-tokens 8192"),
    Case("smollm2-135m", "--method taylor --calibration-tokens 2048"),
    Case("smollm2-135m", "--method obs --scope local --calibration-tokens 8192"),
    Case("gpt-neo-mini", "--method obs --calibration-tokens 32768"),
    Case("llama-3.2-1b", "--method magnitude", 4),
    Case("llama-3.2-1b", "--method obs --scope local --calibration-tokens 2048", 4),
    Case("llama-3.2-1b", "--method obs --scope local --calibration-tokens 2048 --stream", 4),
    Case("llama-2-7b", "--method magnitude --stream --dtype auto", 4),
    Case("llama-2-7b", "--method activation --stream --calibration-tokens 4096", 2),
)


def lmprune(*words: object) -> dict[str, Any]:
    line = [sys.executable, "-m", "lmprune", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def measured(case: Case, room: Path) -> dict[str, Any]:
    source: str | Path = SHARED / "models" / case.model
    if case.blocks:
        make(source := room / "model", case.model, case.blocks)
        tokenizer = SHARED / "models" / "stories260k"
        for file in tokenizer.glob("*token*"):
            shutil.copy(file, source)
    elif not source.is_dir():
        source = case.model
    text = ["--data", "python-docs", "--answer-tokens", 0, "--multiple-of", 32]
    words = ["prune", source, "--out", room / "out", *text, *case.words.split()]
    told, took = lmprune(*words, "--dry-run"), lmprune(*words)
    way = told["ways"]["streamed" if "--stream" in case.words else "whole"]
    result = sum(file.stat().st_size for file in (room / "out").glob("*.safetensors")) / 1e6
    return {
        "name": case.name, "told": way, "memory_mb": took["peak_memory_mb"], "seconds": took["seconds"],
        "result_mb": result, "params_told": told["params_after"], "params": took["params_after"],
        "date": date.today().isoformat(),
    }  # fmt: skip


def table(records: Sequence[dict[str, Any]]) -> str:
    rows = ["| command | memory told, MB | held | ratio | result told, MB | written | time told, s | taken |"]
    rows.append("| --- " * 8 + "|")
    for r in records:
        told, seconds = r["told"], r["told"]["seconds"]
        rows.append(
            f"| `{r['name']}` | {told['memory_mb']:,.0f} | {r['memory_mb']:,.0f} | "
            f"{told['memory_mb'] / r['memory_mb']:.2f} | {told['result_mb']:,.0f} | {r['result_mb']:,.0f} | "
            f"{f'{seconds:,.0f}' if seconds else '–'} | {r['seconds']:,.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    records = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.is_file() else []
    for case in CASES if not asked.table else ():
        known = any(r["name"] == case.name for r in records)
        if known or not any(word in case.name for word in asked.only):
            continue
        assert not case.blocks or case.model in SHAPES
        with tempfile.TemporaryDirectory(prefix="memory-") as room:
            records.append(found := measured(case, Path(room)))
        with RECORD.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{case.name}: told {found['told']['memory_mb']:.0f} MB, held {found['memory_mb']:.0f} MB", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
