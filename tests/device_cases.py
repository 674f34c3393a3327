"""Commands whose result must be the processor's on every device: `python device_cases.py DEVICE FOLDER [CASE …]`.

For each case one line of JSON: what differs, or the last line of an error. The device `elsewhere` is pretended; over it
and the processor a model's blocks are spread on `spread`, and, the other way round, on `spread from here`.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_checkpoints import TEXT, as_many_threads, byte_tokenizer, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture

from lmprune.checkpoints import checkpoint
from lmprune.plan import PLAN_FILE

#: keys of a record, of what each run has its own
_OWN = re.compile("seconds|memory|command|^out$|_mb$|page")
SHORT = ("--seq-len", 32, "--calibration-tokens", 512, "--answer-tokens", 0, "--multiple-of", 1, "--keep", 0.5)
TRAINED = (
    "--steps", 12, "--batch-size", 2, "--seq-len", 32, "--lr", 1e-2, "--answer-tokens", 0, "--multiple-of", 1,
    "--keep", 0.5, "--eval-every", 3,
)  # fmt: skip

#: name -> (model, words after `lmprune prune MODEL`)
PRUNED: dict[str, tuple[str, tuple[Any, ...]]] = {
    **{
        method: ("llama", ("--method", method, *SHORT))
        for method in ("obs", "plain_obs", "activation", "fluctuation", "taylor", "sensitivity", "magnitude", "random",
                       "flap", "two_ssp", "llm_pruner")
    },
    "obs global, biases": ("gpt2", ("--method", "obs", "--scope", "global", *SHORT)),
    "obs of heads": ("llama", ("--method", "obs", "--units", "heads", *SHORT)),
    "heads and neurons": (
        "llama", ("--method", "obs", "--units", "neurons,heads", "--scope", "global", *SHORT[:-1], 0.2)
    ),
    "obs of layers": ("llama", ("--method", "obs", "--units", "layers", *SHORT[:-1], 0.667)),
    "taylor of heads": ("gpt_neo", ("--method", "taylor", "--units", "heads", *SHORT)),
    "experts by reap": ("mixtral", ("--method", "reap", "--units", "experts", *SHORT)),
    "obs in experts": ("mixtral", ("--method", "obs", "--units", "expert_neurons", *SHORT)),
    "budget by evolution": (
        "llama", ("--target-params", "28000", "--budget", "evolution", "--search-minutes", 0.05, *SHORT[:-2])
    ),
    **{
        f"{method} streamed": ("llama", ("--method", method, "--stream", *SHORT))
        for method in ("obs", "magnitude", "activation", "taylor")
    },
    **{method: ("gpt_neo", ("--method", method, *TRAINED)) for method in ("gum", "top_v", "hard", "soft")},
    "random, trained": ("gpt_neo", ("--method", "random", *TRAINED)),
    "oneshot, then trained": ("llama", ("--method", "activation", *TRAINED)),
    "taught": ("llama", ("--method", "gum", "--teacher", "{model}", *TRAINED)),
}  # fmt: skip

#: name -> words after `lmprune`, of what reads a model; its record is compared
READ: dict[str, tuple[str, ...]] = {
    "eval": ("eval", "{folder}/gpt2", "--baseline", "{folder}/llama", "--context", "64", "--answer-tokens", "8",
             "--prompts", "{folder}/prompts.txt"),
    "eval of a mixture": ("eval", "{folder}/mixtral", "--context", "64", "--max-tokens", "1000"),
    **{
        f"analyze {units}": ("analyze", f"{{folder}}/{model}", "--units", units, "--seq-len", "32", "--max-tokens",
                             "1000", "--out", "{folder}/analysis", "--force")
        for units, model in (("neurons", "llama"), ("heads", "llama"), ("layers", "llama"), ("experts", "mixtral"))
    },
    "teach": ("teach", "{folder}/llama", "--seq-len", "32", "--train-tokens", "256", "--out", "{out}.safetensors"),
}  # fmt: skip

#: devices' names -> in which order a model is spread over the pretended one and the processor
SPREAD: dict[str, Callable[[list[Any]], Any]] = {"spread": list, "spread from here": reversed}
#: what is spread: no training, nor what is read block by block
SPREADS = [*(case for case, (_, words) in PRUNED.items() if not {"--steps", "--stream"} & {*words}), *READ]


def made(folder: Path) -> None:
    for name in ("llama", "gpt2", "gpt_neo"):
        tiny_checkpoint(folder / name, name) if not (folder / name).exists() else None
    if not (folder / "mixtral").exists():
        sizes = {"vocab_size": 257, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 256}
        checkpoint.save(tiny_mixture("mixtral", **sizes), folder / "mixtral", tokenizer=byte_tokenizer())
    (folder / "text.txt").write_text(TEXT)
    (folder / "prompts.txt").write_text("On day 3\nthe cat\n")


def pruned(case: str, folder: Path, device: str) -> tuple[Any, dict[str, torch.Tensor]]:
    model, words = PRUNED[case]
    out = folder / device.replace(":", "_") / case.replace(" ", "_")
    words = tuple(str(word).format(model=folder / model) for word in words)
    told = lmprune(
        "prune", folder / model, "--out", out, "--data", folder / "text.txt", "--device", device, "--force", *words
    )
    if told.code:
        raise RuntimeError(told.err.strip().splitlines()[-1])
    plan = json.loads((out / PLAN_FILE).read_text())
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        tensors |= load_file(file)
    return plan["kept"], tensors


def _record(case: str, folder: Path, device: str) -> dict[str, Any]:
    out = folder / f"{case} {time.monotonic_ns()}"
    words = [word.format(folder=folder, out=out) for word in READ[case]]
    return lmprune(*words, "--data", folder / "text.txt", "--device", device, "--json").record


def _differ(a: Any, b: Any, name: str = "") -> str | None:
    """The name of a number, or text, that is another one; of what every run has its own of, none is."""
    if isinstance(a, dict):
        pairs = {key: (a[key], b[key]) for key in a if not _OWN.search(key)}
        return next(filter(None, (_differ(*pair, key) for key, pair in pairs.items())), None)
    if isinstance(a, list):
        found = (_differ(*pair, name) for pair in zip(a, b, strict=True))
        return next(filter(None, found), None)
    same = abs(a - b) <= 1e-3 * max(1, abs(a)) if isinstance(a, float) else a == b
    return None if same else f"{name}: {a} and {b}"


def difference(case: str, folder: Path, device: str, around: Callable[[], AbstractContextManager[Any]]) -> str | None:
    """In what the result differs from the processor's. around: the work on the device."""
    if case in READ:
        mine = _record(case, folder, "cpu")
        with around():
            return _differ(mine, _record(case, folder, device))
    kept, weights = pruned(case, folder, "cpu")
    with around():
        kept_there, weights_there = pruned(case, folder, device)
    if kept != kept_there:
        return "other units are kept"
    if weights.keys() != weights_there.keys():
        return "other tensors are saved"
    worst = max(float((weights[name] - weights_there[name]).abs().max()) for name in weights)
    return f"weights differ by {worst:.2g}" if worst > 1e-3 else None


def tell(cases: Iterable[str], difference: Callable[[str], str | None]) -> None:
    """Print what differs in each, or how it ended, a line of JSON each."""
    for case in cases:
        try:
            wrong = difference(case)
        except Exception as error:
            traceback.print_exc()
            wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
        print(json.dumps({case: wrong}), flush=True)


def main() -> None:
    as_many_threads()
    device, folder, *only = sys.argv[1:]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    if device == "elsewhere":  # before the first gradient: torch then counts devices
        from elsewhere import pretended as around
    elif device in SPREAD:
        from elsewhere import both

        around, device = partial(both, SPREAD[device]), "auto"
    made(Path(folder))
    cases = only or (SPREADS if device == "auto" and around is not nullcontext else PRUNED)
    tell(cases, lambda case: difference(case, Path(folder), device, around))


if __name__ == "__main__":
    main()
