"""What was exported, as its engine computes it: one row a target."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..runtimes.mixtures import stored
from ..sites.linears import rows_are_inputs
from ..sites.pages import pages_of
from . import Order
from .arithmetic import Rounding, log_probs, through
from .folder import FLOATS

if TYPE_CHECKING:
    from .gguf_quants import Storage

Texts = Sequence[Sequence[int]]
#: log probabilities (last, top) of the likeliest tokens, and their ids; None for a text too long for what was written
TopScores = list[tuple[Tensor, Tensor] | None]

#: words of several scripts, numbers, white space, signs
_TEXT = "On day 1234 the king's men saw 5.6 birds,\tdidn't they?\n\n  The CAT asked:   why? Naïve 東京 привет 🦙 x=[a]"
_TOKENS_AT_ONCE = 512  # whose logits ONNX Runtime returns together


@dataclass(frozen=True)
class Reader:
    """scores: (order, path, texts, last, top). package: what it needs, and how it is installed. rounding: see there."""

    engine: str
    scores: Callable[[Order, Path, Texts, int, int], TopScores]
    rounding: Callable[[Order], Rounding]
    package: str | None = None
    extra: str | None = None

    def missing(self, order: Order) -> str | None:
        """Why nothing can be scored here."""
        if self.package and find_spec(self.package) is None:
            return f"{self.package} is not installed (pip install 'lmprune[{self.extra}]')"
        if not type(order.model).__module__.startswith(("transformers.", "lmprune.")) and self.package is None:
            return "the model's class is not part of transformers"
        return None


def _in_llama_cpp(order: Order, path: Path, texts: Texts, last: int, top: int) -> TopScores:
    from ..evaluation import llamacpp

    words = _words(order.tokenizer, texts)
    wanted = [order.tokenizer(text, add_special_tokens=False)["input_ids"] for text in words]
    neutral = order.tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    threads = torch.get_num_threads()
    found = llamacpp.ask(path, texts, words, last=last, top=top, neutral=neutral, threads=threads)
    for text, ours, theirs in zip(words, wanted, found.ids, strict=True):
        if ours != theirs:
            raise UserError(_cut_otherwise(text, order.tokenizer, ours, theirs))
    return [None if each is None else _tensors(each) for each in found.log_probs]


def _words(tokenizer: Any, texts: Texts) -> list[str]:
    """Texts of which an engine's own tokenizer has to make the same tokens: one with what people write, and what the
    random tokens of `texts` say, in normal form, between letters: what llama.cpp does at the ends of a text, and to
    special tokens, is said where it is something else (see `gguf_tokenizer.lost`)."""
    said = (tokenizer.decode(list(ids), skip_special_tokens=True) for ids in texts)
    return [_TEXT, *(f"a{unicodedata.normalize('NFC', text)}a" for text in said)]


def _cut_otherwise(text: str, tokenizer: Any, ours: Sequence[int], theirs: Sequence[int]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    here, there = (tokenizer.convert_ids_to_tokens(list(ids[first : first + 3])) for ids in (ours, theirs))
    return (
        f"llama.cpp cuts text into other tokens than the tokenizer: {there} instead of {here} in {text!r:.60}; nothing "
        "was written (--no-verify writes it nevertheless)"
    )


def _tensors(found: Sequence[dict[int, float]]) -> tuple[Tensor, Tensor]:
    number = min(map(len, found))
    rows = [list(each.items())[:number] for each in found]
    return torch.tensor([[p for _, p in row] for row in rows]), torch.tensor([[i for i, _ in row] for row in rows])


def _in_onnx_runtime(order: Order, path: Path, texts: Texts, last: int, top: int) -> TopScores:
    """All but the last tokens fill the cache; these come after it."""
    from ..evaluation.engines import OnnxRuntime

    try:
        engine = OnnxRuntime(str(path), threads=torch.get_num_threads(), context=0)
        return [_likeliest(_onnx_tail(engine, np.array([ids]), last), top) for ids in texts]
    except UserError:
        raise
    except Exception as error:  # onnxruntime's own hierarchy, below RuntimeError and Exception
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"ONNX Runtime can't run what torch wrote: {reason}") from error


def _onnx_tail(engine: Any, ids_1T: np.ndarray, last: int) -> Tensor:
    cut = max(ids_1T.shape[1] - last // 2, 1)
    starts = [*range(0, cut, _TOKENS_AT_ONCE), cut]
    past: list[np.ndarray] = []
    tail: list[np.ndarray] = []
    for start, end in zip(starts, [*starts[1:], ids_1T.shape[1]], strict=True):
        if start < end:
            logits, past = engine.step(ids_1T[:, start:end], past)
            tail.append(logits[0, -last:])
    return torch.from_numpy(np.concatenate(tail)[-last:]).float().log_softmax(-1)


def _in_transformers(order: Order, path: Path, texts: Texts, last: int, top: int) -> TopScores:
    from ..checkpoints import models

    model = models.load(path, dtype="auto", stream=pages_of(order.model) is not None)
    return [_likeliest(log_probs(model, ids, last=last, rounding=Rounding()), top) for ids in texts]


def _for_vllm(order: Order, path: Path, texts: Texts, last: int, top: int) -> TopScores:
    from .vllm import as_vllm_reads_it

    model = as_vllm_reads_it(path)
    return [_likeliest(log_probs(model, ids, last=last, rounding=Rounding()), top) for ids in texts]


def _likeliest(log_probs: Tensor, top: int) -> tuple[Tensor, Tensor]:
    values, ids = log_probs.topk(min(top, log_probs.shape[1]))
    return values, ids


def _cast(order: Order) -> Rounding:
    dtype = FLOATS.get(order.dtype or "")
    return Rounding(through(dtype)) if dtype else Rounding()


def _as_gguf(order: Order) -> Rounding:
    """Its matrices, and its embeddings, through their storage type; llama.cpp rounds a matrix's inputs likewise, those
    of blocks of few bits to q8_0. (In f32 nothing is rounded but inside its GELU, a table of f16.)"""
    import gguf
    from gguf import GGMLQuantizationType as Q

    from .gguf_quants import check_dtype, quantize

    storage = check_dtype(order.dtype or "f16")
    kinds = _kinds(order, storage)

    def through_kind(value: Tensor, kind: Q) -> Tensor:
        if value.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:  # which the writer refuses, and says why
            return value
        return torch.from_numpy(gguf.dequantize(quantize(value.float().contiguous().numpy(), kind), kind))

    def weights(module: nn.Module, parameter: nn.Parameter) -> Tensor:
        name = next(name for name, own in module.named_parameters(recurse=False) if own is parameter)
        kind, value = kinds.get((module, name)), parameter.data
        if value.ndim < 2 or kind is None:
            return value
        return through_kind(value.T, kind).T if rows_are_inputs(module) else through_kind(value, kind)

    inputs = {Q.F32: Q.F16, Q.F16: Q.F16, Q.BF16: Q.BF16}.get(storage.matrices, Q.Q8_0)
    return Rounding(weights, lambda x: through_kind(x, inputs).view_as(x))


def _kinds(order: Order, storage: Storage) -> dict[tuple[nn.Module, str], Any]:
    """The type that each parameter is stored in, by the modules that have it and its name there: one that two modules
    share may be stored twice."""
    from .gguf_metadata import spec_of
    from .gguf_tensors import second_head, slots

    spec = spec_of(order.model.config)
    placed = slots(order.model, spec, spec.arch)
    values = dict(stored(order.model))
    kinds = {id(values[place.name]): storage.kind(slot) for place, slot in placed}
    found = {
        (module, name): kinds[id(parameter)]
        for module in order.model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in kinds
    }
    if (head := second_head(order.model, spec, [place.theirs for place, _ in placed])) is not None:
        found[order.model.get_output_embeddings(), "weight"] = storage.kind(head)
    return found


READERS = {
    "gguf": Reader("llama.cpp", _in_llama_cpp, _as_gguf, "xllamacpp", "serve"),
    "onnx": Reader("ONNX Runtime", _in_onnx_runtime, _cast, "onnxruntime", "onnx"),
    "vllm": Reader("transformers, by the fields that vLLM reads", _for_vllm, _cast),
    "hf-uniform": Reader("stock transformers", _in_transformers, _cast),
}
