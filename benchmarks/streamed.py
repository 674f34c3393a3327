"""Memory and time of pruning models that stay in their files, by depth: random weights of a real model's shape.

    OMP_NUM_THREADS=1 python benchmarks/streamed.py [--shape llama-2-7b] [--blocks 2 4 8] [--methods magnitude …]

Makes each model in bf16 shards, a block a file; prunes it to 0.75 of its neurons on 8 × 512 random tokens in a process
of its own, and writes it. Records go to records/streamed.jsonl as they come; what is there is not run again. Peak
memory is the process's (VmHWM). Beside it: one streamed forward pass over the same tokens, and copying the files.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

RECORDS = Path(__file__).parent / "records" / "streamed.jsonl"
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000},
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}  # fmt: skip
TOKENS, SEQ_LEN = 8, 512
CHILD = f"""
import json, resource, sys, time, torch
import lmprune
from lmprune.evaluation.memory import peak_memory_mb
source, method, out = sys.argv[1:]
dtype = "auto" if method == "magnitude" else "float32"
ids = torch.randint(0, 32000, ({TOKENS}, {SEQ_LEN}), generator=torch.Generator().manual_seed(0))
model = lmprune.load(source, stream=True, dtype=dtype)
seconds = {{}}
def timed(name, work):
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds[name] = [time.perf_counter() - start, time.process_time() - cpu]
if method == "forward":
    from lmprune.sites.pages import pages_of
    from lmprune.sites.walk import Blocks
    blocks = Blocks(model, pages_of(model).blocks)
    def forward():
        hidden = [blocks.inputs(batch) for batch in ids.split(4)]
        for layer in range(len(blocks.blocks)):
            hidden = [blocks.run(layer, states) for states in hidden]
    timed("forward", forward)
else:
    timed("prune", lambda: lmprune.prune(model, method=method, keep=0.75, data=ids, scope="local"))
    timed("save", lambda: lmprune.save(model, out))
print(json.dumps({{"seconds": seconds, "peak_memory_mb": peak_memory_mb()}}))
"""


def make(folder: Path, shape: str, blocks: int) -> int:
    """Write the model; returns its bytes."""
    config = LlamaConfig(**SHAPES[shape], num_hidden_layers=blocks, max_position_embeddings=4096, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in model.state_dict().items():
        block = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        files.setdefault(f"model-{block}.safetensors", {})[name] = tensor.shape
    index: dict[str, str] = {}
    for number, (file, shapes) in enumerate(files.items()):
        generator = torch.Generator().manual_seed(number)
        tensors = {
            name: (torch.ones(size) if len(size) == 1 else torch.randn(size, generator=generator) * 0.02).bfloat16()
            for name, size in shapes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measured(source: Path, method: str, room: Path) -> dict[str, Any]:
    out = room / "out"
    shutil.rmtree(out, ignore_errors=True)
    if method == "copy":
        start, cpu = time.perf_counter(), time.process_time()
        shutil.copytree(source, out)
        spent = [time.perf_counter() - start, time.process_time() - cpu]
        return {"seconds": {"copy": spent}, "peak_memory_mb": None}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, source, method, out], capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=["copy", "forward", "magnitude", "activation", "obs"])
    asked = parser.parse_args()
    there = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.is_file() else []
    done = {(r["shape"], r["blocks"], r["method"]) for r in there}
    for blocks in asked.blocks:
        todo = [method for method in asked.methods if (asked.shape, blocks, method) not in done]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model"
            source.mkdir()
            size = make(source, asked.shape, blocks)
            for method in todo:
                found = measured(source, method, Path(folder))
                about = {"date": date.today().isoformat(), "machine": platform.platform(), "bytes": size}
                record = {"shape": asked.shape, "blocks": blocks, "method": method, **found, **about}
                with RECORDS.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record, flush=True)


if __name__ == "__main__":
    main()
