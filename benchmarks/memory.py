"""What `lmprune prune --dry-run` says beside what the same command then holds and takes.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--only WORD …]
    python benchmarks/memory.py --table

Peak memory is the process's (VmHWM); seconds are of pruning itself; the disk is looked at fifty times a second, beside
the result and in the temporary folder; a file with two names counts once. One record a case goes to
benchmarks/records/memory.jsonl; what is there is not run again. Models of made-up weights are made in a temporary
folder, in bf16 shards as those of streamed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from streamed import SHAPES, make

RECORD = Path(__file__).parent / "records" / "memory.jsonl"
SHARED = Path(__file__).parents[2] / "shared"
#: seconds between two looks at the disk
_LOOK = 0.02


@dataclass(frozen=True)
class Case:
    """model: an alias, a folder of ../shared/models, or a shape of streamed.py with a number of blocks."""

    model: str
    words: str
    blocks: int = 0

    @property
    def streams(self) -> bool:
        return "--stream" in self.words or "--max-memory" in self.words

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
    Case("llama-3.2-1b", "--method magnitude --stream", 4),
    Case("llama-3.2-1b", "--method activation --stream --calibration-tokens 8192", 4),
    Case("llama-3.2-1b", "--method obs --scope local --calibration-tokens 2048 --stream", 4),
    Case("smollm2-135m", "--method activation --calibration-tokens 65536 --stream"),
    Case("smollm2-135m", "--method activation --calibration-tokens 65536 --max-memory 1GB"),
    Case("llama-2-7b", "--method magnitude --stream --dtype auto", 4),
    Case("llama-2-7b", "--method activation --stream --calibration-tokens 4096", 2),
)


def lmprune(*words: object, room: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Its record, and the most that lay in its two folders at a time, in MB."""
    line = [sys.executable, "-m", "lmprune", *map(str, words), "--json"]
    temporary, most = room / "temporary", {"disk_mb": 0.0, "temporary_mb": 0.0}
    temporary.mkdir(exist_ok=True)
    with (room / "told").open("w") as told, (room / "said").open("w") as said:
        work = subprocess.Popen(line, stdout=told, stderr=said, env={**os.environ, "TMPDIR": str(temporary)})
        while work.poll() is None:
            for name, folder in (("disk_mb", room / "beside"), ("temporary_mb", temporary)):
                most[name] = max(most[name], size(folder) / 1e6)
            time.sleep(_LOOK)
    assert work.returncode == 0, (room / "said").read_text()
    return json.loads((room / "told").read_text()), most


def size(folder: Path) -> float:
    """Bytes of all files in a folder; what has another name there counts once."""
    found: dict[int, int] = {}
    for file in folder.rglob("*"):
        with suppress(OSError):  # gone by now
            status = file.lstat()
            found |= {status.st_ino: status.st_size} if stat.S_ISREG(status.st_mode) else {}
    return float(sum(found.values()))


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
    words = ["prune", source, "--out", room / "beside" / "out", *text, *case.words.split()]
    (room / "beside").mkdir()
    told, _ = lmprune(*words, "--dry-run", room=room)
    took, most = lmprune(*words, room=room)
    way = told["ways"]["streamed" if case.streams else "whole"]
    result = sum(file.stat().st_size for file in (room / "beside" / "out").glob("*.safetensors")) / 1e6
    return {
        "name": case.name, "told": way, "memory_mb": took["peak_memory_mb"], "seconds": took["seconds"],
        "result_mb": result, "params_told": told["params_after"], "params": took["params_after"],
        "date": date.today().isoformat(), **(most if case.streams else {}),
    }  # fmt: skip


def table(records: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| command | memory told, MB | held | ratio | disk told, MB | at most | temporary told, MB | at most "
        "| result told, MB | written | time told, s | taken |"
    ]
    rows.append("| --- " * 12 + "|")
    for r in records:
        told, seconds = r["told"], r["told"]["seconds"]
        rows.append(
            f"| `{r['name']}` | {told['memory_mb']:,.0f} | {r['memory_mb']:,.0f} | "
            f"{told['memory_mb'] / r['memory_mb']:.2f} | {_two(r, 'disk_mb')} | {_two(r, 'temporary_mb')} | "
            f"{told['result_mb']:,.0f} | {r['result_mb']:,.0f} | "
            f"{f'{seconds:,.0f}' if seconds else '–'} | {r['seconds']:,.0f} |"
        )
    return "\n".join(rows)


def _two(record: dict[str, Any], name: str) -> str:
    """What was told, and what there was; of a model that was not streamed nothing is."""
    return f"{record['told'][name]:,.0f} | {record[name]:,.0f}" if name in record else "– | –"


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
