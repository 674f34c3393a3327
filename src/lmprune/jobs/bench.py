"""What `lmprune bench` does: the speed of models in one engine, measured side by side, beside the ideal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import export as exporting
from ..checkpoints import dtypes, models
from ..checkpoints.rooms import scratch
from ..errors import UserError, unknown
from ..evaluation.engines import ENGINES, ONNX_FILE, missing
from ..evaluation.speed import rate
from ..evaluation.workers import Worker
from ..progress import Teller
from ..runtimes.gguf_file import read_gguf
from ..sites.experts import Experts
from ..sites.limits import check_room, max_context
from ..sites.mixtures import is_mixture
from . import deploy
from .inspection import feed_forward, parameters_by_part
from .unit_kinds import cached_numbers, mixed_numbers

_ANY_VOCABULARY = 256  # ids that every model has; which tokens they are does not matter to the time

Seconds = list[tuple[float, float]]  # of a prefill and of a decode, a pair each time it was measured
Side = tuple[str, Mapping[str, Any] | None, int]  # a model, its shape where that is known, the bytes of its weights


def bench(
    terminal: Teller, *, models: Sequence[str], engine: str, threads: int, batch: int, prompt_tokens: int,
    new_tokens: int, repeats: int, trust_remote_code: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune bench`, whose options these are; the first model is what the others are compared with.

    An engine that opens checkpoints computes in one dtype for all of them, the one that the last is stored in: a dense
    model in another, or dequantised, would be slower or faster for that alone.
    Raises: UserError.
    """
    trust = {"trust_remote_code": trust_remote_code}
    shapes = check_sides(terminal, models, engine, prompt_tokens, new_tokens, **trust)
    known = [shape for shape in shapes if shape is not None]
    opens = ENGINES[engine].export_to is None  # what was exported has its dtype, and no code
    opened = {"dtype": dtypes.name_of(known[-1]["dtype"]), **trust} if opens else {}
    context = prompt_tokens + new_tokens + 1
    vocab_size = min((shape["vocab_size"] for shape in known), default=_ANY_VOCABULARY)
    prompt_BT = np.random.default_rng(0).integers(vocab_size, size=(batch, prompt_tokens))
    with ExitStack() as stack:
        room = stack.enter_context(scratch("bench"))
        workers = []
        for number, source in enumerate(models):
            place = exported(terminal, source, engine, room / str(number), **trust)
            with terminal.busy(f"opening {source}"):
                worker = Worker(engine, place, threads=threads, context=context, **opened)
                workers += [stack.enter_context(worker)]
        with terminal.stages() as stages:
            seconds = interleaved(workers, prompt_BT, new_tokens, repeats, stages(engine))
        memory = [worker.peak_memory_mb() for worker in workers]
        sizes = [worker.weight_bytes for worker in workers]
    results = [
        {
            "model": source,
            "prefill": asdict(rate(prompt_BT.size, [prefill for prefill, _ in times])),
            "decode": asdict(rate(batch * new_tokens, [decode for _, decode in times])),
            "first_token_ms": statistics.median(prefill for prefill, _ in times) * 1e3,
            "weight_megabytes": size / 1e6,
            "cache_bytes_per_token": shape and shape["cache_bytes"],
            "peak_memory_mb": peak,
        }
        for source, times, size, peak, shape in zip(models, seconds, sizes, memory, shapes, strict=True)
    ]
    cached = batch * (prompt_tokens + new_tokens / 2)  # tokens that lie in the cache while a token is written
    sides = list(zip(models, shapes, sizes, strict=True))
    for number in range(1, len(results)):
        ideal = {
            "prefill": ideal_prefill(shapes[0], shapes[number], prompt_tokens),
            "decode": ideal_decode(sides[0], sides[number], cached),
        }
        results[number] |= beside(ideal, compared(seconds[0], seconds[number]))
    return {
        "engine": engine, "dtype": opened.get("dtype") or (ENGINES[engine].dtype if all(shapes) else None),
        "threads": threads, "batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens,
        "repeats": repeats, "results": results,
    }  # fmt: skip


def check_engine(name: str) -> None:
    """Raises: UserError for an engine that there is not, or not here."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if (package := ENGINES[name].package) is not None and find_spec(package[0]) is None:
        raise missing(*package)


def check_sides(
    terminal: Teller, models: Sequence[str], engine: str, prompt_tokens: int, new_tokens: int, *,
    trust_remote_code: bool = False,
) -> list[dict[str, Any] | None]:  # fmt: skip
    """What `_shapes` says of the models. Raises: UserError where one of them can't be measured so in the engine."""
    check_engine(engine)
    shapes = _shapes(terminal, models, engine, trust_remote_code=trust_remote_code)
    for source, shape in zip(models, shapes, strict=True):
        check_room(shape["max_context"] if shape else None, prompt_tokens, new_tokens, source, spare=1)
        if shape and shape["routed"] and ENGINES[engine].export_to == "onnx":
            raise UserError(f"torch can't write the experts of {source} to ONNX; choose another --engine")
    return shapes


def interleaved(
    workers: Sequence[Any], prompt_BT: np.ndarray, new_tokens: int, repeats: int, progress: Any
) -> list[Seconds]:
    """Seconds of each worker, taken in turn after one warm-up, so that a busy moment hits all alike."""
    found: list[Seconds] = [[] for _ in workers]
    for turn in range(repeats + 1):
        for times, worker in zip(found, workers, strict=True):
            measured = worker.time(prompt_BT, new_tokens)
            if turn:
                times.append(measured)
        progress(turn + 1, repeats + 1)
    return found


def compared(before: Seconds, after: Seconds) -> dict[str, float]:
    """Median, least and most over the turns of how many times as fast `after` was as `before` in the same turn."""
    found: dict[str, float] = {}
    for phase, which in (("prefill", 0), ("decode", 1)):
        ratios = [old[which] / new[which] for old, new in zip(before, after, strict=True)]
        found[f"speedup_{phase}"] = statistics.median(ratios)
        found[f"speedup_{phase}_min"], found[f"speedup_{phase}_max"] = min(ratios), max(ratios)
    return found


def beside(ideal: Mapping[str, float | None], measured: Mapping[str, float]) -> dict[str, float | None]:
    """What was measured, the ideal of each phase, and the share of it that was reached, None where it is not known."""
    shares = {f"share_{phase}": value and measured[f"speedup_{phase}"] / value for phase, value in ideal.items()}
    return {**measured, **{f"ideal_{phase}": value for phase, value in ideal.items()}, **shares}


def ideal_prefill(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, tokens: int) -> float | None:
    """The ratio of operations of a prompt's forward; None where the layers of one are not known."""
    if any(shape is None or shape["blocks"] is None for shape in (before, after)):
        return None
    return operations(cast(Any, before), tokens) / operations(cast(Any, after), tokens)


def ideal_decode(before: Side, after: Side, cached_tokens: float) -> float | None:
    """The ratio of bytes that are read for a token; None for a mixture, of which a token reads some."""
    if any(_is_routed(source, shape) for source, shape, _ in (before, after)):
        return None
    dense, pruned = (bytes_read(size, shape, cached_tokens) for _, shape, size in (before, after))
    return dense / pruned


def operations(shape: Mapping[str, Any], tokens: int) -> float:
    """Of a prefill: two for each weight of a block that a token goes through, attention's two products over half of
    the square, and the output head for the last token."""
    return 2 * tokens * shape["blocks"] + 2 * shape["mixed"] * tokens**2 + 2 * shape["head"]


def bytes_read(weights: int, shape: Mapping[str, Any] | None, cached_tokens: float) -> float:
    """For one token that is written: all weights, and the cache where its size is known."""
    return weights + cached_tokens * ((shape or {}).get("cache_bytes") or 0)


def _isexported(source: str, engine: str) -> bool:
    """Whether the engine opens it as it is, though it is no checkpoint."""
    return {
        None: False,
        "onnx": (Path(source) / ONNX_FILE).is_file(),
        "gguf": source.endswith(".gguf"),
    }[ENGINES[engine].export_to]


def exported(terminal: Teller, source: str, engine: str, place: Path, *, trust_remote_code: bool = False) -> str:
    """The model as the engine opens it."""
    kind = ENGINES[engine]
    if kind.export_to is None or _isexported(source, engine):
        return source
    out = place.with_suffix(exporting.get_target(kind.export_to).suffix or "")
    options = {"dtype": kind.dtype, "force": False, "trust_remote_code": trust_remote_code}
    return deploy.export(terminal, model=source, out=out, to=kind.export_to, **options)["out"]


def _shapes(
    terminal: Teller, models: Sequence[str], engine: str, *, trust_remote_code: bool
) -> list[dict[str, Any] | None]:
    """Of each model in the engine; None where it was exported already."""
    found = [
        None if _isexported(source, engine) else _shape(terminal, source, engine, trust_remote_code=trust_remote_code)
        for source in models
    ]
    known = [shape for shape in found if shape is not None]
    for shape in known:
        itemsize = ENGINES[engine].cache_itemsize or known[-1]["dtype"].itemsize
        shape["cache_bytes"] = None if shape["cached"] is None else shape["cached"] * itemsize
    return found


def _shape(terminal: Teller, source: str, engine: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """What the ideal is counted from, read off the config and the headers of the files alone.

    cached: numbers in the engine's key/value cache of a token. dtype: what `prune` would save the weights in. blocks:
    weights that a token goes through. mixed: see `mixed_numbers`. routed: whether a token reads some of them only.
    """
    model = models.skeleton(source, note=terminal.note, trust_remote_code=trust_remote_code)
    cached = cached_numbers(model, by_transformers=ENGINES[engine].by_transformers)
    return {
        "cached": None if cached is None else sum(cached),
        "dtype": dtypes.main(model),
        "blocks": used_weights(model),
        "mixed": mixed_numbers(model),
        "head": model.get_output_embeddings().weight.numel(),
        "routed": is_mixture(model.config),
        "vocab_size": model.get_input_embeddings().weight.shape[0],
        "max_context": max_context(model.config),
    }


def used_weights(model: Any) -> float | None:
    """Of the blocks' weights those that a token is multiplied by: of a layer's experts as many as it goes to.

    None where the model's layers are not known.
    """
    try:
        ffns = feed_forward(model)
    except UserError:
        return None
    parts = parameters_by_part(model, ffns)
    idle = sum(
        sum(p.numel() for p in ffn.stacked.parameters()) * (1 - ffn.top_k / ffn.count)
        for ffn in ffns if isinstance(ffn, Experts)
    )  # fmt: skip
    return parts["attention"] + parts["ffn"] - idle


def _is_routed(source: str, shape: Mapping[str, Any] | None) -> bool:
    """Whether it is a mixture of experts."""
    if shape is not None:
        return shape["routed"]
    return source.endswith(".gguf") and bool(read_gguf(Path(source)).settings().get("expert_count"))
