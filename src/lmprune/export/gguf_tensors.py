"""A model's parameters as llama.cpp stores them: its names, its order of rows, its quantisations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_TENSOR, GGMLQuantizationType, LlamaFileType
from torch import Tensor, nn

from ..errors import UserError, unknown
from ..runtimes.architectures import GGUFSpec
from ..runtimes.gguf_layout import places

Q = GGMLQuantizationType


@dataclass(frozen=True)
class Storage:
    """How matrices, and the embedding and the output head, are stored; vectors are always f32."""

    matrices: GGMLQuantizationType
    embeddings: GGMLQuantizationType
    file_type: LlamaFileType


#: k-quants are not here: the package `gguf` only reads them
DTYPES = {
    "f32": Storage(Q.F32, Q.F32, LlamaFileType.ALL_F32),
    "f16": Storage(Q.F16, Q.F16, LlamaFileType.MOSTLY_F16),
    "bf16": Storage(Q.BF16, Q.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": Storage(Q.Q8_0, Q.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_0": Storage(Q.Q5_0, Q.Q8_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_0": Storage(Q.Q4_0, Q.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}

_EMBEDDINGS = (MODEL_TENSOR.TOKEN_EMBD, MODEL_TENSOR.OUTPUT)
_ALWAYS_F32 = (MODEL_TENSOR.POS_EMBD,)  # llama.cpp adds it to f32 without a conversion


def check_dtype(dtype: str) -> Storage:
    """Raises: UserError, which tells how to come by the quantisations that can't be made here."""
    if dtype.startswith(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq")):
        raise UserError(
            f"{dtype} can only be made by llama.cpp's own llama-quantize: export f16 and run that, "
            f"or choose one of {', '.join(DTYPES)}"
        )
    if dtype not in DTYPES:
        raise unknown("GGUF dtype", dtype, DTYPES)
    return DTYPES[dtype]


@dataclass(frozen=True)
class Stored:
    """A tensor to be: its values are only made when they are written. shape: before quantisation."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    values: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size

    def data(self) -> np.ndarray:
        """Raises: UserError where the values do not fit the type."""
        with np.errstate(over="ignore"):  # it is looked for
            data = gguf.quantize(self.values().float().contiguous().numpy(), self.kind)
        if self.kind == Q.F16 and not np.isfinite(data).all():
            raise UserError(f"{self.name} has values beyond f16's 65,504; choose --dtype bf16 or f32")
        return data


def stored_tensors(model: Any, spec: GGUFSpec, arch: str, storage: Storage) -> Iterator[Stored]:
    """Every parameter, under llama.cpp's name for it.

    Raises: UserError for one that llama.cpp has no place for, or that its type does not fit.
    """
    if (factors := rope_factors(model)) is not None:
        name = gguf.TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS] + ".weight"
        yield Stored(name, tuple(factors.shape), Q.F32, lambda: factors)
    for place in places(model, spec, arch):
        kind = _kind(place.type_, place.shape, storage)
        _check_rows(place.name, place.shape, kind)
        value = model.get_parameter(place.name).detach()
        yield Stored(place.theirs, place.shape, kind, lambda value=value, place=place: place.stored(value))


def _kind(type_: MODEL_TENSOR, shape: tuple[int, ...], storage: Storage) -> GGMLQuantizationType:
    if len(shape) == 1 or type_ in _ALWAYS_F32:
        return Q.F32
    return storage.embeddings if type_ in _EMBEDDINGS else storage.matrices


def _check_rows(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if shape[-1] % block:
        raise UserError(
            f"{kind.name.lower()} stores rows in blocks of {block}, but those of {name} have {shape[-1]} values; "
            f"prune with --multiple-of {block}, export with --to hf-uniform first, or choose --dtype f16"
        )


def ropes(config: Any) -> dict[str, Any] | None:
    """The rotary settings of a model that has one kind of them."""
    return getattr(config, "rope_parameters", None) or None


def rope_factors(model: nn.Module) -> Tensor | None:
    """What each rotary frequency is divided by, (head size / 2,), seen in the model; None where it is 1 throughout."""
    rope = ropes(model.config)
    found = [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "inv_freq"]
    if rope is None or len(found) != 1:
        return None
    plain = rope["rope_theta"] ** (-torch.arange(len(found[0]), dtype=torch.float64) / len(found[0]))
    factors = (plain / found[0].double()).float()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4) else factors
