"""One accelerator, measured in one go: as the processor first, then pruning, a training step, and blocks from files.

    python benchmarks/gpu.py [--only correct prune large streamed step] [--out FILE]

Every part's record goes to benchmarks/records/gpu.jsonl as it comes, with the device's name. Weights are made up, of
real models' shapes. `--device cpu` is for trying the script where there is no accelerator: then `--small`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from streamed import SEQ_LEN, SHAPES, TOKENS, make
from training_cost import BATCH, Stepper
from training_cost import SEQ_LEN as STEP_LEN
from transformers import LlamaConfig, LlamaForCausalLM

import lmprune
from lmprune.evaluation.memory import peak_memory_mb
from lmprune.gradual.settings import GradualSettings
from lmprune.pruning import versions

RECORDS = Path(__file__).parent / "records" / "gpu.jsonl"
TESTS = Path(__file__).parents[1] / "tests"
#: SmolLM2-135M's
SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
METHODS = ("magnitude", "activation", "taylor", "obs")
_MODEST = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 300}


def correct(device: str, small: bool) -> dict[str, Any]:
    """What differs from the processor, of all cases of tests/device_cases.py. Raises: where one was not tried."""
    with tempfile.TemporaryDirectory() as folder:
        cases = ["obs"] if small else []
        line = [sys.executable, TESTS / "device_cases.py", device, folder, *cases]
        told = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    found = {case: fault for line in told.stdout.splitlines() for case, fault in json.loads(line).items()}
    return {"cases": len(found), "faults": {case: fault for case, fault in found.items() if fault}}


def made(shape: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """Random weights, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=4096)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model = model.to(dtype).to_empty(device=device)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02) if parameter.ndim > 1 else parameter.data.fill_(1.0)
    fresh = LlamaForCausalLM(LlamaConfig(**{**shape, "num_hidden_layers": 1, "vocab_size": 8}))
    for name, buffer in fresh.model.rotary_emb.named_buffers():
        setattr(model.model.rotary_emb, name, buffer.to(device))
    return model.eval()


def timed(device: str, work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and the most memory of the device in GB."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if device == "cpu":
        return {"seconds": time.perf_counter() - start}
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "device_gb": torch.cuda.max_memory_allocated() / 1e9}


def ids_of(vocabulary: int, sequences: int, length: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (sequences, length), generator=torch.Generator().manual_seed(0))


def pruned(model: Any, method: str, ids: torch.Tensor, keep: float = 0.75) -> None:
    lmprune.prune(model, method=method, keep=keep, data=ids, scope="local")


def prune(device: str, small: bool) -> dict[str, Any]:
    """SmolLM2-135M's shape at 0.5, on the default 128 × 512 calibration tokens; float32; one forward pass beside it."""
    shape, number = (_MODEST, 8) if small else (SMALL, 128)
    ids, found = ids_of(shape["vocab_size"], number, 512), {}
    pruned(made(shape, device, torch.float32), "activation", ids[:8], 0.5)  # warm up
    for method in METHODS:
        model = made(shape, device, torch.float32)
        found[method] = timed(device, lambda model=model, method=method: pruned(model, method, ids, 0.5))
    model = made(shape, device, torch.float32)
    with torch.no_grad():
        found["forward"] = timed(device, lambda: [model.model(batch.to(device)) for batch in ids.split(4)])
    return {"shape": "smollm2-135m", "tokens": ids.numel(), "methods": found}


def large(device: str, small: bool) -> dict[str, Any]:
    """Llama-2-7B's shape, all 32 blocks on the device in bfloat16, at 0.75 on 8 × 512 tokens."""
    shape = _MODEST if small else {**SHAPES["llama-2-7b"], "num_hidden_layers": 32}
    ids, found = ids_of(shape["vocab_size"], TOKENS, SEQ_LEN), {}
    for method in ("magnitude", "activation", "obs"):
        model = made(shape, device, torch.bfloat16)
        found[method] = timed(device, lambda model=model, method=method: pruned(model, method, ids))
        found[method]["params"] = sum(p.numel() for p in model.parameters())
        del model
    return {"shape": "llama-2-7b", "blocks": 32, "tokens": ids.numel(), "methods": found}


def streamed(device: str, small: bool) -> dict[str, Any]:
    """Llama-2-7B's shape, blocks read from files one by one, computed in float32 on the device, and written."""
    blocks = 1 if small else 8
    shape = "llama-3.2-1b" if small else "llama-2-7b"
    ids, found = ids_of(32000, TOKENS, SEQ_LEN), {}
    with tempfile.TemporaryDirectory() as room:
        source = Path(room) / "model"
        source.mkdir()
        size = make(source, shape, blocks)
        for method in ("magnitude", "activation", "obs"):
            model = lmprune.load(source, stream=True, dtype="float32", device=device)
            found[method] = timed(device, lambda model=model, method=method: pruned(model, method, ids))
            out = Path(room) / method
            saved = timed(device, lambda model=model, out=out: lmprune.save(model, out))
            found[method]["save_seconds"] = saved["seconds"]
    return {
        "shape": shape, "blocks": blocks, "bytes": size, "tokens": ids.numel(), "methods": found,
        "host_mb": peak_memory_mb(),
    }  # fmt: skip


def step(device: str, small: bool) -> dict[str, Any]:
    """Seconds of a training step of 4 × 256 tokens, GPT-Neo-125m's shape at keep 0.5, medians, in turns."""
    steppers: dict[str, Stepper] = {}
    for bf16 in (False,) if device == "cpu" else (False, True):
        name = "bf16" if bf16 else "fp32"
        steppers[f"{name} dense"] = Stepper(None, device=device, bf16=bf16)
        for compute in ("full", "gathered"):
            steppers[f"{name} gum {compute}"] = Stepper(
                "gum", device=device, bf16=bf16, settings=GradualSettings(compute=compute)
            )
    turns, at = (2 if small else 20), 221
    for stepper in steppers.values():
        for _ in range(2):
            stepper.step(at)
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(turns):
        for name, stepper in steppers.items():
            times[name].append(stepper.step(at))
    return {"tokens": BATCH * STEP_LEN, "seconds": {name: statistics.median(taken) for name, taken in times.items()}}


PARTS = {"correct": correct, "prune": prune, "large": large, "streamed": streamed, "step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=RECORDS)
    asked = parser.parse_args()
    name = "cpu" if asked.device == "cpu" else torch.cuda.get_device_name()
    about = {
        "device": name, "small": asked.small, "versions": versions(),
        "machine": platform.platform(), "date": date.today().isoformat(),
    }  # fmt: skip
    for part in asked.only:
        start = time.perf_counter()
        try:
            found = PARTS[part](asked.device, asked.small)
        except Exception as error:  # the other parts are measured all the same; the device is lent for minutes
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        record = {"part": part, **found, "took": time.perf_counter() - start, **about}
        print(json.dumps(record), flush=True)
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
