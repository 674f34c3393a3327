"""Whether pruned models are as much faster in real runtimes as they could be; ratios to the dense one in one run.

    python benchmarks/deploy_speed.py [--models smollm2-135m gpt-neo-125m] [--engines torch onnxruntime llamacpp]
        [--keeps 0.5 0.25] [--multiples 1 8 32 64] [--threads 2] [--out benchmarks/records/deploy_speed.jsonl]
    python benchmarks/deploy_speed.py --table

For each model and engine the dense model, each pruned one, and a stub with STUB neurons a layer are measured in turn,
each in a process of its own. The ideal is Amdahl's law: the dense model's time in its FFNs, which is what it takes
longer than the stub (the line through both at no neurons), shrinks with the width, and nothing else does. The ratio
of weight bytes stands beside it. Which neurons are cut does not matter to the time: the first ones
stay. `gpt-neo-125m` is a random model of that shape (12 layers, D 768, F 3072, 50,257 tokens); llama.cpp can't run it.

One record a model and engine goes to --out as a line of JSON; what is there already is not measured again. Leave the
machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import lmprune
from lmprune.budget.selection import num_kept
from lmprune.checkpoints.shrinking import shrink
from lmprune.evaluation.engines import ENGINES
from lmprune.evaluation.workers import Worker
from lmprune.export import Order, export, get_target
from lmprune.jobs.bench import compared, interleaved
from lmprune.sites.find import find_sites

STUB = 32
PHASES = ("prefill", "decode")


def load(name: str) -> tuple[Any, Any]:
    """(model, tokenizer); a random model has none."""
    if name != "gpt-neo-125m":
        return lmprune.load(name), lmprune.load_tokenizer(name)
    torch.manual_seed(0)
    shape = {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "attention_types": [[["global", "local"], 6]]}
    return GPTNeoForCausalLM(GPTNeoConfig(**shape)).eval(), None


def cut(model: Any, width: int) -> None:
    """Leave the first `width` neurons of every layer."""
    ffns = find_sites(model)
    kept = tuple(range(width))
    shrink(model, lmprune.PrunePlan.of_neurons((kept,) * len(ffns), tuple(ffn.width for ffn in ffns)))


def written(name: str, engine: str, width: int, room: Path) -> str:
    """The model with `width` neurons a layer, as the engine opens it."""
    model, tokenizer = load(name)
    cut(model, width)
    kind = ENGINES[engine]
    to = kind.export_to or "hf-uniform"
    out = room / f"{width}{get_target(to).suffix or ''}"
    export(Order(model, find_sites(model), tokenizer, kind.dtype, f"{name}-{width}"), out, to)
    return str(out)


def measure(args: argparse.Namespace, name: str, engine: str) -> dict[str, Any]:
    """The record of one model in one engine."""
    model, _ = load(name)
    dense, vocab_size = find_sites(model)[0].width, model.config.vocab_size
    del model
    asked = {num_kept(dense, keep, multiple_of=multiple) for keep in args.keeps for multiple in args.multiples}
    widths = [dense, STUB, *sorted(asked - {dense, STUB}, reverse=True)]
    prompt_BT = np.random.default_rng(0).integers(vocab_size, size=(1, args.prompt_tokens))
    context = args.prompt_tokens + args.new_tokens + 1
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploy-speed-", dir=args.room)))
        workers = []
        for width in widths:
            place = written(name, engine, width, room)
            workers += [stack.enter_context(Worker(engine, place, threads=args.threads, context=context))]
        seconds = interleaved(workers, prompt_BT, args.new_tokens, args.repeats, lambda *_: None)
        sizes = [worker.weight_bytes for worker in workers]
    times = dict(zip(widths, seconds, strict=True))
    shares = {phase: ffn_share(times[dense], times[STUB], which, dense) for which, phase in enumerate(PHASES)}
    rows = []
    for width, size in zip(widths[2:], sizes[2:], strict=True):
        row = {"width": width, "keep": width / dense, "bytes_ratio": sizes[0] / size}
        row |= compared(times[dense], times[width])
        for phase in PHASES:
            row[f"ideal_{phase}"] = amdahl(shares[phase], width / dense)
            row[f"share_{phase}"] = row[f"speedup_{phase}"] / row[f"ideal_{phase}"]
        rows.append(row)
    return {
        "model": name, "engine": engine, **setting(args), "dense_width": dense,
        "seconds": {str(width): each for width, each in times.items()},
        "ffn_share": shares, "rows": rows, "versions": versions(engine),
    }  # fmt: skip


def ffn_share(dense: list[tuple[float, float]], stub: list[tuple[float, float]], which: int, width: int) -> float:
    """The share of the dense model's time that goes with its neurons: median over the turns."""
    return (
        statistics.median((a[which] - b[which]) / a[which] for a, b in zip(dense, stub, strict=True))
        * width
        / (width - STUB)
    )


def amdahl(share: float, left: float) -> float:
    """How many times as fast it gets if `share` of the time shrinks to `left` of itself."""
    return 1 / (1 - share * (1 - left))


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """What makes two runs the same."""
    names = ("threads", "prompt_tokens", "new_tokens", "repeats", "keeps", "multiples")
    return {name: getattr(args, name) for name in names}


def versions(engine: str) -> dict[str, str]:
    package = {"torch": "torch", "onnxruntime": "onnxruntime", "llamacpp": "xllamacpp"}[engine]
    return {name: version(name) for name in {"torch", "transformers", package}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gpt-neo-125m"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--multiples", nargs="+", type=int, default=[32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--room", type=Path, help="where the exported models lie meanwhile")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records" / "deploy_speed.jsonl")
    parser.add_argument("--table", action="store_true", help="print what has been measured as Markdown")
    args = parser.parse_args()
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    done = [json.loads(line) for line in lines]
    if args.table:
        print(table(done))
        return
    for name in args.models:
        for engine in args.engines:
            key = {"model": name, "engine": engine, **setting(args)}
            if any(all(record.get(k) == value for k, value in key.items()) for record in done):
                print(f"{name} in {engine}: done before")
                continue
            try:
                record = measure(args, name, engine)
            except lmprune.UserError as error:  # gpt_neo in llama.cpp
                print(f"{name} in {engine}: {error}")
                continue
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            show(record)


def table(records: list[dict[str, Any]]) -> str:
    """Measured speed-up, the ideal, and the share of it that was reached."""
    lines = ["| model, engine | neurons a layer | bytes | prefill | ideal | reached | decode | ideal | reached |"]
    lines += ["| --- " * 9 + "|"]
    for record in records:
        for row in record["rows"]:
            cells = [f"{record['model']}, {record['engine']}", f"{row['width']} of {record['dense_width']}"]
            cells += [f"{row['bytes_ratio']:.2f}"]
            for phase in PHASES:
                cells += [f"{row[f'{key}_{phase}']:.2f}" for key in ("speedup", "ideal")] + [
                    f"{row[f'share_{phase}']:.0%}"
                ]
            lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines)


def show(record: dict[str, Any]) -> None:
    print(f"{record['model']} in {record['engine']}; time in FFNs: {record['ffn_share']}")
    for row in record["rows"]:
        for phase in PHASES:
            print(
                f"  width {row['width']:5d} {phase}: {row[f'speedup_{phase}']:.2f} times as fast "
                f"({row[f'speedup_{phase}_min']:.2f}–{row[f'speedup_{phase}_max']:.2f}), "
                f"ideal {row[f'ideal_{phase}']:.2f}, reached {row[f'share_{phase}']:.0%}"
            )


if __name__ == "__main__":
    main()
