"""A model whose blocks lie on several devices, pruned and read as on one: the same units, and weights within rounding.

    python benchmarks/several_devices.py [--shared DIR] [--model PATH …] [--device cuda] [--tokens 2048]

With several accelerators of that kind the blocks lie on all of them by turns; with one, on it and on the processor. So
each block's neighbours are elsewhere. One JSON line a case; the exit status tells whether all agree.
Models: stories260k of --shared, or what --model names (a folder, a GGUF file, smollm2-135m). Text: docs/methods.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import lmprune
from lmprune.checkpoints import models
from lmprune.checkpoints.devices import check_device, spread
from lmprune.data.tokens import stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.pruning import versions
from lmprune.sites.find import find_sites
from lmprune.sites.walk import list_of

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "docs" / "methods.md"
SEQ_LEN = 256
#: how the pruned models' weights may differ, as a share of the largest of their tensor
TOLERANCE = 1e-3
CASES: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "activation": {"method": "activation"},
    "taylor": {"method": "taylor"},
    "obs": {"method": "obs"},
    "obs of heads": {"method": "obs", "units": ("heads",), "keep": 0.7, "scope": "global"},
    "obs of layers": {"method": "obs", "units": ("layers",), "keep": 0.8},
}


def places(kind: str) -> list[torch.device]:
    """What the blocks are spread over."""
    number = torch.get_device_module(kind).device_count()
    return [torch.device(kind, n) for n in range(number)] if number > 1 else [check_device(kind), check_device("cpu")]


def compared(case: dict[str, Any], dense: Any, over: list[torch.device], ids_ST: torch.Tensor) -> dict[str, Any]:
    """The case on the first device, and on all of them."""
    of_blocks = [over[n % len(over)] for n in range(len(list_of(dense, find_sites(dense)[0].block)))]
    one, many = copy.deepcopy(dense).to(over[0]), spread(copy.deepcopy(dense), over[0], of_blocks)
    seconds, found = [], []
    for model in (one, many):
        start = time.perf_counter()
        plan = lmprune.prune(model, **{"keep": 0.5, "multiple_of": 1, **case}, data=ids_ST)
        found.append((plan, perplexity(model, ids_ST[0]).perplexity))
        seconds.append(round(time.perf_counter() - start, 2))
    (plan, alone), (other, together) = found
    differ = sum(len({*kept} ^ {*other.kept[at]}) for at, kept in plan.kept.items())
    worst = None if differ else furthest(one.state_dict(), many.state_dict())
    return {
        "agrees": worst is not None and worst <= TOLERANCE and abs(alone / together - 1) <= TOLERANCE,
        "other_units": differ,
        "weights": worst,
        "perplexity": [alone, together],
        "seconds": seconds,
        "blocks": Counter(map(str, of_blocks)),
    }


def furthest(mine: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The largest difference of a weight, as a share of the largest of its tensor."""
    assert mine.keys() == others.keys()
    pairs = ((tensor.cpu().double(), others[name].cpu().double()) for name, tensor in mine.items())
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    asked = parser.parse_args()
    over, every = places(asked.device), []
    for name in asked.model or [str(asked.shared / "models" / "stories260k")]:
        dense, tokenizer = models.load(name, dtype=asked.dtype), models.load_tokenizer(name)
        ids_N, _ = stream(tokenizer, lmprune.data.load(str(TEXT)), asked.tokens)
        ids_ST = ids_N[: len(ids_N) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
        for case in asked.cases:
            found = compared(CASES[case], dense, over, ids_ST)
            every.append(found["agrees"])
            about = {"model": Path(name).name, "case": case, "dtype": asked.dtype, "tokens": ids_ST.numel()}
            print(json.dumps({**about, **found, "versions": versions()}), flush=True)
    sys.exit(not all(every))


if __name__ == "__main__":
    main()
