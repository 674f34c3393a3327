"""Every variant of every family to every export target: the same logits there, or a refusal in a sentence.

    python benchmarks/export_grid.py [--targets gguf hf-uniform vllm onnx] [--shard 0/1] [--sample N]
        [--out benchmarks/records/export_grid.jsonl]
    python benchmarks/export_grid.py --table

The variants are those of `tests/variants.py`, tiny and random, with a text longer than their windows. Each is exported
in f32 without the guard of `lmprune export`, and run in the engine: `exact` where it agrees, `refused` where lmprune
said why not, `silent` where it was written and computes something else, or its engine can't open it. For vllm and
hf-uniform, and for ONNX, every layer has a width of its own; for gguf every layer has the same, and `deci` cells (Llama
and Mistral) a width of their own. One line of JSON a cell goes to --out; a cell that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from test_checkpoint import per_layer_plan  # noqa: E402
from test_gguf import VOCABULARY, bpe  # noqa: E402
from tiny_models import tiny_config  # noqa: E402
from variants import Variant, all_variants  # noqa: E402

from lmprune.checkpoints.shrinking import shrink  # noqa: E402
from lmprune.errors import UserError  # noqa: E402
from lmprune.export import Order, export, verify  # noqa: E402
from lmprune.runtimes.architectures import NEMOTRON_NAS  # noqa: E402
from lmprune.sites.find import find_sites  # noqa: E402

#: name of a column -> (target, whether every layer has a width of its own)
COLUMNS = {
    "gguf": ("gguf", False),
    "deci": ("gguf", True),
    "hf-uniform": ("hf-uniform", True),
    "vllm": ("vllm", True),
    "onnx": ("onnx", True),
}


def cell(variant: Variant, column: str, room: Path) -> dict[str, Any]:
    """The record of one."""
    to, per_layer = COLUMNS[column]
    found: dict[str, Any] = {"family": variant.family, "variant": variant.name, "target": column}
    try:
        model = model_of(variant)
        if per_layer:
            shrink(model, per_layer_plan(model))
        job = Order(model, find_sites(model), bpe(), "f32", "tiny")
        out = room / ("m.gguf" if to == "gguf" else "m")
        try:  # what `lmprune export` does before anything is checked; the guard asks how tensors are stored, too
            guard = verify.prepare(job, to)
            export(job, out, to, force=True, verify=False)
        except UserError as error:
            return found | {"outcome": "refused", "why": str(error)}
        assert not isinstance(guard, str), guard
        verdict = verify.check(guard, job, to, out)
    except UserError as error:
        return found | {"outcome": "silent", "why": str(error)}
    except Exception as error:  # what is neither written nor refused is a fault of ours
        return found | {"outcome": "broken", "why": f"{type(error).__name__}: {error}".split("\n")[0]}
    if not verdict["verified"]:
        return found | {"outcome": "silent", "why": verdict["why"]}
    return found | {"outcome": "exact", "difference": verdict["difference"], "lengths": verdict["lengths"]}


def model_of(variant: Variant) -> Any:
    """Tiny, and as `bpe` wants it: with room for a text longer than any window, where the variant does not say."""
    known = tiny_config(variant.family).to_dict()
    positions = {"max_position_embeddings": 256} if "max_position_embeddings" in known else {}
    return variant.model(vocab_size=VOCABULARY, **positions)


def cells(columns: list[str]) -> list[tuple[Variant, str]]:
    return [
        (variant, column)
        for column in columns
        for variant in all_variants()
        if column != "deci" or variant.model_type in NEMOTRON_NAS
    ]


def read(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The last record of each cell."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(r["family"], r["variant"], r["target"]): r for r in records}


def table(records: list[dict[str, Any]]) -> str:
    counts = Counter((r["target"], r["outcome"]) for r in records)
    lines = [
        "| target | cells | exact | refused in a sentence | silently different |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for column in [*COLUMNS, None]:
        number = [
            sum(n for (target, outcome), n in counts.items() if column in (None, target) and outcome in kinds)
            for kinds in (("exact",), ("refused",), ("silent", "broken"))
        ]
        lines += [f"| {column or 'together'} | {sum(number):,} | " + " | ".join(f"{n:,}" for n in number) + " |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell, from the i-th")
    parser.add_argument("--sample", type=int, help="so many cells, drawn with a seed")
    parser.add_argument("--again", nargs="*", default=[], help="outcomes to run again: silent, broken, refused")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records" / "export_grid.jsonl")
    parser.add_argument("--table", action="store_true", help="print what has been measured as Markdown")
    args = parser.parse_args()
    known = read(args.out)
    if args.table:
        print(table(list(known.values())))
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    todo = cells(args.targets)
    if args.sample:
        todo = random.Random(14).sample(todo, min(args.sample, len(todo)))
    first, step = map(int, args.shard.split("/"))
    with tempfile.TemporaryDirectory(prefix="export-grid-") as room, args.out.open("a", encoding="utf-8") as file:
        for variant, column in todo[first::step]:
            before = known.get((variant.family, variant.name, column))
            if before is None or before["outcome"] in args.again:
                record = cell(variant, column, Path(room))
                file.write(json.dumps(record) + "\n")
                file.flush()
                if record["outcome"] not in ("exact", "refused"):
                    print(record, flush=True)


if __name__ == "__main__":
    main()
