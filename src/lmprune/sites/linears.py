"""Linear layers, nn.Linear's and transformers' Conv1D's alike: cut, padded, or computed in part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

#: attributes that record a linear layer's shape: nn.Linear's, then transformers' Conv1D's
OUT_NAMES, IN_NAMES = ("out_features", "nf"), ("in_features", "nx")


def rows_are_inputs(linear: nn.Module) -> bool:
    """transformers' Conv1D stores its weight (in, out); nn.Linear and its subclasses (out, in); LoRA wraps either."""
    return hasattr(getattr(linear, "base_layer", linear), "nf")


def outputs_of(linear: nn.Module) -> int:
    return cast(Tensor, linear.weight).shape[1 if rows_are_inputs(linear) else 0]


def inputs_of(linear: nn.Module) -> int:
    return cast(Tensor, linear.weight).shape[0 if rows_are_inputs(linear) else 1]


def bias_of(linear: nn.Module) -> Tensor | None:
    return getattr(linear, "bias", None)


def replace(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a new parameter, or buffer, in the place of one. value: nobody else's."""
    old, new = cast(Tensor, getattr(module, name)), value.detach()
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _record(linear: nn.Module, names: Sequence[str], size: int) -> None:
    for name in names:
        if hasattr(linear, name):
            setattr(linear, name, size)


def index_out(linear: nn.Module, rows: Tensor) -> None:
    """Keep only the outputs `rows` of a Linear or Conv1D."""
    weight = cast(Tensor, linear.weight)
    replace(linear, "weight", weight.index_select(1 if rows_are_inputs(linear) else 0, rows.to(weight.device)))
    if (bias := bias_of(linear)) is not None:
        replace(linear, "bias", bias.index_select(0, rows.to(bias.device)))
    _record(linear, OUT_NAMES, len(rows))


def index_in(linear: nn.Module, rows: Tensor) -> None:
    """Keep only the inputs `rows` of a Linear or Conv1D."""
    weight = cast(Tensor, linear.weight)
    replace(linear, "weight", weight.index_select(0 if rows_are_inputs(linear) else 1, rows.to(weight.device)))
    _record(linear, IN_NAMES, len(rows))


def gathered(linear: nn.Module, rows: Tensor, x: Tensor, *, outputs: bool) -> Tensor:
    """What a Linear or Conv1D computes with only `rows` of its outputs, or of its inputs (x then has only those)."""
    weight, bias = cast(Tensor, linear.weight), bias_of(linear)
    rows = rows.to(weight.device)  # here and not before: offloaded weights are elsewhere until they are needed
    weight = weight.index_select(int(rows_are_inputs(linear) == outputs), rows)
    if outputs and bias is not None:
        bias = bias.index_select(0, rows)
    return functional.linear(x, weight.T if rows_are_inputs(linear) else weight, bias)


#: where a layer's product is computed: inside accelerate's hook if there is one, else in `forward`
_HOOKED, _PLAIN = "_old_forward", "forward"


def _product(linear: nn.Module) -> str:
    return _HOOKED if hasattr(linear, _HOOKED) else _PLAIN


def _is_class_method(linear: nn.Module, function: Any) -> bool:
    return getattr(function, "__func__", None) is type(linear).forward


def computes_as_its_class(linear: nn.Module) -> bool:
    """Whether nothing but a hook of accelerate's has been put in the place of the layer's own `forward`."""
    return _is_class_method(linear, getattr(linear, _product(linear)))


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Let `forward` be the forward of this very module; what comes back undoes that."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward

    def put_back() -> None:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before

    return put_back


def replace_product(linear: nn.Module, product: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Let `product` compute what the layer computes; what comes back undoes that, and leaves any hook where it is."""
    found = getattr(linear, _product(linear))
    linear.__dict__[_product(linear)] = product

    def put_back() -> None:
        for name in (_PLAIN, _HOOKED):  # a hook that came or went meanwhile has moved it from one to the other
            if linear.__dict__.get(name) is product:
                linear.__dict__[name] = found
        if _is_class_method(linear, linear.__dict__.get(_PLAIN)):
            del linear.__dict__[_PLAIN]

    return put_back


def pad_out(linear: nn.Module, runs: Sequence[tuple[int, int]]) -> None:
    """Add outputs that are zero to a Linear or Conv1D: to each of its runs of outputs, (its length, how many more)."""
    dim = 1 if rows_are_inputs(linear) else 0
    lengths, more = [length for length, _ in runs], [added for _, added in runs]
    for name, along in (("weight", dim), ("bias", 0)):
        if (tensor := getattr(linear, name, None)) is not None:
            parts = [_padded(run, n, along) for run, n in zip(tensor.split(lengths, along), more, strict=True)]
            replace(linear, name, torch.cat(parts, along))
    _record(linear, OUT_NAMES, cast(Tensor, linear.weight).shape[dim])


def pad_in(linear: nn.Module, more: int) -> None:
    """Add `more` inputs that are not read to a Linear or Conv1D."""
    dim = 0 if rows_are_inputs(linear) else 1
    replace(linear, "weight", _padded(cast(Tensor, linear.weight), more, dim))
    _record(linear, IN_NAMES, cast(Tensor, linear.weight).shape[dim])


def _padded(tensor: Tensor, more: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
