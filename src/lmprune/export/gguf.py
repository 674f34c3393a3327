"""Write a model to a GGUF file that stock llama.cpp runs: one tensor at a time, so memory holds the model and one more.

Per-layer widths: llama.cpp reads one width a model for most architectures; Llama's block with a width for each layer
is its architecture `deci` (arrays `deci.feed_forward_length`, `deci.attention.head_count`, `…head_count_kv`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ..errors import UserError
from ..runtimes.architectures import GGUF, KEYS, GGUFSpec
from ..sites.ffn import FFN
from ..sites.limits import max_context
from . import Job
from .gguf_tensors import check_dtype, ropes, stored_tensors
from .gguf_tokenizer import tokenizer_metadata

_CONTEXT = 2048  # for families whose position encoding has no limit


def write(job: Job, out: Path) -> dict[str, Any]:
    """Write the file `out`; how the model was pruned goes into it as `lmprune.plan`.

    Raises: UserError where llama.cpp can't run the model or its tokenizer, or a tensor does not fit the dtype.
    """
    model, ffns = job.model, job.ffns
    storage, spec = check_dtype(job.dtype or "f16"), _spec(model.config)
    if job.tokenizer is None:
        raise UserError("a GGUF file holds its tokenizer, and this model comes with none; put it beside config.json")
    per_layer = not _is_plain(model, ffns)
    if per_layer and spec.per_layer is None:
        raise UserError(
            f"llama.cpp has no {spec.arch} with widths, or biases, of single layers; "
            "export with --to hf-uniform first, and that with --to gguf"
        )
    arch = spec.per_layer if per_layer and spec.per_layer else spec.arch
    vocab_size = model.get_input_embeddings().weight.shape[0]
    metadata = {
        "general.name": job.name,
        "general.file_type": int(storage.file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"{arch}.{key}": value for key, value in _hyperparameters(model.config, ffns, spec, per_layer).items()},
        f"{arch}.vocab_size": vocab_size,
        **tokenizer_metadata(job.tokenizer, vocab_size),
        **({"lmprune.plan": json.dumps(job.plan, sort_keys=True)} if job.plan else {}),
    }
    tensors = list(stored_tensors(model, spec, arch, storage))
    writer = gguf.GGUFWriter(out, arch)
    try:
        for key, value in metadata.items():
            _add(writer, key, value)
        for tensor in tensors:
            shape, nothing = tensor.shape, np.dtype(np.float32)  # which raw_dtype overrules
            writer.add_tensor_info(tensor.name, shape, nothing, tensor.num_bytes, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data())
    finally:
        writer.close()
    notes = [f"llama.cpp runs it as {arch}"]
    return {"arch": arch, "notes": notes}


def _spec(config: Any) -> GGUFSpec:
    """The row for the model. Raises: UserError where there is none, or llama.cpp takes for granted what is not so."""
    if config.model_type not in GGUF:
        raise UserError(
            f"lmprune can't write {config.model_type} to GGUF, only {', '.join(sorted(GGUF))}; use --to onnx"
        )
    spec = GGUF[config.model_type]
    for field, allowed in spec.assumes.items():
        if (value := getattr(config, field, allowed[0])) not in allowed:
            raise UserError(
                f"llama.cpp runs {spec.arch} with {field} {' or '.join(map(str, allowed))}, "
                f"but this model has {value}; use --to onnx"
            )
    kind = (ropes(config) or {}).get("rope_type", "default")
    if kind not in ("default", *(("linear", "llama3") if spec.rope_factors else ())):
        raise UserError(f"lmprune can't write {spec.arch} with rotary positions of type {kind} to GGUF; use --to onnx")
    return spec


def _is_plain(model: Any, ffns: Sequence[FFN]) -> bool:
    """Whether a model of one width, with a bias in all linears of an FFN or in none: some such are no stock models."""
    if not hasattr(model.config, "lmprune"):
        return True
    shapes = {(ffn.width, len(ffn.writer_biases()), ffn.reader_bias() is not None) for ffn in ffns}
    ((_, writers, reader), *others) = shapes
    return not others and (writers > 0) == reader


def _hyperparameters(config: Any, ffns: Sequence[FFN], spec: GGUFSpec, per_layer: bool) -> dict[str, Any]:
    """Metadata keys after `{arch}.`."""
    found: dict[str, Any] = {"context_length": _context(config, spec)}
    for key, names in KEYS.items():
        value = next((v for name in names if (v := getattr(config, name, None)) is not None), None)
        if value is not None:
            found[key] = value
    widths = [ffn.width for ffn in ffns]
    found["feed_forward_length"] = widths if per_layer else widths[0]
    if per_layer:
        for key in ("attention.head_count", "attention.head_count_kv"):
            found[key] = [found[key]] * len(ffns)
    if rope := ropes(config):
        head = found.get("attention.key_length") or config.hidden_size // config.num_attention_heads
        found["rope.freq_base"] = float(rope["rope_theta"])
        found["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    for key, value in spec.keys.items():
        value = getattr(config, value, None) if isinstance(value, str) else value
        if value is not None:
            found[key] = value
    return found


def _context(config: Any, spec: GGUFSpec) -> int:
    """Positions that llama.cpp computes as transformers does: where it knows no sliding window, those within one."""
    window = None if "attention.sliding_window" in spec.keys else getattr(config, "sliding_window", None)
    return min(max_context(config) or _CONTEXT, window or sys.maxsize)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add it with the GGUF type that llama.cpp expects of such a Python value."""
    kinds: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)
