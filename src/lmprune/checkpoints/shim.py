"""A causal-LM model with shapes that its stock class can't express: widths, heads, missing branches.

`config.lmprune` records what was cut (see `resize`). `PrunedLlamaForCausalLM` is transformers' `LlamaForCausalLM` cut
to that record, and so for every other class: ask this module for `Pruned<Stock>`.

A checkpoint with such widths carries a copy of this very file, so it imports torch and transformers only. lmprune
itself loads the checkpoint with its own copy and never runs the checkpoint's.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import conversion_mapping

PREFIX = "Pruned"
#: of `config.lmprune`
FORMAT = 3


def resize(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Cut a freshly built stock model to the shapes in `record`; the values are the checkpoint's business.

    record: `linears`, path of a linear layer -> [outputs, inputs, whether it has a bias]; `counts`, path of a module ->
        attributes that count heads or experts, or say where a cache has its keys (see `set_count`); `tensors`, path of
        any other parameter or buffer -> its shape; since format 3 `gone`, path of a module -> what stands there instead
        (see `Gone`). Before format 2: `spec`, paths to the FFN linears (blocks, up, gate, down, and fused_gate: `up`
        holds both, 2F rows); `widths`, neurons left in each block; `down_bias`,
        whether `down` has a bias in each block.
    """
    if record.get("format", 1) > FORMAT:
        raise ValueError(f"it was pruned by a later lmprune (format {record['format']}): update lmprune")
    for path, how in record.get("gone", {}).items():
        put(model, path, Gone(how))
    linears = record["linears"] if "linears" in record else _linears(model, record)
    for path, (outputs, inputs, bias) in linears.items():
        linear = model.get_submodule(path)
        _cut(linear, outputs, outputs=True)
        _cut(linear, inputs, outputs=False)
        if bias and linear.bias is None:
            linear.register_parameter("bias", nn.Parameter(linear.weight.new_zeros(outputs)))  # type: ignore[operator]
    for path, shape in record.get("tensors", {}).items():
        home, _, name = path.rpartition(".")
        for dim, size in enumerate(shape):
            _narrow(model.get_submodule(home), name, dim, size)
    for path, counts in record.get("counts", {}).items():
        for name, value in counts.items():
            set_count(model.get_submodule(path), name, value)


class Gone(nn.Module):
    """What stands where a branch of a block was: nothing is added to the stream.

    instead_of: `attention` or `ffn`, whose output is now zero; `passed`, a module on the way there, now without effect.
    """

    def __init__(self, instead_of: str):
        super().__init__()
        self.instead_of = instead_of

    def forward(self, hidden_states, **_arguments):
        if self.instead_of == "passed":
            return hidden_states
        zero = torch.zeros_like(hidden_states)
        return (zero, None) if self.instead_of == "attention" else zero


def is_gone(model: nn.Module, path: str) -> bool:
    """Whether the module at `path` was removed, or the one that held it. By name: a checkpoint's own copy of this file
    has another class."""
    for name in path.split("."):
        model = getattr(model, name)
        if type(model).__name__ == Gone.__name__:
            return True
    return False


def gone_in(model: nn.Module) -> dict[str, str]:
    """Path of each module that was removed -> what stands there instead (see `Gone`)."""
    return {path: m.instead_of for path, m in model.named_modules() if type(m).__name__ == Gone.__name__}  # type: ignore


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at `path`."""
    home, _, name = path.rpartition(".")
    setattr(model.get_submodule(home), name, module)


def count_of(module: nn.Module, name: str) -> int:
    return operator.attrgetter(name)(module)


def set_count(module: nn.Module, name: str, value: int) -> None:
    """Set the attribute `name` of a module. "config.x": a field of the model's config, for this module alone."""
    if name.startswith("config."):
        own = copy.copy(module.config) if isinstance(module.config, OwnCounts) else OwnCounts(module.config)
        setattr(own, name.removeprefix("config."), value)
        object.__setattr__(module, "config", own)  # a new one: whoever held the old one can put it back
    else:
        setattr(module, name, value)


class OwnCounts:
    """A model's config as one layer sees it, with numbers of heads of its own."""

    def __init__(self, config: Any):
        self.model_config = config

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model_config":  # asked for while this is being copied
            raise AttributeError(name)
        return getattr(self.model_config, name)


def linear_shape(linear: nn.Module) -> list[Any]:
    """[outputs, inputs, whether it has a bias] of a Linear or a Conv1D."""
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return [*((columns, rows) if hasattr(linear, "nf") else (rows, columns)), linear.bias is not None]


def _linears(model: nn.Module, record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`linears` from a record of format 1."""
    spec, found = record["spec"], {}
    for layer, (width, down_bias) in enumerate(zip(record["widths"], record["down_bias"], strict=True)):
        path = f"{spec['blocks']}.{layer}."
        for name in filter(None, (spec["up"], spec["gate"])):
            shape = linear_shape(model.get_submodule(path + name))
            found[path + name] = [width * (2 if spec["fused_gate"] else 1), *shape[1:]]
        shape = linear_shape(model.get_submodule(path + spec["down"]))
        found[path + spec["down"]] = [shape[0], width, down_bias or shape[2]]
    return found


def _cut(linear: nn.Module, size: int, *, outputs: bool) -> None:
    """Keep the first `size` outputs, or inputs, of a Linear (stored out, in) or a Conv1D (stored in, out)."""
    _narrow(linear, "weight", int(hasattr(linear, "nf") == outputs), size)
    if outputs and linear.bias is not None:
        _narrow(linear, "bias", 0, size)
    for name in ("out_features", "nf") if outputs else ("in_features", "nx"):
        if hasattr(linear, name):
            setattr(linear, name, size)


def _narrow(module: nn.Module, name: str, dim: int, size: int) -> None:
    old = getattr(module, name)
    if old.shape[dim] != size:
        new = old.detach().narrow(dim, 0, size).clone()
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


@functools.cache
def pruned_class(stock: type[Any]) -> type[Any]:
    """The subclass of a transformers causal-LM class that is cut to `config.lmprune` when it is built."""

    class Pruned(stock):
        _auto_class = "AutoModelForCausalLM"  # so that plain `save_pretrained` copies this file and writes `auto_map`

        def __init__(self, config, *args, **kwargs):
            # per-layer fields are ambiguous on a heterogeneous config: the stock class is built from the global values
            per_layer = config.to_dict().get("per_layer_config")
            config.per_layer_config = None
            super().__init__(config, *args, **kwargs)
            config.per_layer_config = per_layer
            resize(self, config.lmprune)

    Pruned.__name__ = Pruned.__qualname__ = PREFIX + stock.__name__
    if (renamed := conversion_mapping.get_checkpoint_conversion_mapping(stock.__name__)) is not None:
        # what files call its tensors, transformers knows by a class's name
        conversion_mapping.register_checkpoint_conversion_mapping(Pruned.__name__, renamed, overwrite=True)
    return Pruned


def stock_class(cls: type[Any]) -> type[Any]:
    """The class that `cls` cuts, or `cls` itself where it is no pruned class."""
    return next(c for c in cls.__mro__ if not c.__name__.startswith(PREFIX))


def __getattr__(name: str) -> type[Any]:
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(stock)
