"""Which of ggml's types each tensor gets, and numbers in them: k-quants by llama.cpp's own code, as xllamacpp ships it.

Which tensors of a k-quant get more bits is `llama-quantize`'s choice (llama.cpp, src/llama-quant.cpp).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_TENSOR, GGMLQuantizationType, LlamaFileType

from ..errors import UserError, unknown

Q, T = GGMLQuantizationType, MODEL_TENSOR

_EMBEDDINGS = (T.TOKEN_EMBD, T.OUTPUT)
#: llama.cpp adds positions to f32 without a conversion, and chooses experts in it
_ALWAYS_F32 = (T.POS_EMBD, T.FFN_GATE_INP, T.FFN_GATE_INP_SHEXP)
#: what gets more bits in some of the layers
_BY_LAYER = (T.ATTN_V, T.FFN_DOWN, T.FFN_DOWN_EXP, T.FFN_DOWN_SHEXP)
#: what rows that are no multiple of a k-quant's block of 256 get instead
_INSTEAD = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}


@dataclass(frozen=True)
class Slot:
    """A tensor to be stored. shape: rows first. layer: of `layers`, None outside of them. head: whether what comes out
    of the model is multiplied by it: the output head, or the embedding that it is tied to."""

    type_: MODEL_TENSOR
    shape: tuple[int, ...]
    layer: int | None = None
    layers: int = 0
    head: bool = False


@dataclass(frozen=True)
class Storage:
    """How matrices, the embedding, and the output head are stored; vectors are always f32.

    more: what values and `down` get in some of the layers; fused: what queries, keys and values in one get.
    """

    matrices: GGMLQuantizationType
    embeddings: GGMLQuantizationType
    head: GGMLQuantizationType
    file_type: LlamaFileType
    more: GGMLQuantizationType | None = None
    fused: GGMLQuantizationType | None = None

    @property
    def native(self) -> bool:
        """Whether it takes llama.cpp's own code to make it."""
        return self.matrices in _INSTEAD

    def wanted(self, slot: Slot) -> GGMLQuantizationType:
        """The type that it gets where its rows fit."""
        if len(slot.shape) == 1 or slot.type_ in _ALWAYS_F32:
            return Q.F32
        if slot.type_ in _EMBEDDINGS:
            return self.head if slot.head else self.embeddings
        if self.fused is not None and slot.type_ == T.ATTN_QKV:
            return self.fused
        if self.more is not None and slot.type_ in _BY_LAYER and _gets_more(slot.layer, slot.layers):
            return self.more
        return self.matrices

    def kind(self, slot: Slot) -> GGMLQuantizationType:
        """The type that it gets."""
        kind = self.wanted(slot)
        fits = slot.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        return kind if fits else _INSTEAD.get(kind, kind)


def _gets_more(layer: int | None, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    if layer is None:
        return False
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _plain(kind: GGMLQuantizationType, file_type: LlamaFileType, ends: GGMLQuantizationType | None = None) -> Storage:
    return Storage(kind, ends or kind, ends or kind, file_type)


GGUF_DTYPES = {
    "f32": _plain(Q.F32, LlamaFileType.ALL_F32),
    "f16": _plain(Q.F16, LlamaFileType.MOSTLY_F16),
    "bf16": _plain(Q.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": _plain(Q.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_0": _plain(Q.Q5_0, LlamaFileType.MOSTLY_Q5_0, Q.Q8_0),
    "q4_0": _plain(Q.Q4_0, LlamaFileType.MOSTLY_Q4_0, Q.Q8_0),
    "q6_k": Storage(Q.Q6_K, Q.Q6_K, Q.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q5_k_m": Storage(Q.Q5_K, Q.Q5_K, Q.Q6_K, LlamaFileType.MOSTLY_Q5_K_M, more=Q.Q6_K, fused=Q.Q6_K),
    "q4_k_m": Storage(Q.Q4_K, Q.Q4_K, Q.Q6_K, LlamaFileType.MOSTLY_Q4_K_M, more=Q.Q6_K, fused=Q.Q5_K),
}
_ELSEWHERE = ("q2_k", "q3_k", "q4_k", "q5_k", "iq")


def check_dtype(dtype: str) -> Storage:
    """Raises: UserError, which tells how to come by quantisations that can't be made here."""
    if dtype in GGUF_DTYPES:
        if GGUF_DTYPES[dtype].native and _library() is None:
            needed = "which the package xllamacpp ships: pip install 'lmprune[serve]'"
            raise UserError(f"{dtype} is made by llama.cpp's own code, {needed}")
        return GGUF_DTYPES[dtype]
    if dtype.startswith(_ELSEWHERE):
        raise UserError(
            f"{dtype} can only be made by llama.cpp's own llama-quantize: export f16 and run that, "
            f"or choose one of {', '.join(GGUF_DTYPES)}"
        )
    raise unknown("GGUF dtype", dtype, GGUF_DTYPES)


def quantize(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """values: float32, rows of whole blocks."""
    if kind not in _INSTEAD:
        return gguf.quantize(values, kind)
    library, (block, size) = _library(), gguf.GGML_QUANT_SIZES[kind]
    assert library is not None, "check_dtype was asked"
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    found = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
    library.ggml_quantize_chunk(int(kind), rows.ctypes.data, found.ctypes.data, 0, len(rows), rows.shape[1], None)
    return found.reshape(*values.shape[:-1], -1)


@cache
def _library() -> Any:
    """The library inside xllamacpp, None where it is not there; the package itself is not imported."""
    spec = find_spec("xllamacpp")
    for folder in (spec and spec.submodule_search_locations) or []:
        for file in sorted(Path(folder).glob("xllamacpp*.so")) + sorted(Path(folder).glob("xllamacpp*.pyd")):
            library = ctypes.CDLL(str(file))
            if hasattr(library, "ggml_quantize_chunk"):
                function = library.ggml_quantize_chunk
                pointer, number = ctypes.c_void_p, ctypes.c_int64
                function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
                function.restype = ctypes.c_size_t
                return library
    return None


def fallbacks(storage: Storage, slots: list[Slot]) -> list[str]:
    """A sentence where matrices do not get the type that was asked for."""
    matrices = [slot for slot in slots if len(slot.shape) > 1]
    other = [slot for slot in matrices if storage.kind(slot) != storage.wanted(slot)]
    if not other:
        return []
    kinds = sorted({storage.kind(slot).name.lower() for slot in other})
    told = (
        f"{len(other)} of {len(matrices)} matrices are {' or '.join(kinds)} instead, as llama.cpp's own tool has it: "
        "their rows are no multiples of 256"
    )
    narrow = [slot for slot in other if slot.type_ == T.FFN_DOWN]
    return [told + ("; prune with --multiple-of 256 for those of the feed-forward layers" if narrow else "")]
