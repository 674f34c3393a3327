"""Write a model to a GGUF file that stock llama.cpp runs: one tensor at a time, so memory holds the model and one more.

Per-layer widths: llama.cpp reads one width a model for most architectures; Llama's block with a width for each layer
is its architecture `deci` (arrays `deci.feed_forward_length`, `deci.attention.head_count`, `…head_count_kv`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import nn

from ..checkpoints.generation import ends_of
from ..errors import UserError, shown
from ..foreign import reading
from ..runtimes.gguf_spec import GGUFSpec
from ..sites.limits import max_context
from ..sites.site import Site
from . import Order
from .gaps import gaps, refuse_gaps
from .gguf_facts import facts
from .gguf_metadata import check_square, hyperparameters, scalars, spec_of
from .gguf_quants import check_dtype, fallbacks
from .gguf_rotary import rotary
from .gguf_tensors import stored_tensors
from .gguf_tokenizer import lost, tokenizer_metadata
from .head_counts import heads_by_layer


def write(order: Order, out: Path) -> dict[str, Any]:
    """Write the file `out`; how the model was pruned goes into it as `lmprune.plan`.

    Raises: UserError where llama.cpp can't run the model or its tokenizer, or a tensor does not fit the dtype.
    """
    model, ffns = order.model, order.ffns
    storage, spec = check_dtype(order.dtype or "f16"), spec_of(model.config)
    if order.tokenizer is None:
        raise UserError("a GGUF file holds its tokenizer, and this model comes with none; put it beside config.json")
    arch = _arch(model, ffns, spec)
    per_layer = arch != spec.arch
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ends = [end for end in ends_of(model, order.tokenizer) if 0 <= end < vocab_size]
    rotary_settings, factors = rotary(model, spec)
    settings = hyperparameters(model, ffns, spec, per_layer=per_layer) | rotary_settings
    metadata = {
        **facts(order),
        "general.file_type": int(storage.file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"{arch}.{key}": value for key, value in settings.items()},
        f"{arch}.vocab_size": vocab_size,
        **scalars(model, spec),
        **tokenizer_metadata(order.tokenizer, vocab_size, ends),
    }
    tensors = stored_tensors(model, spec, arch, storage, factors)
    writer = gguf.GGUFWriter(out, arch)
    try:
        for key, value in metadata.items():
            _add(writer, key, value)
        for tensor in tensors:
            shape, nothing = tensor.shape, np.dtype(np.float32)  # which raw_dtype overrules
            writer.add_tensor_info(tensor.name, shape, nothing, tensor.num_bytes, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        with reading("a GGUF file can't hold what config.json and the tokenizer say"):
            writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data())
    finally:
        writer.close()
    notes = [
        f"llama.cpp runs it as {arch}", *fallbacks(storage, [tensor.slot for tensor in tensors if tensor.slot]),
        *_shorter(model.config, settings), *_approximated(model), *lost(order.tokenizer, ends)
    ]  # fmt: skip
    return {"arch": arch, "notes": notes}


def _arch(model: Any, ffns: Sequence[Site], spec: GGUFSpec) -> str:
    """The architecture that runs it. Raises: UserError where llama.cpp has none."""
    if spec.per_layer is None:
        refuse_gaps(model, f"llama.cpp's {spec.arch}")
    gone, heads = gaps(model, "attention") | gaps(model, "ffn"), len({*heads_by_layer(model).values()}) > 1
    widths = len({ffn.width for ffn in ffns}) > 1
    if spec.per_layer is None and (widths or heads):
        raise UserError(
            f"llama.cpp has no {spec.arch} with a {'number of heads' if heads else 'width'} for each layer; "
            "export with --to hf-uniform first, and that with --to gguf"
        )
    check_square(model, spec)
    return spec.per_layer if spec.per_layer and (widths or heads or gone) else spec.arch


def _shorter(config: Any, settings: Mapping[str, Any]) -> list[str]:
    """A sentence where the context is shorter than the model's."""
    context, usual = settings["context_length"], max_context(config)
    if usual is None or context >= usual:
        return []
    return [f"its context is {context} tokens, not {usual}: llama.cpp does not know this model's sliding window"]


def _approximated(model: nn.Module) -> list[str]:
    """A sentence where it has GELU as it is defined, by the error function."""
    exact = any(
        (isinstance(module, nn.GELU) and module.approximate == "none") or type(module).__name__ == "GELUActivation"
        for module in model.modules()
    )
    return ["llama.cpp computes GELU by its tanh approximation, and the model as it is defined"] if exact else []


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add it with the GGUF type that llama.cpp expects of such a Python value. Raises: UserError where it has none."""
    kinds: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if type(value) not in kinds or (type(value) is int and not 0 <= value < 2**32):
        raise UserError(f"a GGUF file can't say that {key} is {shown(value)}; look at config.json")
    kinds[type(value)](key, value)
