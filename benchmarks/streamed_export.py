"""A GGUF file made block by block beside the one that is made of the whole model: the same bytes?

    OMP_NUM_THREADS=1 python benchmarks/streamed_export.py [--blocks N] [--dtype KIND]

The model has Llama-3.2-1B's shapes and made-up weights (see streamed.py), and a tokenizer of ../shared/models. A line
of benchmarks/records/streamed_export.jsonl: the digests, the most memory that each process held, and seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from streamed import make

from lmprune.training.manifest import digest_of

RECORD = Path(__file__).parent / "records" / "streamed_export.jsonl"
TOKENIZER = Path(__file__).parents[2] / "shared" / "models" / "stories260k"


def exported(model: Path, out: Path, *words: str) -> dict[str, Any]:
    start = time.perf_counter()
    line = [sys.executable, "-m", "lmprune", "export", str(model), "--to", "gguf", "--out", str(out), *words, "--json"]
    record = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    return {
        "sha256": digest_of(out), "bytes": out.stat().st_size, "seconds": time.perf_counter() - start,
        "peak_memory_mb": record.get("peak_memory_mb"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--dtype", default="q8_0")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="export-") as place:
        model = Path(place) / "model"
        model.mkdir()
        size = make(model, "llama-3.2-1b", asked.blocks)
        for file in TOKENIZER.glob("*token*"):
            shutil.copy(file, model)
        ways = {"whole": (), "streamed": ("--stream",)}
        found = {
            way: exported(model, Path(place) / f"{way}.gguf", "--dtype", asked.dtype, *more)
            for way, more in ways.items()
        }
    same = found["whole"]["sha256"] == found["streamed"]["sha256"]
    line = {
        "blocks": asked.blocks,
        "model_bytes": size,
        "dtype": asked.dtype,
        "same": same,
        **found,
        "date": f"{date.today()}",
    }
    with RECORD.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    sys.exit(not same)


if __name__ == "__main__":
    main()
