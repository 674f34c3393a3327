"""Write a model to ONNX, with its KV cache as inputs and outputs, so that ONNX Runtime generates token by token.

The folder has Optimum's layout: `model.onnx`, `config.json` and the tokenizer. Inputs: `input_ids` (B, T),
`attention_mask` (B, P + T), `position_ids` (B, T) where the model takes any, and for each layer
`past_key_values.{i}.key` and `.value` (B, heads, P, head size), P = 0 at first. Outputs: `logits` (B, T, V) and
`present.{i}.key` and `.value` (B, heads, P + T, head size). optimum-onnx itself still wants transformers 4.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import write_generation_config
from ..errors import UserError
from ..evaluation.engines import ONNX_FILE
from ..evaluation.perplexity import inference
from ..sites.limits import max_context
from ..sites.mixtures import is_mixture
from . import Order
from .gguf_metadata import spec_of

_LARGEST = 2**31 - 2**20  # bytes of one protobuf file; weights of larger models go into a second file

Past = list[tuple[Tensor, Tensor]]


class _Cached(nn.Module):
    """The model with its cache as plain tensors: (keys, values) a layer.

    places: where these are in a cache of transformers', which has a place for layers without an attention too.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
        self.places = [place for place, layer in enumerate(cache.layers) if layer.keys is not None]
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None, past: Past
    ) -> tuple[Tensor, Past]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for place, (keys, values) in zip(self.places, past, strict=True):
            cache.update(keys, values, place)
        positions = {"position_ids": position_ids} if self.takes_positions else {}
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
        )
        return output.logits, self.past(output.past_key_values)

    def past(self, cache: Any) -> Past:
        return [(cache.layers[place].keys, cache.layers[place].values) for place in self.places]


def write(order: Order, folder: Path) -> dict[str, Any]:
    """Raises: UserError where torch can't trace the model, or a package that writes ONNX is missing."""
    if is_mixture(order.model.config):
        kind, others = order.model.config.model_type, _others(order.model.config)
        raise UserError(f"torch can't write the experts of {kind} to ONNX; {others}")
    with inference(order.model), _quiet():
        wrapped = _Cached(order.model.eval())
        example = _example(wrapped)
        layers, axes = len(example[-1]), _dynamic(example, max_context(order.model.config))
        inputs = ["input_ids", "attention_mask", *(["position_ids"] if wrapped.takes_positions else [])]
        try:
            program = torch.onnx.export(
                wrapped, example, dynamo=True, verbose=False, dynamic_shapes=axes,
                input_names=[*inputs, *_names("past_key_values", layers)],
                output_names=["logits", *_names("present", layers)],
            )  # fmt: skip
        except ImportError as error:
            raise UserError(f"writing ONNX needs the package {error.name}: pip install 'lmprune[onnx]'") from error
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise UserError(f"torch can't write this {order.model.config.model_type} to ONNX: {reason}") from error
        assert program is not None
        _check_runnable(program, order.model.config)
        size = sum(p.numel() * p.element_size() for p in order.model.parameters())
        program.save(folder / ONNX_FILE, external_data=size > _LARGEST)
    _write_config(order, folder)
    return {"notes": [f"{ONNX_FILE} with the KV cache of {layers} layers as inputs and outputs"]}


def _others(config: Any) -> str:
    """Where a model goes that ONNX Runtime has no place for."""
    try:
        spec_of(config)
    except UserError:
        return "use --to hf-uniform"
    return "use --to gguf or hf-uniform"


def _check_runnable(program: Any, config: Any) -> None:
    """Raises: UserError where a float32 model computes in bfloat16 on the way, as falcon's ALiBi: ONNX Runtime has no
    such products on the CPU."""
    for node in program.model.graph:
        if node.op_type != "Cast" and any(str(value.dtype) == "BFLOAT16" for value in node.outputs):
            raise UserError(
                f"ONNX Runtime can't compute in bfloat16 as this {config.model_type} does inside ({node.op_type}: "
                f"ALiBi's biases of half precision); {_others(config)}"
            )


def _example(wrapped: _Cached) -> tuple[Tensor, Tensor, Tensor | None, Past]:
    """Inputs of two sequences whose first three tokens are in the cache."""
    past_length, length = 3, 5
    ids = torch.arange(2 * (past_length + length)).view(2, -1) % 7
    mask = torch.ones_like(ids)
    cache = wrapped.model(input_ids=ids[:, :past_length], use_cache=True).past_key_values
    positions = torch.arange(past_length, past_length + length).repeat(2, 1) if wrapped.takes_positions else None
    return ids[:, past_length:], mask, positions, wrapped.past(cache)


def _dynamic(example: tuple[Tensor, Tensor, Tensor | None, Past], limit: int | None) -> tuple[Any, ...]:
    """Which axes may have any length: batch, tokens, cached tokens.

    Named, so that torch knows all layers' caches to be as long as each other, and each at most half of the context, so
    that the sum is within it: else it reasons about layer after layer, and GPT-Neo's twelve take longer than an hour.
    The graph itself has no such bounds.
    """
    half = {"max": limit // 2} if limit else {}
    batch, length, cached = (
        torch.export.Dim("batch"),
        torch.export.Dim("length", **half),
        torch.export.Dim("cached", **half),
    )
    row, layer = {0: batch, 1: length}, {0: batch, 2: cached}
    mask = {0: batch, 1: torch.export.Dim.DYNAMIC}  # cached and length together
    return (row, mask, None if example[2] is None else row, [(layer, layer) for _ in example[-1]])


def _names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _write_config(order: Order, folder: Path) -> None:
    """What generation needs beside the graph."""
    config = order.model.config
    for name in ("lmprune", "auto_map"):  # the graph has the widths; no code is needed
        config.__dict__.pop(name, None)
    config.per_layer_config = None
    config.save_pretrained(folder)
    if order.model.can_generate():
        write_generation_config(order.model.generation_config, folder / "generation_config.json")
    if order.tokenizer is not None:
        order.tokenizer.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx tells of its progress and of packages that we do not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
