"""A model's parameters as llama.cpp stores them: its names, its order of rows, its quantisations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_TENSOR, TENSOR_NAMES, GGMLQuantizationType
from torch import Tensor

from ..errors import UserError
from ..runtimes.gguf_layout import TensorPlace, places
from ..runtimes.gguf_spec import GGUFSpec
from ..sites.pages import value_of
from .gaps import attention_alone
from .gguf_quants import Slot, Storage, quantize
from .head_counts import heads_by_layer

Q, T = GGMLQuantizationType, MODEL_TENSOR

#: neurons of a feed-forward layer that adds nothing, as many as a block of the quantised types holds
STUB = 32


@dataclass(frozen=True)
class Writable:
    """A tensor to be: its values are only made when they are written. shape: before quantisation. slot: of a
    parameter, what its kind was chosen by."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    values: Callable[[], Tensor]
    slot: Slot | None = None

    @property
    def num_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size

    def data(self) -> np.ndarray:
        """Raises: UserError where the values do not fit the type."""
        with np.errstate(over="ignore"):  # it is looked for
            data = quantize(self.values().float().contiguous().numpy(), self.kind)
        if self.kind == Q.F16 and not np.isfinite(data).all():
            raise UserError(f"{self.name} has values beyond f16's 65,504; choose --dtype bf16 or f32")
        return data


def stored_tensors(model: Any, spec: GGUFSpec, arch: str, storage: Storage, factors: Tensor | None) -> list[Writable]:
    """Every parameter, under llama.cpp's name for it, and what it insists on beside them.

    factors: of rotary frequencies. Raises: UserError for a parameter that llama.cpp has no place for, or that its type
    does not fit.
    """
    found: list[Writable] = []
    if factors is not None:
        found.append(_stored(Slot(MODEL_TENSOR.ROPE_FREQS, tuple(factors.shape)), storage, lambda: factors))
    for place, slot in slots(model, spec, arch):
        kind = storage.kind(slot)
        _check_rows(place.name, place.shape, kind)
        found.append(
            Writable(
                place.theirs, place.shape, kind, lambda place=place: place.stored(value_of(model, place.name)), slot
            )
        )
    if (slot := second_head(model, spec, [tensor.name for tensor in found])) is not None:
        found.append(_stored(slot, storage, lambda: model.get_output_embeddings().weight.detach()))
    return [*found, *_zeros(spec, found), *_stubs(model, storage)]


def slots(model: Any, spec: GGUFSpec, arch: str) -> list[tuple[TensorPlace, Slot]]:
    """Every parameter's place, and what its type is chosen by. Raises: UserError as `places` does."""
    found, layers = [*places(model, spec, arch)], model.config.num_hidden_layers
    tied = spec.head != "own" and not any(place.type_ == T.OUTPUT for place in found)
    heads = (T.TOKEN_EMBD,) if tied else (T.OUTPUT,)
    return [
        (place, Slot(place.type_, place.shape, _layer(place.theirs), layers, place.type_ in heads)) for place in found
    ]


def _layer(name: str) -> int | None:
    block = re.match(r"blk\.(\d+)\.", name)
    return int(block[1]) if block else None


def second_head(model: Any, spec: GGUFSpec, names: Sequence[str]) -> Slot | None:
    """What a tied head is stored by once more, for an architecture that can't do without one of its own.

    names: llama.cpp's, of the model's parameters. Raises: UserError for a head that the architecture has no place for.
    """
    has = f"{TENSOR_NAMES[T.OUTPUT]}.weight" in names
    if has and spec.head == "tied":
        raise UserError(
            f"llama.cpp's {spec.arch} ties its output head to the embedding, and this model has one of its own "
            "(tie_word_embeddings false); use --to onnx"
        )
    if has or spec.head != "own":
        return None
    return Slot(T.OUTPUT, tuple(model.get_output_embeddings().weight.shape), head=True)


def _zeros(spec: GGUFSpec, found: Sequence[Writable]) -> list[Writable]:
    """The biases that llama.cpp insists on and the model has not."""
    names = {tensor.name for tensor in found}
    without = [
        tensor
        for tensor in found
        if tensor.name.endswith(".weight")
        and tensor.name.split(".")[-2] in spec.biases
        and f"{tensor.name.removesuffix('weight')}bias" not in names
    ]
    return [
        Writable(f"{t.name.removesuffix('weight')}bias", (t.shape[0],), Q.F32, lambda t=t: torch.zeros(t.shape[0]))
        for t in without
    ]


def _stubs(model: Any, storage: Storage) -> list[Writable]:
    """Branches of zeros, where the model has none and llama.cpp's `deci` wants one: a feed-forward layer beside every
    attention, which it leaves out too without, and an attention in the first layer, which tells the size of a head."""
    wide, heads = model.config.hidden_size, heads_by_layer(model)
    size = next(iter(heads.values())).dim
    ffn = {T.FFN_NORM: (wide,), T.FFN_GATE: (STUB, wide), T.FFN_UP: (STUB, wide), T.FFN_DOWN: (wide, STUB)}
    attention = {T.ATTN_NORM: (wide,), **dict.fromkeys((T.ATTN_Q, T.ATTN_K, T.ATTN_V), (size, wide))}
    attention[T.ATTN_OUT] = (wide, size)
    parts = [(layer, part) for layer in sorted(attention_alone(model)) for part in ffn.items()]
    parts += [(0, part) for part in attention.items() if 0 not in heads]
    return [_zero(layer, type_, shape, storage) for layer, (type_, shape) in parts]


def _zero(layer: int, type_: MODEL_TENSOR, shape: tuple[int, ...], storage: Storage) -> Writable:
    name, kind = f"{TENSOR_NAMES[type_].format(bid=layer)}.weight", storage.kind(Slot(type_, shape))
    _check_rows(name, shape, kind)
    return Writable(name, shape, kind, lambda: torch.zeros(shape))


def _stored(slot: Slot, storage: Storage, values: Callable[[], Tensor]) -> Writable:
    name, kind = f"{TENSOR_NAMES[slot.type_]}.weight", storage.kind(slot)
    _check_rows(name, slot.shape, kind)
    return Writable(name, slot.shape, kind, values, slot)


def _check_rows(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if shape[-1] % block:
        raise UserError(
            f"{kind.name.lower()} stores rows in blocks of {block}, but those of {name} have {shape[-1]} values; "
            f"prune with --multiple-of {block}, export with --to hf-uniform first, or choose --dtype f16"
        )
