"""Handles on a model's feed-forward layers: neuron-major views, and the only code that changes shapes.

Axes: N tokens, D model width, F neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from .families import FFNSpec, family_of

#: attributes that record a linear layer's shape: nn.Linear's, then transformers' Conv1D's
OUT_NAMES, IN_NAMES = ("out_features", "nf"), ("in_features", "nx")


def rows_are_inputs(linear: nn.Module) -> bool:
    """transformers' Conv1D stores its weight (in, out); nn.Linear and its subclasses (out, in); LoRA wraps either."""
    return hasattr(getattr(linear, "base_layer", linear), "nf")


class FFN:
    """The feed-forward layer of one block, seen neuron by neuron.

    Views (`writers`, `reader`) share memory with the model's parameters: writing into them changes the model.
    """

    def __init__(self, block: nn.Module, spec: FFNSpec, layer: int):
        self.block = block
        self.spec = spec
        self.layer = layer
        self.up = block.get_submodule(spec.up)
        self.gate = block.get_submodule(spec.gate) if spec.gate else None
        self.down = block.get_submodule(spec.down)
        self._put_back: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"FFN(layer={self.layer}, width={self.width}, {self.spec.up} -> {self.spec.down})"

    @property
    def width(self) -> int:
        """F, the number of neurons."""
        return self.reader().shape[0]

    @property
    def linears(self) -> list[nn.Module]:
        """The modules whose parameters belong to neurons: writers, then the reader."""
        return [m for m in (self.up, self.gate, self.down) if m is not None]

    def writers(self) -> list[Tensor]:
        """Each (F, D): row j belongs to neuron j. [up], [up, gate], or the two halves of a fused [gate; up]."""
        rows = [self._major(m, writer=True) for m in (self.up, self.gate) if m is not None]
        return [half for w in rows for half in w.chunk(2)] if self.spec.fused_gate else rows

    def writer_biases(self) -> list[Tensor]:
        """Each (F,), for the writers that have a bias."""
        found = [cast(Tensor, m.bias) for m in (self.up, self.gate) if m is not None and _bias(m) is not None]
        return [half for b in found for half in b.chunk(2)] if self.spec.fused_gate else found

    def reader(self) -> Tensor:
        """(F, D): row j is neuron j's column of `down`."""
        return self._major(self.down, writer=False)

    def reader_bias(self) -> Tensor | None:
        """(D,), or None where `down` has no bias."""
        return _bias(self.down)

    @staticmethod
    def _major(linear: nn.Module, *, writer: bool) -> Tensor:
        weight = cast(Tensor, linear.weight)
        return weight.T if rows_are_inputs(linear) == writer else weight

    def keep(self, indices: Tensor) -> None:
        """Cut the layer down to the neurons `indices` (sorted, unique, (K,)); the rest of the model is untouched."""
        assert indices.ndim == 1 and len(indices) > 0, "keep at least one neuron"
        rows = torch.cat([indices, indices + self.width]) if self.spec.fused_gate else indices
        for writer in (self.up, self.gate):
            if writer is not None:
                index_out(writer, rows)
        index_in(self.down, indices)

    def compute_only(self, indices: Tensor | None) -> None:
        """From now on compute only the neurons `indices` (sorted, unique, (K,)); None = all of them again.

        The parameters stay whole: every forward pass gathers their rows, so that gradients reach the neurons that were
        computed, and the others can come back. What passes the seam is then (…, K). Hooks around the layers, such as
        accelerate's that fetch offloaded weights, go on working.
        Raises: UserError for layers whose product is not a plain one (LoRA, quantised, a forward of their own).
        """
        while self._put_back:
            self._put_back.pop()()
        if indices is None:
            return
        self.check_gathers()
        rows = torch.cat([indices, indices + self.width]) if self.spec.fused_gate else indices
        for linear in self.linears:
            writes = linear is not self.down
            product = partial(_gathered, linear, rows if writes else indices, outputs=writes)
            self._put_back.append(_replace_product(linear, product))

    def check_gathers(self) -> None:
        """Raises: UserError where `compute_only` would."""
        for linear in self.linears:
            plain = isinstance(linear, nn.Linear) or hasattr(linear, "nf")
            if not plain or not _computes_as_its_class(linear):
                what = "forward that was put into a" if plain else "neurons of a"
                raise UserError(
                    f"layer {self.layer}: the {what} {type(linear).__name__} can't be gathered; use --compute full "
                    '(in Python: GradualSettings(compute="full"))'
                )

    def pad(self, width: int) -> None:
        """Add neurons without any effect, up to `width`: all weights zero."""
        assert width >= self.width, "a layer is cut by `keep`"
        more = width - self.width
        for writer in filter(None, (self.up, self.gate)):
            pad_out(writer, more, parts=2 if self.spec.fused_gate else 1)
        pad_in(self.down, more)

    @torch.no_grad()
    def set_reader(self, reader_FD: Tensor, bias_D: Tensor | None = None) -> None:
        """Write new reader weights (and bias), of the present width; dtype and device stay the model's."""
        self.reader().copy_(reader_FD)
        if bias_D is not None:
            bias = self.reader_bias()
            if bias is None:
                weight = cast(Tensor, self.down.weight)
                self.down.register_parameter("bias", nn.Parameter(bias_D.to(weight, copy=True)))
            else:
                bias.copy_(bias_D)


def _bias(linear: nn.Module) -> Tensor | None:
    return getattr(linear, "bias", None)


def _replace(linear: nn.Module, name: str, value: Tensor) -> None:
    old = cast(nn.Parameter, getattr(linear, name))
    setattr(linear, name, nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad))


def _record(linear: nn.Module, names: Sequence[str], size: int) -> None:
    for name in names:
        if hasattr(linear, name):
            setattr(linear, name, size)


def index_out(linear: nn.Module, rows: Tensor) -> None:
    """Keep only the outputs `rows` of a Linear or Conv1D."""
    weight = cast(Tensor, linear.weight)
    _replace(linear, "weight", weight.index_select(1 if rows_are_inputs(linear) else 0, rows.to(weight.device)))
    if (bias := _bias(linear)) is not None:
        _replace(linear, "bias", bias.index_select(0, rows.to(bias.device)))
    _record(linear, OUT_NAMES, len(rows))


def index_in(linear: nn.Module, rows: Tensor) -> None:
    """Keep only the inputs `rows` of a Linear or Conv1D."""
    weight = cast(Tensor, linear.weight)
    _replace(linear, "weight", weight.index_select(0 if rows_are_inputs(linear) else 1, rows.to(weight.device)))
    _record(linear, IN_NAMES, len(rows))


def _gathered(linear: nn.Module, rows: Tensor, x: Tensor, *, outputs: bool) -> Tensor:
    """What a Linear or Conv1D computes with only `rows` of its outputs, or of its inputs (x then has only those)."""
    weight, bias = cast(Tensor, linear.weight), _bias(linear)
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


def _computes_as_its_class(linear: nn.Module) -> bool:
    """Whether nothing but a hook of accelerate's has been put in the place of the layer's own `forward`."""
    return _is_class_method(linear, getattr(linear, _product(linear)))


def _replace_product(linear: nn.Module, product: Callable[[Tensor], Tensor]) -> Callable[[], None]:
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


def pad_out(linear: nn.Module, more: int, *, parts: int = 1) -> None:
    """Add outputs that are zero to a Linear or Conv1D: `more` after each of `parts` equal runs of outputs."""
    weight = cast(Tensor, linear.weight)
    dim = 1 if rows_are_inputs(linear) else 0
    _replace(linear, "weight", torch.cat([_padded(run, more, dim) for run in weight.chunk(parts, dim)], dim))
    if (bias := _bias(linear)) is not None:
        _replace(linear, "bias", torch.cat([_padded(run, more, 0) for run in bias.chunk(parts)]))
    _record(linear, OUT_NAMES, linear.weight.shape[dim])  # type: ignore[index]


def pad_in(linear: nn.Module, more: int) -> None:
    """Add `more` inputs that are not read to a Linear or Conv1D."""
    dim = 0 if rows_are_inputs(linear) else 1
    _replace(linear, "weight", _padded(cast(Tensor, linear.weight), more, dim))
    _record(linear, IN_NAMES, linear.weight.shape[dim])  # type: ignore[index]


def _padded(tensor: Tensor, more: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def find_ffns(model: nn.Module, spec: FFNSpec | None = None) -> list[FFN]:
    """The model's feed-forward layers, in order.

    model: a causal-LM model. spec: paths to use instead of the FAMILIES row of `model.config.model_type`.
    Raises: UserError where it is no model, or a path of the spec does not exist in it.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected a model, such as lmprune.load returns, got {type(model).__name__} {model!r:.50}")
    spec = spec or family_of(getattr(model, "config", None))
    blocks = _blocks(model, spec)
    try:
        return [FFN(block, spec, layer) for layer, block in enumerate(blocks)]
    except AttributeError as error:
        raise UserError(f"{type(model).__name__} does not have the layer that was named: {error}") from None


def _blocks(model: nn.Module, spec: FFNSpec) -> Sequence[nn.Module]:
    if spec.blocks:
        try:
            return cast(Sequence[nn.Module], model.get_submodule(spec.blocks))
        except AttributeError as error:
            raise UserError(f"{type(model).__name__} has no list of blocks at {spec.blocks!r}: {error}") from None
    every = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    lists = [m for m in every if _has(m[0], spec)]
    if not lists:
        block = max(every, key=len)[0] if every else model
        there = [name for name, module in block.named_modules() if name and not any(module.children())]
        raise UserError(
            f"no block of {type(model).__name__} holds {spec.up!r} and {spec.down!r}; one holds {', '.join(there)}"
        )
    if len(lists) > 1:
        raise UserError(
            f"{len(lists)} lists of blocks in {type(model).__name__} hold {spec.up!r} and {spec.down!r}; "
            "name the one to prune with --ffn blocks=…"
        )
    return cast(Sequence[nn.Module], lists[0])


def _has(block: nn.Module, spec: FFNSpec) -> bool:
    names = {name for name, _ in block.named_modules()}
    return spec.up in names and spec.down in names
