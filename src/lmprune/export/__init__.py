"""Write a model for another runtime: one row a target, one file a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import check_out
from ..checkpoints.licences import UNKNOWN, Licence
from ..checkpoints.writing import Destination, begins, check_file, put, written_aside
from ..errors import UserError, unknown
from ..plan import PrunePlan
from ..sites.site import Site


@dataclass(frozen=True)
class Order:
    """What is to be written; the model may be changed on the way.

    name: of the model, for people. plan: how it was pruned. origin: where the model comes from. papers: from the
    `notes` of what was written to file name -> content that goes into a folder beside the model (its card, its plan,
    its licence's text). licence: the original's.
    """

    model: Any
    ffns: Sequence[Site]
    tokenizer: Any
    dtype: str | None
    name: str
    plan: PrunePlan | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    papers: Callable[[Sequence[str]], Mapping[str, str | bytes]] = lambda notes: {}
    licence: Licence = UNKNOWN


@dataclass(frozen=True)
class Target:
    """module: the file here that has `write(order, path) -> details`. dtypes: the first is written unless asked.

    suffix: of the file to write; None for a folder. load_as: the dtype to load the model in. streams: a model that is
    read block by block can be written.
    """

    module: str
    summary: str
    dtypes: tuple[str, ...]
    suffix: str | None = None
    load_as: str = "auto"
    streams: bool = False

    @property
    def write(self) -> Callable[[Order, Path], dict[str, Any]]:
        return import_module(f".{self.module}", __name__).write


_GGUF = ("f16", "f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0")
_AS_IS = ("as it is", "f32", "f16", "bf16")

TARGETS = {
    "gguf": Target("gguf", "a GGUF file for llama.cpp", _GGUF, suffix=".gguf", streams=True),
    "onnx": Target("onnx", "an ONNX model with KV cache, for ONNX Runtime", ("f32",), load_as="float32"),
    "vllm": Target("vllm", "a folder that vLLM opens, Llama's block with a width for each layer", _AS_IS),
    "hf-uniform": Target("uniform", "a stock transformers checkpoint, padded to one width", _AS_IS, streams=True),
}


def get_target(name: str) -> Target:
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]


def check_target(target: Target, out: Path, dtype: str | None, *, force: bool = False) -> Destination:
    """Refuse what `export` would refuse, before the model is loaded. Raises: UserError."""
    if dtype is not None and target.module == "gguf":
        from .gguf_quants import check_dtype

        check_dtype(dtype)
    if dtype is not None and dtype not in target.dtypes:
        raise unknown("dtype", dtype, target.dtypes)
    if target.suffix is None:
        return check_out(out, force=force)
    if out.suffix != target.suffix:
        raise UserError(f"{out} should end in {target.suffix}: what it becomes is a file")
    kind = target.suffix[1:].upper()
    return check_file(out, force=force, amiss=begins(kind, f"a {kind} file"))


def export(
    order: Order, out: Path | Destination, to: str, *, force: bool = False, verify: bool = True
) -> dict[str, Any]:
    """Write the order's model to `out`, and return what there is to say of it: `notes`, sentences for people, and more.

    out: a path, or what `check_target` gave for it before long work.
    verify: run what was written in its engine and compare (see `verify`); `verification` in what is returned tells.
    Raises: UserError, also where it computes something else; `out` is then as it was.
    """
    from . import verify as guarding

    target = get_target(to)
    place = out if isinstance(out, Destination) else check_target(target, out, order.dtype, force=force)
    with written_aside(place, folder=target.suffix is None) as path:
        guard = guarding.prepare(order, to) if verify else "--no-verify"
        details = target.write(order, path)
        details["verification"] = guarding.check(guard, order, to, path)
        details["notes"] = [*details["notes"], guarding.sentence(details["verification"])]
        if target.suffix is None:
            put(path, order.papers(details["notes"]))
    return details
