"""The neurons inside the experts of a layer, as sites of the linears that the stacked tensors stand for.

Each expert is a feed-forward layer of its own, over the tokens that go to it: a Site. Its linears are made for the
occasion, of the stacked tensors' own memory, and while a place is open the layer's own forward goes through them, so
that what hooks linears (statistics, masks, moments) sees each expert alone. All experts keep equally many neurons,
because their tensors are stacked.

Axes: N tokens, D model width, E experts, I neurons of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..checkpoints.shim import count_of, set_count
from ..errors import UserError
from .address import Address
from .linears import replace, replace_forward
from .mixtures import MixtureSpec
from .site import Site, Writer

#: numbers of bfloat16 in 16 bytes
_ALIGNED = 8


@dataclass(eq=False)
class ExpertNeurons:
    """The neurons of all experts of one layer, expert after expert: unit e · I + j is neuron j of expert e.

    up, down: names of the stacked tensors, (E, rows, columns); their biases are called so with `_bias`.
    transposed: they are stored (E, in, out). interleaved: gate and up lie neuron by neuron, not one after the other.
    """

    address: Address
    block: nn.Module
    stacked: nn.Module
    up: str
    down: str
    transposed: bool
    interleaved: bool
    widths: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ExpertNeurons({self.address}, {self.parts} × {self.count // self.parts})"

    @property
    def parts(self) -> int:
        """E: each expert keeps equally many."""
        return len(self._tensor(self.down))

    @property
    def width(self) -> int:
        """I, the neurons of an expert."""
        return self._tensor(self.down).shape[1 if self.transposed else 2]

    @property
    def count(self) -> int:
        """E · I."""
        return self.parts * self.width

    @property
    def least(self) -> int:
        return self.parts

    @property
    def params(self) -> int:
        return self.seams()[0].params

    @property
    def modules(self) -> list[nn.Module]:
        return [self.stacked]

    @property
    def scaled(self) -> list[tuple[nn.Module, str]]:
        return [(self.stacked, name) for name in self.widths if hasattr(self.stacked, name)]

    def _tensor(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self.stacked, name))

    def seams(self) -> list[Site]:
        """Each expert as a site; writing into its weights changes the model, cutting it does not, until `put`."""
        runs, found = (2,) if self.interleaved else (1, 1), []
        for expert in range(self.parts):
            up, down = (self._linear(name, expert) for name in (self.up, self.down))
            found.append(Site(self.address, self.block, (Writer(up, runs),), down, what=f"{self.down} of {expert}"))
        return found

    def _linear(self, name: str, expert: int) -> nn.Module:
        bias = getattr(self.stacked, f"{name}_bias", None)
        return _linear(self._tensor(name)[expert], None if bias is None else bias[expert], self.transposed)

    def put(self, seams: Sequence[Site]) -> None:
        """Stack what the experts' linears have become."""
        before = self.count
        linears_of = {self.up: [s.writer_linears[0] for s in seams], self.down: [s.reader_linear for s in seams]}
        for name, linears in linears_of.items():
            for suffix, what in (("", "weight"), ("_bias", "bias")):
                if hasattr(self.stacked, name + suffix):
                    replace(self.stacked, name + suffix, torch.stack([getattr(linear, what) for linear in linears]))
        for module, name in self.scaled:
            set_count(module, name, count_of(module, name) * self.count // before)

    def split(self, units: Tensor) -> list[Tensor]:
        """The units of each expert, by their numbers there. Raises: UserError where they are not equally many."""
        self.check(units)
        return [units_K - self.width * expert for expert, units_K in enumerate(units.chunk(self.parts))]

    def check(self, units: Tensor) -> None:
        of_each = torch.bincount(units // self.width, minlength=self.parts)
        if len(of_each.unique()) > 1 or not len(units):
            raise UserError(
                f"layer {self.address.layer}: experts' tensors are stacked, so each must keep equally many neurons, "
                f"not {', '.join(map(str, of_each.tolist()))}"
            )
        self._check_width(int(of_each[0]))

    def _check_width(self, number: int) -> None:
        """transformers multiplies all experts at once, by a product that takes rows of whole 16 bytes only."""
        if number % _ALIGNED and number < self.width:
            raise UserError(
                f"layer {self.address.layer}: {number} of {self.width} neurons of each expert would stay, and not "
                f"a multiple of {_ALIGNED}; use a multiple_of that is one"
            )

    def keep(self, units: Tensor) -> None:
        seams = self.seams()
        for seam, units_K in zip(seams, self.split(units), strict=True):
            seam.keep(units_K)
        self.put(seams)

    def mask(self, values_U: Tensor) -> Callable[[], None]:
        stack, seams = ExitStack(), self.seams()
        stack.enter_context(self.opened(seams))
        for seam, values in zip(seams, values_U.chunk(self.parts), strict=True):
            stack.callback(seam.mask(values))
        return stack.close

    @contextmanager
    def opened(self, seams: Sequence[Site]) -> Iterator[None]:
        """The layer computes by the linears of `seams` for the length of a `with` block."""
        ups, downs = [seam.writer_linears[0] for seam in seams], [seam.reader_linear for seam in seams]
        linears = {id(self._tensor(name)): found for name, found in ((self.up, ups), (self.down, downs))}
        biases = [getattr(self.stacked, f"{name}_bias", None) for name in (self.up, self.down)]
        by_expert = _ByExpert(linears, {id(bias) for bias in biases if bias is not None})
        forward = getattr(type(self.stacked).forward, "__wrapped__", type(self.stacked).forward)

        def through_linears(*args: Any, **kwargs: Any) -> Any:
            with by_expert:
                return forward(self.stacked, *args, **kwargs)

        put_back = replace_forward(self.stacked, through_linears)
        try:
            yield
        finally:
            put_back()


class _ByExpert(TorchFunctionMode):
    """Inside a forward that takes one expert's slice of a stacked tensor and multiplies by it: the product is computed
    by that expert's linear, bias and all, so that the slice of a stacked bias is zero.

    linears: id of a stacked tensor -> the linear of each expert. biases: ids of the stacked biases.
    """

    def __init__(self, linears: dict[int, list[nn.Module]], biases: set[int]):
        super().__init__()
        self.linears, self.biases = linears, biases
        self.of_weight = {id(linear.weight): linear for found in linears.values() for linear in found}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and id(args[0]) in self.linears:
            return self.linears[id(args[0])][int(args[1])].weight
        if func is Tensor.__getitem__ and id(args[0]) in self.biases:
            return torch.zeros_like(func(*args))
        if func in _PRODUCTS and id(args[1]) in self.of_weight:
            return self.of_weight[id(args[1])](args[0])
        return func(*args, **(kwargs or {}))


_PRODUCTS = (functional.linear, Tensor.matmul, Tensor.__matmul__, torch.matmul)


class _InOut(nn.Module):
    """A linear whose weight is stored (in, out)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.weight, self.bias, self.nf = weight, bias, weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.T, self.bias)


def _linear(weight: Tensor, bias: Tensor | None, transposed: bool) -> nn.Module:
    """A linear of the very memory of `weight` and `bias`."""
    mine = nn.Parameter(weight.detach(), requires_grad=False)
    own = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    if transposed:
        return _InOut(mine, own)
    linear = nn.Linear(mine.shape[1], mine.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = mine, own  # type: ignore[assignment]
    return linear


def expert_neurons(block: nn.Module, spec: MixtureSpec, layer: int) -> ExpertNeurons | None:
    """The neurons of a block's experts; None where it is a dense one. Raises: AttributeError where it lacks a path."""
    home = block.get_submodule(spec.home)
    if not hasattr(home, spec.experts):
        return None
    stacked = home.get_submodule(spec.experts)
    return ExpertNeurons(
        *(Address("expert_neurons", layer), block, stacked, spec.up, spec.down),
        transposed=bool(stacked.is_transposed),
        interleaved=not stacked.is_concatenated,
        widths=spec.widths,
    )
