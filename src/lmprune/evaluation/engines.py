"""Runtimes that a model's speed is measured in, each behind the same two questions: a row each in ENGINES.

An engine takes threads and memory of its own, so `workers` runs each model's in a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..checkpoints import models
from ..errors import UserError
from ..progress import silent
from .perplexity import inference
from .speed import time_once

#: in a folder that `lmprune export --to onnx` wrote
ONNX_FILE = "model.onnx"


class Engine(Protocol):
    """Opened as `Engine(source, threads=…, context=…)`: a model, and the most tokens of a sequence. One that opens
    checkpoints takes `dtype` and `trust_remote_code`, too."""

    weight_bytes: int

    def time(self, prompt_BT: np.ndarray, new_tokens: int) -> tuple[float, float]:
        """Seconds until the first token is there, and of the `new_tokens` after it, greedy, batch B."""
        ...


class Torch:
    def __init__(
        self, source: str, *, threads: int, context: int, dtype: str = "auto", trust_remote_code: bool = False
    ):
        torch.set_num_threads(threads)
        self.model = models.load(source, dtype=dtype, note=silent, trust_remote_code=trust_remote_code)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def time(self, prompt_BT: np.ndarray, new_tokens: int) -> tuple[float, float]:
        with inference(self.model):
            return time_once(self.model, torch.from_numpy(prompt_BT), new_tokens)


class OnnxRuntime:
    """A folder with ONNX_FILE and its cache as inputs (see `export.onnx`)."""

    def __init__(self, source: str, *, threads: int, context: int):
        onnxruntime = _needed("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        file = Path(source) / ONNX_FILE
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.weight_bytes = sum(each.stat().st_size for each in file.parent.glob(f"{ONNX_FILE}*"))
        self._inputs = {each.name: each.shape for each in self.session.get_inputs()}
        self._past = [name for name in self._inputs if name.startswith("past_key_values")]

    def step(self, ids_BT: np.ndarray, past: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(logits (B, T, V), cache) of ids that follow `past`; an empty list at first."""
        (batch, length), known = ids_BT.shape, past[0].shape[2] if past else 0
        if not past:
            sizes = [self._inputs[name] for name in self._past]
            past = [np.zeros((batch, heads, 0, size), np.float32) for _, heads, _, size in sizes]
        feed = {
            "input_ids": ids_BT,
            "attention_mask": np.ones((batch, known + length), np.int64),
            "position_ids": np.arange(known, known + length)[None].repeat(batch, 0),
            **dict(zip(self._past, past, strict=True)),
        }
        logits, *present = self.session.run(None, {name: feed[name] for name in self._inputs})
        return logits, present

    def generate(self, prompt_BT: np.ndarray, new_tokens: int) -> np.ndarray:
        """(B, new_tokens): always the first choice."""
        ids_BT, past, found = prompt_BT, [], []
        for _ in range(new_tokens):
            logits, past = self.step(ids_BT, past)
            ids_BT = logits[:, -1:].argmax(-1)
            found.append(ids_BT)
        return np.concatenate(found, axis=1)

    def time(self, prompt_BT: np.ndarray, new_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        logits, past = self.step(prompt_BT, [])
        ids_BT = logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(new_tokens):
            logits, past = self.step(ids_BT, past)
            ids_BT = logits[:, -1:].argmax(-1)
        return first - start, time.perf_counter() - first


class LlamaCpp:
    """A GGUF file, in llama.cpp's own server; one sequence at a time."""

    def __init__(self, source: str, *, threads: int, context: int):
        xllamacpp = _needed("xllamacpp", "serve")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its log; this process is the engine's own
        params = xllamacpp.CommonParams()
        params.model.path = source
        params.n_ctx, params.n_parallel, params.n_batch = context, 1, context
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)
        self.weight_bytes = Path(source).stat().st_size

    def time(self, prompt_BT: np.ndarray, new_tokens: int) -> tuple[float, float]:
        if len(prompt_BT) != 1:
            raise UserError("llama.cpp is measured with one sequence at a time; drop --batch")
        request = {
            "prompt": prompt_BT[0].tolist(), "max_tokens": new_tokens + 1, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False,
        }  # fmt: skip
        timings = self.server.handle_completions(request)["timings"]
        assert (timings["prompt_n"], timings["predicted_n"]) == (prompt_BT.shape[1], new_tokens + 1)
        return timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3


@dataclass(frozen=True)
class EngineKind:
    """open: an Engine's class. export_to: what a checkpoint has to be exported to first, and in which dtype.

    cache_itemsize: bytes of a number in its key/value cache; None = as the checkpoint's own.
    by_transformers: it runs transformers' code, or a graph of it.
    package: the module that it needs, and the extra that has it.
    """

    open: Callable[..., Engine]
    export_to: str | None = None
    dtype: str | None = None
    cache_itemsize: int | None = None
    package: tuple[str, str] | None = None
    by_transformers: bool = True


ENGINES = {
    "torch": EngineKind(Torch),
    "onnxruntime": EngineKind(OnnxRuntime, "onnx", "f32", 4, ("onnxruntime", "onnx")),
    "llamacpp": EngineKind(LlamaCpp, "gguf", "f16", 2, ("xllamacpp", "serve"), by_transformers=False),
}


def _needed(module: str, extra: str) -> Any:
    """Raises: UserError where the package is not installed."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise missing(module, extra) from None


def missing(module: str, extra: str) -> UserError:
    """What is to be said where an engine's package is not installed."""
    return UserError(f"this engine needs the package {module}: pip install 'lmprune[{extra}]'")
